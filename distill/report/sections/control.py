"""What distillation itself bought: the student beside one that learnt from labels alone."""

from __future__ import annotations

from distill.benchmarks import units
from distill.rendering.document import Block, Section, Table, Text
from distill.report.facts import find, quality_of, text
from distill.runtime.records import RunResult, StageRecord

_OFF = "The control was off: this run does not show what distillation itself bought."
_NO_STUDENT = "The student was off: nothing was distilled."
_NO_INTERVAL = (
    "The student learnt from the teacher, the control from the labels alone for as many steps. "
    "They stand side by side; no paired interval of their difference is recorded."
)


def control(result: RunResult) -> Section | None:
    """Compare student and control; None where the run has neither."""
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
    if rows:
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
