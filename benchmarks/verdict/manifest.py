"""Many gates in one: a YAML file of pairs, judged together so that many rows do not cry wolf more often than one.

A row that is slower is measured a second time, on its own sessions, until it is sure beyond what one of so many
comparisons may be by chance: each at its share of alpha (Bonferroni), which a shard can do without knowing the others.
Holm's procedure over the whole family then rejects at least as much. What does not hold both times is inconclusive.
"""

from __future__ import annotations

import dataclasses
import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distill.benchmarks.onnx_file.facts import read_facts
from distill.benchmarks.parse import counts, document, positive, read_npz, sizes, whole
from distill.benchmarks.records import Gate, Part, Report, load_part
from distill.benchmarks.verdict.bench import Options
from distill.benchmarks.verdict.gate import Limits, outcome, unread
from distill.benchmarks.verdict.judging import accept, conclude, rejudge, verdict_of
from distill.benchmarks.verdict.rule import ALPHA, LOOKS, holm
from distill.bounds import MOST_ROWS, MOST_THREADS
from distill.errors import UserError

_ROW_KEYS = (
    *("name", "model", "baseline", "tolerance", "batch", "threads", "dims", "inputs", "max_p50_ms"),
    "max_size_growth",
)
_KEYS = ("models", "tolerance", "time_limit_s")


@dataclass(frozen=True)
class Row:
    """One pair of the manifest, ready to be gated."""

    name: str
    model: Path
    baseline: Path
    options: Options
    limits: Limits

    @property
    def comparisons(self) -> int:
        """Count its comparisons: batch sizes times thread counts."""
        return len(self.options.batches) * len(self.options.threads)


@dataclass(frozen=True)
class Manifest:
    """All rows; `digest` is the hash of the text that they were read from, `limit_s` the time that all may take."""

    rows: tuple[Row, ...]
    digest: str
    limit_s: float | None = None


def read(path: Path, options: Options, limits: Limits) -> Manifest:
    """Read a manifest; what a row leaves out comes from the command line. Paths are relative to the manifest.

    Raises:
        UserError: every mistake in it, at once.
    """
    text, raw = document("--manifest", path)
    if not isinstance(raw, dict) or not isinstance(raw.get("models"), list) or not raw["models"]:
        raise UserError(f"--manifest {path}: must have `models`, a list of rows with model and baseline")
    mistakes = [f"{path}: {key}: unknown; known are {', '.join(_KEYS)}" for key in raw if key not in _KEYS]
    rows = []
    limit = raw.get("time_limit_s")
    try:
        limit = None if limit is None else positive(f"{path}: time_limit_s", limit)
    except UserError as error:
        mistakes.append(str(error))
    for number, entry in enumerate(raw["models"], start=1):
        try:
            rows.append(_row(path.parent, f"{path}: models[{number}]", entry, raw, options, limits))
        except UserError as error:
            mistakes.append(str(error))
    names = [row.name for row in rows]
    mistakes += [f"{path}: two rows are named {name!r}" for name in sorted(set(names)) if names.count(name) > 1]
    if mistakes:
        raise UserError("\n".join(mistakes))
    return Manifest(tuple(rows), hashlib.sha256(text.encode()).hexdigest(), limit)


def _row(home: Path, place: str, entry: Any, whole: Mapping[str, Any], options: Options, limits: Limits) -> Row:
    if not isinstance(entry, dict) or not {"model", "baseline"} <= entry.keys():
        raise UserError(f"{place}: must have model and baseline")
    for key in ("name", "tolerance", "batch", "threads", "inputs", "max_size_growth", "model", "baseline"):
        if isinstance(entry.get(key), dict | list):
            raise UserError(f"{place}: {key}: must be a word or a number")
    unknown = [key for key in entry if key not in _ROW_KEYS]
    if unknown:
        raise UserError(f"{place}: {', '.join(map(str, unknown))}: unknown; known are {', '.join(_ROW_KEYS)}")
    for key in ("model", "baseline"):
        if not isinstance(entry[key], str) or not entry[key]:
            raise UserError(f"{place}: {key}={entry[key]}: must be a path")
    model, baseline = home / entry["model"], home / entry["baseline"]
    read_facts(model)
    if not baseline.exists() and baseline.suffix != ".json":
        raise UserError(f"{place}: {baseline}: the baseline does not exist; only a .json may be yet to be saved")
    changed: dict[str, Any] = {}
    for key, field, most in (("batch", "batches", MOST_ROWS), ("threads", "threads", MOST_THREADS)):
        if key in entry:
            changed[field] = counts(f"{place}: {key}", str(entry[key]), most)
    if "dims" in entry:
        if not isinstance(entry["dims"], dict):
            raise UserError(f"{place}: dims: must be names with sizes, as {{sequence: 128}}")
        changed["dims"] = sizes(f"{place}: dims", [f"{name}={size}" for name, size in entry["dims"].items()])
    if "inputs" in entry:
        changed["rows"] = read_npz(home / str(entry["inputs"]))
    written = {"tolerance": whole.get("tolerance"), **entry}
    keys = ("tolerance", "max_size_growth", "max_p50_ms")
    tolerance, growth, p50_ms = ((f"{place}: {key}", written.get(key)) for key in keys)
    name, own = str(entry.get("name", model.stem)), dataclasses.replace(options, **changed)
    return Row(name, model, baseline, own, limits.narrowed(tolerance, growth, p50_ms))


