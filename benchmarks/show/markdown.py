"""A report as Markdown, for the summary of a CI step."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from distill.benchmarks.records import Report
from distill.benchmarks.show.terminal import COLUMNS, FILE_COLUMNS, file_cells, row_cells
from distill.benchmarks.verdict.outcomes import details, headline
from distill.clean import markdown as _text


def summary(report: Report) -> str:
    """Write the verdicts first, then the tables, then the remarks."""
    lines: list[str] = []
    for gate in report.gates:
        lines += [f"### {_text(headline(gate))}", "", *(f"- {_text(one)}" for one in details(gate)), ""]
    for case in report.cases:
        lines += [f"**batch {case.batch}, {case.threads} thread(s), {len(case.pairs)} session pairs**", ""]
        rows = [[report.models[arm].facts.name, *row_cells(row)] for arm, row in zip(case.arms, case.rows, strict=True)]
        lines += [*_table(("model", *COLUMNS), rows), ""]
    lines += [*_table(FILE_COLUMNS, [file_cells(model) for model in report.models]), ""]
    remarks = [*report.warnings, *(text for model in report.models for text in model.warnings)]
    remarks += [text for case in report.cases for text in case.warnings]
    lines += [f"- warning: {_text(one)}" for one in dict.fromkeys(remarks)]
    machine = report.machine
    lines += [
        "",
        _text(
            f"{machine['cpu']}, {machine['threads']['usable']} usable thread(s), {machine['system']} "
            f"{machine['kernel']}, {report.target['provider']}, onnxruntime {machine['versions'].get('onnxruntime')}, "
            f"{report.at}"
        ),
        "",
    ]
    return "\n".join(lines)


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = ["| " + " | ".join(columns) + " |", "|---" + "|---:" * (len(columns) - 1) + "|"]
    return lines + ["| " + " | ".join(_text(cell) for cell in row) + " |" for row in rows]
