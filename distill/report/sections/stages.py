"""The final table, one row a stage, and what distillation itself bought."""

from __future__ import annotations

from collections.abc import Sequence

from distill.benchmarks import units
from distill.benchmarks.units import DASH
from distill.rendering.document import Block, Cell, Note, Notes, Section, Table, Text, text_of
from distill.report.facts import batches, find, integer_share, quality_of, reason, target_name, text, timing
from distill.runtime.records import RunResult, StageRecord

_SIGNS = {
    units.SAME: "the interval of the speed-up holds 1: neither faster nor slower was shown",
    DASH: "not run, not measured or not recorded",
}
_STYLES = {"off": "off", "reverted": "off", "export": "shipped"}
_CAPTION = "Brackets are 95 % intervals. Speed-ups are over the teacher's fp32 ONNX file at the smallest batch."
_OFF = "The control was off: this run does not show what distillation itself bought."
_NO_STUDENT = "The student was off: nothing was distilled."
_NO_INTERVAL = (
    "The student learnt from the teacher, the control from the labels alone for as many steps. "
    "They stand side by side; no paired interval of their difference is recorded."
)


def stages(result: RunResult) -> Section:
    """Show every stage with its quality, size and speed, and why one was left out."""
    if not result.stages:
        return Section("Stages", [Text("No stage is recorded.")])
    table = _table(result)
    cells = [text_of(cell) for row in table.rows for cell in row]
    signs = [sign for sign in _SIGNS if any(cell.endswith(sign) for cell in cells)]
    legend = [Note(f"{sign} {_SIGNS[sign]}", style="faint") for sign in signs]
    return Section("Stages", [table, Notes([*_notes(result), *legend])], "both")


def _table(result: RunResult) -> Table:
    sizes = batches(result)
    p50 = [f"p50,\nbatch {size}" for size in sizes] or ["p50"]
    quality = (
        f"test {text(result.comparison.metric) or 'metric'}",
        "same\nanswers",
        "params",
        "MACs",
        "file\nsize",
    )
    head = ("stage", "status", *quality, *p50, "speed-up\nover teacher", "integer\nkernels")
    rows = [_row(result, stage, sizes) for stage in result.stages]
    styles = [_STYLES.get(stage.name if stage.name == "export" else stage.status, "") for stage in result.stages]
    second: int | None = 2 + len(quality)
    if all(text_of(cell) == DASH for row in rows for cell in row[second:]):  # nothing was timed
        head, rows, second = head[:second], [row[:second] for row in rows], None
    return Table(head, rows, len(head) - 2, caption=_CAPTION, styles=styles, second=second, pinned=2)


def _row(result: RunResult, stage: StageRecord, sizes: Sequence[int]) -> tuple[str | Cell, ...]:
    timings = [timing(stage, size) for size in sizes] or [None]
    first = timings[0]
    speedup = units.speedup(first.speedup) if first else DASH
    p50 = []
    for size, latency in zip(sizes or (None,), timings, strict=True):
        every = [record.p50_s for other in result.stages if (record := timing(other, size))]
        p50.append(Cell(units.duration(latency.p50_s), bar=_bar(latency.p50_s, every)) if latency else Cell(DASH))
    return (
        Cell(text(stage.name), "stage"),
        Cell(text(stage.status), "badge"),
        " ".join(quality_of(stage.test, result.comparison.metric)).strip(),
        units.percent(getattr(stage.test.agreement, "value", None)) if stage.test else DASH,
        units.count(stage.parameters),
        units.count(stage.macs),
        Cell(units.size(stage.file_bytes), bar=_bar(stage.file_bytes, [other.file_bytes for other in result.stages])),
        *p50,
        "baseline" if speedup == DASH and first and stage.name == "teacher" else speedup,
        units.share(integer_share(stage)),
    )


def _bar(value: float | None, column: Sequence[float | None]) -> float:
    """Return how long the bar behind a figure is, in percent of the column's largest."""
    largest = max((units.number(other) or 0.0 for other in column), default=0.0)
    return round(100 * max(0.0, units.number(value) or 0.0) / largest, 1) if largest > 0 else 0.0


def _notes(result: RunResult) -> list[Note]:
    """Say why a stage is not plainly done; stages with one and the same reason share a line."""
    names: dict[str, list[str]] = {}
    unmeasured = text(result.target.get("unmeasured")) or f"not timed on {target_name(result)}"
    for stage in result.stages:
        why = {
            "off": f"off: {reason(stage) or 'not run'}",
            "reverted": f"reverted: {reason(stage) or 'no reason is recorded'}",
            "unmeasured": f"unmeasured: {unmeasured}",
        }.get(stage.status)
        if why:
            names.setdefault(why, []).append(text(stage.name))
    return [Note(why, ", ".join(names[why]), "faint" if why.startswith("off") else "warn") for why in names]


def control(result: RunResult) -> Section | None:
    """Compare the student with one that learnt from the labels alone; None where the run has neither."""
    stages = find(result, "control"), find(result, "student")
    if stages == (None, None):
        return None
    rows = []
    for split in ("test", "validation"):
        qualities = [getattr(stage, split) if stage else None for stage in stages]
        for name in dict.fromkeys(name for quality in qualities if quality for name in quality.metrics):
            cells = (" ".join(quality_of(quality, name)).strip() for quality in qualities)
            rows.append((f"{split} {text(name)}", *cells))
    blocks: list[Block] = [Text(_gain(*stages, result.comparison.metric))]
    if rows and all(stage and stage.status != "off" for stage in stages):
        blocks.append(Table(("", "control", "student"), rows))
    return Section("What distillation bought", blocks)


def _gain(alone: StageRecord | None, student: StageRecord | None, metric: str) -> str:
    """Say what is recorded of both; an interval of the difference only if the run recorded one."""
    if alone is None or alone.status == "off":
        return _OFF
    if student is None or student.status == "off":
        return _NO_STUDENT
    gain = student.detail.gain
    if gain is None or units.number(gain.value) is None:
        return _NO_INTERVAL
    undecided = ": the interval holds zero, so no difference was shown" if gain.low <= 0 <= gain.high else ""
    return (
        f"Distillation changed {text(metric) or 'the metric'} by {units.drop(gain)} against the same student trained "
        f"without a teacher for as many steps{undecided}."
    )
