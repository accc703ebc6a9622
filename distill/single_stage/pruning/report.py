"""The report of the verb `prune`, from its outcome alone; every medium renders the same document."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from xml.etree.ElementTree import Element, SubElement, tostring

from distill.benchmarks import units
from distill.benchmarks.units import DASH
from distill.prune.record import GroupRecord
from distill.references.libraries import LIBRARIES
from distill.rendering.document import (
    Block,
    Cell,
    Chart,
    Charts,
    Code,
    Document,
    Note,
    Notes,
    Section,
    Table,
    Text,
    pairs,
)
from distill.single_stage.pruning.outcome import Outcome

_MOST = 15  # layers on a terminal
_WIDTH, _HEIGHT, _FLOOR = 260, 92, 76  # pixels of a histogram; bars stand on the floor
_BARS = " ▁▂▃▄▅▆▇█"
_MOVED = (
    "The function or package that made the unpruned model has to be importable; where it has moved, say so: "
    'load(folder, "package.module:function"). model.onnx needs onnxruntime only.'
)
_SPREAD = (
    "How the scores of the units of a group (channels that go together) are spread, from 0 to the highest; 1 is the "
    "group's mean. The colours tell what stayed from what went, in the last step."
)


def document(outcome: Outcome, out: str) -> Document:
    """Lay the report out; ``out`` is the folder that it lies in."""
    record = outcome.record
    speed = f"{units.speedup(outcome.latency.speedup)} as fast" if outcome.latency else "not timed"
    result = (
        f"{outcome.model}: MACs {_left(record.macs_before, record.macs_after)}, "
        f"parameters {_left(record.parameters_before, record.parameters_after)}, {speed}"
    )
    sections = (section(outcome, out) for section in SECTIONS)
    return Document(
        name=f"Pruned: {outcome.model}",
        kind="pruning report",
        headline=(Note(result), Note(outcome.why)),
        sections=[section for section in sections if section is not None],
        footer="Made by python -m distill prune.",
    )


def _changed(outcome: Outcome, out: str) -> Section | None:
    """Show the layers that lost the largest share of their channels."""
    record = outcome.record
    cut = {name: pair for name, pair in record.widths.items() if pair[0] != pair[1]}
    names = sorted(cut, key=lambda name: (cut[name][1] / cut[name][0] if cut[name][0] else 1.0, -cut[name][0]))
    blocks: list[Block] = [_layer_table(outcome, names[:_MOST])] if names else []
    if len(names) > _MOST:
        more = f"and {len(names) - _MOST} more layers, of {len(record.widths)}; all are in the report"
        blocks.append(Text(more))
    if record.blocks:
        blocks.append(Text(f"whole blocks gone: {', '.join(record.blocks)}"))
    return Section("What was cut", blocks, "terminal") if blocks else None


def _figures(outcome: Outcome, out: str) -> Section:
    record = outcome.record
    rows = [
        _compared("MACs", record.macs_before, record.macs_after, units.count),
        _compared("parameters", record.parameters_before, record.parameters_after, units.count),
    ]
    if outcome.file_bytes is not None:
        rows.append(_compared("ONNX file", *outcome.file_bytes, units.size))
    rows += [_latency(outcome), *_quality(outcome)]
    caption = f"Timed on: {measured_on(outcome)}. Brackets are 95 % intervals."
    return Section("Before and after", [Table(("", "before", "after", ""), rows, caption=caption)], "both")


def _compared(name: str, before: float, after: float, write: Callable[[float], str]) -> tuple[str, str, str, str]:
    return name, write(before), write(after), _left(before, after)


def _left(before: float, after: float) -> str:
    return f"{units.percent(after / before)} left" if before else DASH


def _latency(outcome: Outcome) -> tuple[str, str, str, str]:
    latency = outcome.latency
    if latency is None:
        return "latency", DASH, DASH, "unmeasured"
    before, after = units.duration(latency.before_s), units.duration(latency.after_s)
    return f"p50, batch {latency.batch}", before, after, units.speedup(latency.speedup)


def _quality(outcome: Outcome) -> list[tuple[str, str, str, str]]:
    quality = outcome.quality
    if quality is None:
        return []
    if not quality.labelled:
        return [(f"answers, {quality.rows} rows", DASH, DASH, f"changed {units.metric(quality.drop, quality.rows)}")]
    before, after = units.percent(quality.before), units.percent(quality.after)
    return [(f"{quality.measure}, {quality.rows} rows", before, after, f"drop {units.drop(quality.drop)}")]


def measured_on(outcome: Outcome) -> str:
    """Say on what was timed, in which number format, and what the interval rests on."""
    latency = outcome.latency
    if latency is None:
        return f"not timed: {outcome.unmeasured or outcome.why}"
    return (
        f"{units.line(outcome.machine['cpu'])}, {latency.threads} thread(s), {latency.provider}, {latency.format}, "
        f"onnxruntime {outcome.machine['versions'].get('onnxruntime')}; {latency.session_pairs} session pairs in "
        "turns, 95 % interval"
    )


def _circumstances(outcome: Outcome, out: str) -> Section:
    texts = [measured_on(outcome), f"importance: {outcome.record.importance}"]
    texts += [outcome.quality.judged] if outcome.quality and outcome.quality.judged else []
    return Section("Circumstances", [Text(text, "faint") for text in texts], "terminal")


def _load(outcome: Outcome, out: str) -> Section:
    """Show the Python that loads what was written, and says that the function which made the model is trusted."""
    trust = "" if outcome.model.partition(":")[0] in LIBRARIES else f", trust={outcome.model!r}"
    code = f"from distill.prune import load\n\nmodel = load({out!r}{trust})  # an nn.Module in eval mode"
    return Section("Load it", [Code(code, "python"), Text(_MOVED)])


def _warnings(outcome: Outcome, out: str) -> Section | None:
    notes = [Note(warning) for warning in dict.fromkeys(outcome.warnings)]
    return Section("Warnings", [Notes(notes, warnings=True)], "both") if notes else None


def _how(outcome: Outcome, out: str) -> Section:
    """Say how channels were chosen and what was done afterwards."""
    record = outcome.record
    name, amount = record.asked
    rows = [
        ("asked for", f"{name} {amount:g}"),
        ("importance", record.importance),
        ("target", outcome.target),
        ("whole blocks gone", ", ".join(record.blocks) or "none"),
        ("epochs of distillation from the unpruned model", str(outcome.epochs)),
    ]
    if outcome.quality is not None and outcome.quality.judged:
        rows.append(("answers", outcome.quality.judged))
    if outcome.sparse is not None:
        sparse = outcome.sparse
        share = f"{units.percent(sparse.share_achieved)} of {units.count(sparse.weights)} weights"
        zipped = f"{units.size(sparse.zipped_bytes_before)} to {units.size(sparse.zipped_bytes_after)}"
        rows += [("zeros", f"{sparse.pattern}: {share}"), ("weights, compressed", zipped)]
    return Section("How", [pairs(rows), Code(units.line(outcome.command), "sh")])


def _layers(outcome: Outcome, out: str) -> Section:
    caption = (
        "Output channels of every layer in the order of the model, and the time of its kernel alone at the timed batch."
    )
    return Section("Layers", [_layer_table(outcome, list(outcome.record.widths), caption)])


def _layer_table(outcome: Outcome, names: Sequence[str], caption: str = "") -> Table:
    record = outcome.record
    timed = any(name in record.layer_seconds for name in names)
    rows = []
    for name in names:
        (before, after), seconds = record.widths[name], record.layer_seconds.get(name, (None, None))
        left = after / before if before else 1.0
        times = (units.duration(seconds[0]), units.duration(seconds[1]) if after else DASH) if timed else ()
        share = Cell(units.percent(left, 0), bar=round(100 * left, 1))
        rows.append((name, str(before), str(after) if after else "gone", share, *times))
    head = ("layer", "before", "after", "left", *(("alone, before", "alone, after") if timed else ()))
    return Table(head, rows, caption=caption)


def _importance(outcome: Outcome, out: str) -> Section | None:
    """Show how scores are spread, for the groups that lost the largest share first."""
    groups = [group for group in outcome.record.groups if group.stayed and sum(group.stayed) + sum(group.went)]
    if not groups:
        return None
    groups.sort(key=lambda group: group.after / group.before if group.before else 1.0)
    rows = [(g.name, _units(g), _spark(g.stayed), _spark(g.went), units.significant(g.highest)) for g in groups]
    charts = [Chart("", group.name, _units(group), svg=_histogram(group)) for group in groups]
    table = Table(("group", "units", "stayed", "went", "highest"), rows, numbers=1)
    return Section("Importance", [Text(_SPREAD), Charts(charts), table])


def _units(group: GroupRecord) -> str:
    return f"{group.before} → {group.after} units"


def _spark(counts: Sequence[int]) -> str:
    """Draw counts as a row of bars; a count that is not 0 can be seen."""
    top, steps = max(counts, default=0), len(_BARS) - 1
    if not top:
        return DASH
    return "".join(_BARS[max(1, round(steps * count / top))] if count else "·" for count in counts)


def _histogram(group: GroupRecord) -> str:
    """Draw an SVG with a bar an interval of the score: the units that went below those that stayed."""
    totals = [stayed + went for stayed, went in zip(group.stayed, group.went, strict=True)]
    top, step = max([*totals, 1]), _WIDTH / max(1, len(totals))
    root = Element(
        "svg",
        {
            "xmlns": "http://www.w3.org/2000/svg",
            "viewBox": f"0 0 {_WIDTH} {_HEIGHT}",
            "class": "histogram",
            "role": "img",
            "aria-label": units.line(f"{group.name}: {sum(group.went)} of {sum(totals)} units went in the last step"),
        },
    )
    for number, (stayed, went) in enumerate(zip(group.stayed, group.went, strict=True)):
        floor = float(_FLOOR)
        for kind, many in (("went", went), ("stayed", stayed)):
            if many:
                tall = (_FLOOR - 4) * many / top
                floor -= tall
                bar = {"class": kind, "x": f"{number * step + 0.5:.1f}", "y": f"{floor:.1f}"}
                SubElement(root, "rect", bar | {"width": f"{step - 1:.1f}", "height": f"{tall:.1f}"})
    floor_line = {"class": "floor", "x1": "0", "x2": str(_WIDTH), "y1": str(_FLOOR), "y2": str(_FLOOR)}
    SubElement(root, "line", floor_line)
    for x, anchor, text in ((0, "start", "0"), (_WIDTH, "end", units.significant(group.highest))):
        SubElement(root, "text", {"x": str(x), "y": str(_HEIGHT - 3), "text-anchor": anchor}).text = text
    return tostring(root, encoding="unicode")


def _machine(outcome: Outcome, out: str) -> Section:
    machine = outcome.machine
    rows = [(name, str(machine[name])) for name in ("cpu", "system", "kernel") if name in machine]
    rows += [(name, str(version)) for name, version in machine.get("versions", {}).items()]
    return Section("Machine and versions", [pairs(rows)])


SECTIONS: tuple[Callable[[Outcome, str], Section | None], ...] = (
    _changed,
    _figures,
    _circumstances,
    _load,
    _warnings,
    _how,
    _layers,
    _importance,
    _machine,
)
