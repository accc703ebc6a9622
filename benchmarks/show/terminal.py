"""A report for people, on a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from distill.benchmarks import units
from distill.benchmarks.records import Case, Model, Report, Row
from distill.benchmarks.verdict.outcomes import details, headline

_COLOURS = {
    "pass": "green",
    "improved": "green",
    "fail": "red",
    "inconclusive": "yellow",
    "incomparable": "yellow",
    "not measured": "red",
}


def render(report: Report, width: int = 120) -> RenderableType:
    """Lay out what was measured: the files, a table of latencies for every case, the verdicts, the remarks.

    On a terminal of less than 100 columns the least telling ones are left out.
    """
    parts: list[RenderableType] = [_where(report), files(report)]
    parts += [latencies(report, case, narrow=width < 100) for case in report.cases]
    for gate in report.gates:
        parts.append(Text(units.line(headline(gate)), style=f"bold {_COLOURS[gate.verdict]}"))
        parts += [Text(f"  {units.line(text)}") for text in details(gate)]
    remarks = [*report.warnings]
    for model in report.models:
        remarks += model.warnings
    for case in report.cases:
        remarks += [f"batch {case.batch}, {case.threads} thread(s): {text}" for text in case.warnings]
    parts += [Text(f"warning: {units.line(text)}", style="yellow") for text in dict.fromkeys(remarks)]
    return Group(*parts)


def _where(report: Report) -> Text:
    """Say on what was measured."""
    machine, provider = report.machine, report.target["provider"]
    versions = machine["versions"]
    board = f", measured by `{units.line(report.target['measure'])}`" if report.target.get("measure") else ""
    return Text(
        f"{units.line(machine['cpu'])}, {machine['threads']['usable']} usable thread(s), {provider}, "
        f"onnxruntime {versions.get('onnxruntime')}{board}"
    )


FILE_COLUMNS = ("model", "size", "parameters", "MACs", "load", "memory", "int8", "nodes")
"""`memory` is what opening and one call took, `int8` the share of integer kernels among the compute nodes."""


def files(report: Report) -> Table:
    """Lay out what the files are."""
    table = _table(FILE_COLUMNS)
    for model in report.models:
        table.add_row(*map(Text, file_cells(model)))
    return table


def file_cells(model: Model) -> list[str]:
    """Write what a file is, a cell a column."""
    facts = model.facts
    return [
        units.line(facts.name),
        units.size(facts.bytes or None),
        units.count(facts.parameters or None),
        units.count(facts.macs),
        units.duration(model.load_s or None),
        units.size(model.peak_bytes),
        units.share(model.integer_share) if model.compute_nodes else units.DASH,
        nodes(model),
    ]


def nodes(model: Model) -> str:
    """Count the executed nodes by provider: `23 CPU`, or `40 CUDA + 2 CPU`."""
    counts: dict[str, int] = {}
    for key, count in model.nodes.items():
        name = key.partition("/")[0].removesuffix("ExecutionProvider")
        counts[name] = counts.get(name, 0) + count
    return " + ".join(f"{count} {name}" for name, count in sorted(counts.items(), key=lambda one: -one[1]))


COLUMNS = ("p50", "p90", "p99", "quiet", "calls", "speed-up", "quiet")
"""The last two say how much faster a file is than the first: above 1 is faster."""
_NARROW = (0, 1, 2, 3, 5)


def latencies(report: Report, case: Case, *, narrow: bool = False) -> Table:
    """Lay out one case's latencies."""
    kept = _NARROW if narrow else range(len(COLUMNS))
    table = _table(("model", *(COLUMNS[column] for column in kept)))
    table.title = f"batch {case.batch}, {case.threads} thread(s), {len(case.pairs)} session pairs"
    for arm, row in zip(case.arms, case.rows, strict=True):
        cells = row_cells(row)
        table.add_row(*map(Text, (units.line(report.models[arm].facts.name), *(cells[column] for column in kept))))
    return table


def _table(columns: Sequence[str]) -> Table:
    """Make a table whose first column alone is folded where the terminal is narrow: a number is read whole."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), title_justify="left")
    table.add_column(columns[0], overflow="fold")
    for column in columns[1:]:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def row_cells(row: Row) -> list[str]:
    """Write one file's latency, a cell a column; `~` marks a difference that is noise."""
    faster, quiet = "baseline", units.DASH
    if row.ratio is not None:
        faster = units.faster(row.ratio) + (" ~" if units.undecided(row.ratio) else "")
        quiet = units.DASH if row.quiet_ratio is None else f"{units.finely(1 / row.quiet_ratio)}×"
    return [
        units.duration(row.p50_s) + (f" ({units.duration(row.end_to_end_s)} with copies)" if row.end_to_end_s else ""),
        units.duration(row.p90_s),
        units.duration(row.p99_s),
        units.duration(row.quiet_s),
        units.count(row.samples),
        faster,
        quiet,
    ]
