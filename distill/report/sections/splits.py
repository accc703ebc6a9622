"""The splits of the data, and whether they are apart."""

from __future__ import annotations

from distill.benchmarks import units
from distill.rendering.document import Block, Note, Notes, Section, Table, Text
from distill.report.facts import every_warning, text
from distill.runtime.records import RunResult

_HYGIENE = (
    "Train, validation and test are apart. Every choice (epoch, ratio, trial, keep or revert) is made on validation; "
    "test is read once, at the end."
)


def splits(result: RunResult) -> Section | None:
    """Show the samples of every split that a stage was judged on, or that the teacher recorded."""
    rows = []
    for stage in result.stages:
        rows += [(stage.name, text(split), units.plain(n)) for split, n in (stage.detail.splits or {}).items()]
        judged = [quality for quality in (stage.validation, stage.test) if quality is not None]
        rows += [(stage.name, quality.split, units.plain(quality.samples)) for quality in judged]
    if not rows:
        return None
    blocks: list[Block] = [Text(_HYGIENE)]
    leaks = [Note(warning) for _, warning in every_warning(result) if "leak" in warning.lower()]
    if leaks:
        blocks.append(Notes(leaks, warnings=True))
    return Section("Splits and hygiene", [*blocks, Table(("stage", "split", "samples"), rows, numbers=1)])