def part(manifest: Manifest, shard: str | None) -> Part:
    """Read which part is meant: `2/3` is the second of three, nothing is the whole. Raises UserError for no part."""
    number, _, count = ("1/1" if shard is None else shard).partition("/")
    if not 1 <= whole(number) <= whole(count):
        raise UserError(f"--shard {shard}: must be as 1/3, from 1/3 to 3/3")
    return Part(whole(number), whole(count), manifest.digest)


def run(manifest: Manifest, mine: Part, say: Callable[[str], None]) -> list[Report]:
    """Gate the rows of a part (every nth) one by one; what is slower is measured again."""
    begun, reports = time.monotonic(), []
    rows = manifest.rows[mine.number - 1 :: mine.count]
    family = sum(row.comparisons for row in manifest.rows)
    for number, row in enumerate(rows, start=1):
        if manifest.limit_s is not None and time.monotonic() - begun >= manifest.limit_s:
            why = f"not reached within the time limit of {manifest.limit_s:g} s"
            opened = row.limits.opened(row.name, "unread", "inconclusive", reasons=(why,), family=family)
            reports.append(unread(opened, row.options))
            continue
        reports.append(_gated(row, family))
        say(f"{number}/{len(rows)} {row.name}: {reports[-1].gates[0].verdict}")
    return corrected_for_family(reports)


def _gated(row: Row, family: int) -> Report:
    """Gate one row, whatever comes of it; a file that is broken leaves the other rows alone."""
    try:
        report = outcome(row.model, row.baseline, row.options, row.limits, name=row.name)
        if _slower(report.gates[0]):
            report = _confirmed(row, report.gates[0], family)
    except UserError as error:
        opened = row.limits.opened(row.name, "unread", "not measured", reasons=(str(error),))
        report = unread(opened, row.options)
    report = dataclasses.replace(report, gates=(dataclasses.replace(report.gates[0], family=family),))
    return accept(report, row.limits.accepted)


def _slower(gate: Gate) -> bool:
    return gate.mode == "duet" and any(case is not None and case.verdict == "fail" for case in gate.cases)


def _confirmed(row: Row, before: Gate, family: int) -> Report:
    """Measure a row again that was slower, until it is sure beyond the whole family; this measurement counts."""
    timing = dataclasses.replace(row.options.timing, seed=row.options.timing.seed + 1)
    options = dataclasses.replace(row.options, timing=timing)
    limits = dataclasses.replace(row.limits, rule=dataclasses.replace(row.limits.rule, alpha=ALPHA / family))
    again = outcome(row.model, row.baseline, options, limits, name=row.name)
    slowest = max(case.slowdown for case in before.cases if case is not None)
    gate = conclude(again, dataclasses.replace(again.gates[0], first=slowest))
    return dataclasses.replace(again, gates=(gate,))


def corrected_for_family(reports: Sequence[Report]) -> list[Report]:
    """Fail what Holm's procedure over the comparisons of all rows rejects; of shards, once they are merged.

    Only second measurements can be: a comparison that was not measured again counts as a p-value of one. Each p-value
    has been looked at several times on its way, for which it pays.
    """
    flagged = [
        (number, index, len(LOOKS) * judgement.p_value)
        for number, report in enumerate(reports)
        for gate in report.gates
        if gate.first is not None
        for index, judgement in enumerate(gate.cases)
        if judgement is not None and judgement.slowdown > 1 + gate.tolerance
    ]
    family = max((gate.family for report in reports for gate in report.gates), default=1)
    p_values = [min(1.0, p) for _, _, p in flagged] + [1.0] * (family - len(flagged))
    rejected = {
        (number, index) for (number, index, _), is_rejected in zip(flagged, holm(p_values), strict=False) if is_rejected
    }
    corrected = []
    for number, report in enumerate(reports):
        gates = []
        for gate in report.gates:
            changed = dataclasses.replace(
                gate, rejected=tuple((number, index) in rejected for index in range(len(gate.cases)))
            )
            gates.append(dataclasses.replace(changed, verdict=verdict_of(changed)))
        corrected.append(dataclasses.replace(report, gates=tuple(gates)))
    return corrected


def _judged_again(path: Path, stored: Report) -> Report:
    """Draw a shard's verdicts again from what it measured.

    Raises:
        UserError: it is judged by another rule than that of the gate.
    """
    for gate in stored.gates:
        if gate.looks != LOOKS or gate.alpha not in (ALPHA, ALPHA / max(1, gate.family)):
            raise UserError(f"--merge {path}: {gate.name} is judged by another rule than that of this gate")
    return rejudge(stored)


def merged(paths: Sequence[Path]) -> list[Report]:
    """Join the shards of one manifest.

    Raises:
        UserError: a shard is missing, given twice, of another manifest, or no shard at all.
    """
    reports: list[Report] = []
    parts: dict[int, Path] = {}
    first: Part | None = None
    for path in paths:
        stored, mine = load_part(path)
        if mine is None:
            raise UserError(f"--merge {path}: is no part of a manifest; it was not written by --manifest with --shard")
        first = first or mine
        if (mine.manifest, mine.count) != (first.manifest, first.count):
            raise UserError(f"--merge {path}: is of another manifest, or of another number of shards, than {paths[0]}")
        if mine.number in parts:
            raise UserError(f"--merge {path}: is shard {mine.number}/{mine.count}, and so is {parts[mine.number]}")
        parts[mine.number] = path
        reports += [_judged_again(path, report) for report in stored]
    assert first is not None
    missing = [f"{number}/{first.count}" for number in range(1, first.count + 1) if number not in parts]
    if missing:
        raise UserError(f"--merge: shards {', '.join(missing)} are missing: give the JSON of every shard")
    return corrected_for_family(reports)
