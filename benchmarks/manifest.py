"""Many gates in one: a YAML file of pairs, judged together so that many rows do not cry wolf more often than one.

A row that is slower is measured a second time, on its own sessions; the p-values of the second measurements are
corrected for the number of rows by Holm, and what does not hold both times is inconclusive.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from distill.errors import NotComparableError, NotMeasuredError, UserError

from .bench import Options
from .facts import read_facts
from .gate import Ask, accept, gate, no_baseline
from .machine import fingerprint, machine
from .records import Gate, Report
from .rule import Rule, holm
from .words import counts, fraction, read_npz, sizes

_ROW_KEYS = (
    *("name", "model", "baseline", "tolerance", "batch", "threads", "dims", "inputs", "max_p50_ms"),
    "max_size_growth",
)
_KEYS = ("models", "tolerance", "time_limit_s")
CONFIRMED = "second measurement: "


@dataclass(frozen=True)
class Row:
    """One pair of the manifest, ready to be gated. `limit_s` is that of the whole manifest."""

    name: str
    model: Path
    baseline: Path
    options: Options
    ask: Ask
    limit_s: float | None = None


def read(path: Path, options: Options, ask: Ask) -> list[Row]:
    """Read a manifest; what a row leaves out comes from the command line. Paths are relative to the manifest.

    Raises:
        UserError: every mistake in it, at once.
    """
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"--manifest {path}: cannot be read ({error.strerror})") from error
    except yaml.YAMLError as error:
        raise UserError(f"--manifest {path}: {' '.join(str(error).split())}") from error
    if not isinstance(raw, dict) or not isinstance(raw.get("models"), list) or not raw["models"]:
        raise UserError(f"--manifest {path}: must have `models`, a list of rows with model and baseline")
    mistakes = [f"{path}: {key}: unknown; known are {', '.join(_KEYS)}" for key in raw if key not in _KEYS]
    rows = []
    limit = raw.get("time_limit_s")
    if limit is not None and not (isinstance(limit, int | float) and limit > 0):
        mistakes.append(f"{path}: time_limit_s={limit}: must be a number of seconds above 0")
    for number, entry in enumerate(raw["models"], start=1):
        try:
            rows.append(_row(path.parent, f"{path}: models[{number}]", entry, raw, options, ask))
        except UserError as error:
            mistakes.append(str(error))
    names = [row.name for row in rows]
    mistakes += [f"{path}: two rows are named {name!r}" for name in sorted(set(names)) if names.count(name) > 1]
    if mistakes:
        raise UserError("\n".join(mistakes))
    return [dataclasses.replace(row, limit_s=limit) for row in rows]


def _row(home: Path, where: str, entry: Any, whole: dict[str, Any], options: Options, ask: Ask) -> Row:
    if not isinstance(entry, dict) or not {"model", "baseline"} <= entry.keys():
        raise UserError(f"{where}: must have model and baseline")
    unknown = [key for key in entry if key not in _ROW_KEYS]
    if unknown:
        raise UserError(f"{where}: {', '.join(map(str, unknown))}: unknown; known are {', '.join(_ROW_KEYS)}")
    model, baseline = home / str(entry["model"]), home / str(entry["baseline"])
    read_facts(model)
    rule = ask.rule
    if "tolerance" in entry or "tolerance" in whole:
        text = str(entry.get("tolerance", whole.get("tolerance")))
        rule = dataclasses.replace(rule, tolerance=fraction(f"{where}: tolerance", text))
    changed: dict[str, Any] = {}
    if "batch" in entry:
        changed["batches"] = counts(f"{where}: batch", str(entry["batch"]))
    if "threads" in entry:
        changed["threads"] = counts(f"{where}: threads", str(entry["threads"]))
    if "dims" in entry:
        if not isinstance(entry["dims"], dict):
            raise UserError(f"{where}: dims: must be names with sizes, as {{sequence: 128}}")
        changed["dims"] = sizes(f"{where}: dims", [f"{name}={size}" for name, size in entry["dims"].items()])
    if "inputs" in entry:
        changed["given"] = read_npz(home / str(entry["inputs"]))
    growth, p50 = entry.get("max_size_growth"), entry.get("max_p50_ms")
    own = dataclasses.replace(
        ask,
        rule=rule,
        max_size_growth=ask.max_size_growth if growth is None else fraction(f"{where}: max_size_growth", str(growth)),
        max_p50_s=ask.max_p50_s if p50 is None else float(p50) / 1000,
    )
    name = str(entry.get("name", model.stem))
    return Row(name, model, baseline, dataclasses.replace(options, **changed), own)


def part(rows: Sequence[Row], shard: str | None) -> list[Row]:
    """Take every nth row: `2/3` is the second of three parts. Raises UserError for what is no part."""
    if shard is None:
        return list(rows)
    number, _, count = shard.partition("/")
    if not (number.isdigit() and count.isdigit() and 1 <= int(number) <= int(count)):
        raise UserError(f"--shard {shard}: must be as 1/3, from 1/3 to 3/3")
    return list(rows[int(number) - 1 :: int(count)])


def run(rows: Sequence[Row], shard: str | None, say: Callable[[str], None]) -> list[Report]:
    """Gate the rows of a part one by one; what fails is measured again. Without a shard the verdicts are final."""
    begun, reports = time.monotonic(), []
    mine = part(rows, shard)
    for number, row in enumerate(mine, start=1):
        spent = time.monotonic() - begun
        if row.limit_s is not None and spent >= row.limit_s:
            reports.append(_unread(row, "inconclusive", f"not reached within the time limit of {row.limit_s:g} s"))
            continue
        reports.append(_gated(row))
        say(f"{number}/{len(mine)} {row.name}: {reports[-1].gates[0].verdict}")
    return reports if shard is not None else concluded(reports)


def _gated(row: Row) -> Report:
    """Gate one row, whatever comes of it."""
    try:
        if not row.baseline.exists():
            return no_baseline(row.model, row.baseline, row.options, row.ask, row.name)
        made = gate(row.model, row.baseline, row.options, row.ask, name=row.name)
        if _slower(made.gates[0]):
            made = _confirmed(row, made)
        return accept(made, row.ask.accepted)
    except NotComparableError as error:
        return _unread(row, "incomparable", str(error))
    except (NotMeasuredError, UserError) as error:
        return _unread(row, "not measured", str(error))


def _slower(found: Gate) -> bool:
    return found.mode == "duet" and any(one is not None and one.verdict == "fail" for one in found.cases)


def _confirmed(row: Row, made: Report) -> Report:
    """Measure a row again that was slower; the second measurement counts, and says so."""
    timing = dataclasses.replace(row.options.timing, seed=row.options.timing.seed + 1)
    again = gate(row.model, row.baseline, dataclasses.replace(row.options, timing=timing), row.ask, name=row.name)
    before = made.gates[0]
    slowest = max((one.slowdown for one in before.cases if one), default=1.0)
    reason = f"{CONFIRMED}the first one found {100 * (slowest - 1):+.1f} %"
    found = again.gates[0]
    if not _slower(found) and found.verdict in ("pass", "improved"):
        found = dataclasses.replace(found, verdict="inconclusive")
        reason += ", which did not show again"
    return dataclasses.replace(again, gates=(dataclasses.replace(found, reasons=(*found.reasons, reason)),))


def concluded(reports: Sequence[Report]) -> list[Report]:
    """Correct the latency verdicts of all rows for their number; of shards, once they are merged."""
    flagged = [
        (index, max(one.p_value for one in gate_.cases if one and one.verdict == "fail"))
        for index, report in enumerate(reports)
        for gate_ in report.gates
        if _slower(gate_)
    ]
    duets = sum(any(one is not None for one in gate_.cases) for report in reports for gate_ in report.gates)
    # A row that was not flagged could not be rejected: it counts as a p-value of one. Each p-value has been looked at
    # several times on its way.
    looks = len(Rule().looks)
    p_values = [min(1.0, looks * p) for _, p in flagged] + [1.0] * (duets - len(flagged))
    held = holm(p_values, Rule().alpha)
    done = list(reports)
    for (index, _), rejected in zip(flagged, held, strict=False):
        if not rejected:
            old = done[index].gates[0]
            reason = f"slower, but not beyond what one of {duets} rows may be by chance (Holm)"
            if any(one.verdict == "fail" for one in old.checks) or "fail" in old.budgets:
                continue
            changed = dataclasses.replace(old, verdict="inconclusive", reasons=(*old.reasons, reason))
            done[index] = dataclasses.replace(done[index], gates=(changed,))
    return done


def _unread(row: Row, verdict: Any, why: str) -> Report:
    """Report a row that nothing was measured of."""
    rule = row.ask.rule
    found = Gate(row.name, "none", verdict, rule.tolerance, rule.alpha, rule.looks, reasons=(why,))
    here = machine()
    target = {"name": row.options.target.name, "provider": row.options.target.provider, "provider_options": {}}
    return Report(
        at=datetime.now(UTC).isoformat(timespec="seconds"),
        machine=here,
        fingerprint=fingerprint(here),
        target={**target, "measure": row.options.target.measure},
        seed=row.options.timing.seed,
        models=(),
        cases=(),
        gates=(found,),
    )
