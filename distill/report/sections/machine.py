"""The machine that ran, its versions, and the target."""

from __future__ import annotations

from distill.rendering.document import Section, pairs
from distill.report.facts import flatten
from distill.runtime.records import RunResult


def machine(result: RunResult) -> Section | None:
    """Show what is recorded of both."""
    tables = [pairs(list(flatten(facts)), title) for title, facts in _parts(result) if facts]
    return Section("Machine and versions", tables) if tables else None


def _parts(result: RunResult) -> tuple[tuple[str, object], ...]:
    return ("Machine", result.machine), ("Target", result.target)
