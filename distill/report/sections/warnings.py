"""The warnings of the run and of its stages."""

from __future__ import annotations

from distill.rendering.document import Note, Notes, Section
from distill.report.facts import every_warning
from distill.runtime.records import RunResult


def warnings(result: RunResult) -> Section | None:
    """List every warning once, with the stage that it is of."""
    notes = [Note(warning, label=stage and f"{stage}:") for stage, warning in every_warning(result)]
    return Section("Warnings", [Notes(notes, warnings=True)], "both") if notes else None
