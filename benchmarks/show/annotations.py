"""A report as the workflow commands that GitHub shows beside a commit."""

from __future__ import annotations

from collections.abc import Sequence

from distill import clean
from distill.benchmarks.records import Report
from distill.benchmarks.verdict.outcomes import details, headline
from distill.benchmarks.verdict.rule import Verdict

_COMMANDS: dict[Verdict, str] = {
    "fail": "error",
    "not measured": "error",
    "incomparable": "warning",
    "inconclusive": "warning",
    "improved": "notice",
}


def workflow_commands(reports: Sequence[Report]) -> list[str]:
    """Write a line a gate that is not plainly passed."""
    lines = []
    for gate in (gate for report in reports for gate in report.gates):
        command = _COMMANDS.get(gate.verdict) or ("warning" if gate.mode == "none" else None)
        if command:
            text = "\n".join([headline(gate), *details(gate)])
            lines.append(f"::{command} title=distill bench::{clean.workflow(text)}")
    return lines
