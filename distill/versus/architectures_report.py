"""What the campaign over architectures says in Markdown: counts, a row for each model and ratio, and every reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from distill.benchmarks import units

Row = Mapping[str, Any]
Verdict = Literal["works", "off", "refused", "fails"]
VERDICTS: dict[Verdict, str] = {
    "works": "works",
    "off": "works, but not as much goes as was asked",
    "refused": "refused with a reason",
    "fails": "fails",
}
POINTS = 0.05
"""So far from what was asked may lie what was achieved, as a share of the MACs."""

_WHERE = {"forward": "does not run", "export": "does not export", "limit": "", "crash": "", "load": ""}
_WIDEST = 160


def verdict(row: Row, tool: str) -> Verdict:
    """Judge a tool on one architecture at one ratio; what has to hold is in `troubles`."""
    found = row["tools"][tool]
    if found["at"] == "prune" and found.get("refused"):
        return "refused"
    if any(True for _ in troubles(row, tool)):
        return "fails"
    return "works" if abs(removed(row, tool, "macs") - row["asked"]) <= POINTS else "off"


def troubles(row: Row, tool: str) -> Iterator[str]:
    """Say what is wrong: it was not pruned, does not run, has no graph with the same answers, or loads as another."""
    found = row["tools"][tool]
    if found["at"] != "done":
        yield ": ".join(filter(None, (_WHERE.get(found["at"], ""), found["why"])))
    loaded = found.get("reload", {"identical": True})
    if not loaded.get("identical"):
        yield f"does not load again: {loaded.get('why') or 'other answers'}"


def removed(row: Row, tool: str, what: Literal["macs", "parameters"]) -> float:
    """Return the share of the MACs or the parameters that went."""
    before, after = row["tools"]["plain"], row["tools"][tool]
    return 1 - float(after[what]) / float(before[what])


def line(row: Row) -> str:
    """Say in one line what a row holds."""
    said = [f"{row['case']} {row['asked']:.0%}", *(f"{tool}: {_cell(row, tool)}" for tool in _tools([row]))]
    if row["tools"]["plain"]["at"] != "done":
        said.append(f"unpruned: {row['tools']['plain']['why']}")
    return "; ".join([*said, f"{row['seconds']:.0f} s"])


def report(rows: Sequence[Row]) -> str:
    """Lay out all of it."""
    return "\n\n".join(filter(None, (counts(rows), table(rows), reasons(rows), made_with(rows)))) + "\n"


def counts(rows: Sequence[Row]) -> str:
    """Count verdicts by tool and ratio, and those that work by source."""
    sources = list(dict.fromkeys(row["source"] for row in rows))
    lines = [
        f"| tool | asked | {' | '.join(VERDICTS.values())} | {' | '.join(f'of {one}' for one in sources)} |",
        "| :-- " * 2 + "| --: " * (len(VERDICTS) + len(sources)) + "|",
    ]
    for tool in _tools(rows):
        for asked in sorted({row["asked"] for row in rows}):
            mine = [row for row in rows if row["asked"] == asked and tool in row["tools"]]
            found = Counter(verdict(row, tool) for row in mine)
            cells = [f"{found[one]} of {len(mine)}" if one == "works" else str(found[one]) for one in VERDICTS]
            for source in sources:
                of = [verdict(row, tool) for row in mine if row["source"] == source]
                cells.append(f"{of.count('works')} of {len(of)}")
            lines.append(f"| {tool} | {asked:.0%} | {' | '.join(cells)} |")
    return "\n".join(lines)


def table(rows: Sequence[Row]) -> str:
    """Show every row: the model as it is, then a cell a tool; ours with the parts that it is judged by."""
    tools = _tools(rows)
    heads = ["model", "input", "MACs", "parameters", "latency", "asked"]
    if "distill" in tools:
        heads += ["removed MACs", "parameters", "latency", "speed-up", "ONNX error", "reload", "seconds"]
    others = [tool for tool in tools if tool != "distill"]
    lines = [f"| {' | '.join(heads + others)} |", "| :-- " * 2 + "| --: " * (len(heads) - 2 + len(others)) + "|"]
    for row in rows:
        before = row["tools"]["plain"]
        cells = [row["case"], "×".join(map(str, row["shape"]))]
        cells += [units.count(before.get("macs")), units.count(before.get("parameters"))]
        cells += [units.duration(before.get("p50_s")), f"{row['asked']:.0%}"]
        if "distill" in tools:
            cells += _ours(row) if "distill" in row["tools"] else [""] * 7
        cells += [_cell(row, tool) if tool in row["tools"] else "" for tool in others]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def reasons(rows: Sequence[Row]) -> str:
    """List what was refused or failed, each reason once with the models that it holds for."""
    parts = []
    for tool in ("plain", *_tools(rows)):
        found: dict[str, list[str]] = {}
        for row in rows:
            if tool in row["tools"]:
                for why in troubles(row, tool):
                    found.setdefault(_short(why), []).append(row["case"])
        lines = [f"- {', '.join(dict.fromkeys(cases))}: {why}" for why, cases in found.items()]
        if lines:
            parts.append("\n".join([f"**{'unpruned' if tool == 'plain' else tool}**", "", *lines]))
    return "\n\n".join(parts)


def made_with(rows: Sequence[Row]) -> str:
    """Name the processors and versions that the rows come from."""
    processors = dict.fromkeys(row["machine"]["cpu"] for row in rows if row.get("machine"))
    versions = dict.fromkeys(f"{name} {one}" for row in rows for name, one in row.get("versions", {}).items())
    untimed = [f"{row['case']} at {row['asked']:.0%} ({row['untimed']})" for row in rows if row.get("untimed")]
    said = [f"{', '.join(processors)}, one thread, batch 1" if processors else "", ", ".join(versions)]
    return "; ".join(filter(None, [*said, f"not timed: {', '.join(untimed)}" if untimed else ""]))


def _tools(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(tool for row in rows for tool in row["tools"] if tool != "plain"))


def _ours(row: Row) -> list[str]:
    found = row["tools"]["distill"]
    seconds = units.significant(found.get("seconds"), 2)
    if "macs" not in found:
        return [VERDICTS[verdict(row, "distill")], *[""] * 5, seconds]
    error = found.get("onnx_error")
    return [
        units.percent(removed(row, "distill", "macs"), 0),
        units.percent(removed(row, "distill", "parameters"), 0),
        units.duration(found.get("p50_s")),
        _speedup(found),
        "fails" if error is None else f"{error:.0e}",
        "identical" if found.get("reload", {}).get("identical") else "fails",
        seconds,
    ]


def _cell(row: Row, tool: str) -> str:
    """Say how a tool did: the share of the MACs that went and the speed-up, or what it did instead."""
    found, judged = row["tools"][tool], verdict(row, tool)
    if judged in ("works", "off"):
        return f"{units.percent(removed(row, tool, 'macs'), 0)} {_speedup(found)}".strip()
    if judged == "refused":
        return "refused"
    return {"prune": "raises", "forward": "does not run", "export": "no ONNX"}.get(found["at"], "fails")


def _speedup(found: Mapping[str, Any]) -> str:
    ratio = found.get("ratio_to_plain")
    return "" if ratio is None else f"{1 / ratio[0]:.2f}×"


def _short(text: str) -> str:
    text = units.line(text).replace("|", "\\|")
    return text if len(text) <= _WIDEST else text[: _WIDEST - 1] + "…"
