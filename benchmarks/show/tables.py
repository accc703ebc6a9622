"""A report of measurements for people: on a terminal, and as Markdown for the summary of a CI step."""

from __future__ import annotations

from collections import Counter

from distill.benchmarks import units
from distill.benchmarks.records import Case, Model, Report, Row
from distill.benchmarks.verdict.outcomes import details, headline
from distill.benchmarks.verdict.rule import Verdict as Outcome
from distill.rendering.document import Block, Note, Notes, Style, Table, Text, Verdict
from distill.rendering.markdown import blocks, whole
from distill.rendering.terminal import Terminal

FILES = ("model", "size", "parameters", "MACs", "load", "memory", "int8", "nodes")
"""`memory` is what opening and one call took, `int8` the share of integer kernels among the compute nodes."""
LATENCIES = ("model", "p50", "p90", "p99", "quiet", "calls", "speed-up", "quiet")
"""The last two say how much faster a file is than the first: above 1 is faster."""
_SPARE = (5, 7)
_STYLES: dict[Outcome, Style] = {
    "pass": "good",
    "improved": "good",
    "fail": "bad",
    "inconclusive": "warn",
    "incomparable": "warn",
    "not measured": "bad",
}


def render(report: Report) -> Terminal:
    """Lay out where was measured, the files, a table of latencies for every case, the verdicts, the warnings."""
    warnings = Notes([Note(warning) for warning in _warnings(report)], warnings=True)
    latencies = [_latency(report, case) for case in report.cases]
    return Terminal([_place(report), _files(report), *latencies, *_verdicts(report), warnings])


def summary(report: Report) -> str:
    """Write the verdicts first, then the tables, then the warnings, as Markdown."""
    warnings = Notes([Note(warning, label="warning:") for warning in _warnings(report)])
    latencies = [_latency(report, case) for case in report.cases]
    parts: list[Block] = [*_verdicts(report), *latencies, _files(report), warnings, _place(report)]
    return whole(blocks(parts)) + "\n"


def _place(report: Report) -> Text:
    """Say on what was measured, and when."""
    machine, target = report.machine, report.target
    board = f", measured by `{target['measure']}`" if target.get("measure") else ""
    return Text(
        f"{machine['cpu']}, {machine['threads']['usable']} usable thread(s), {machine['system']} {machine['kernel']}, "
        f"{target['provider']}, onnxruntime {machine['versions'].get('onnxruntime')}{board}, {report.at}"
    )


def _verdicts(report: Report) -> list[Verdict]:
    return [Verdict(headline(gate), _STYLES[gate.verdict], details(gate)) for gate in report.gates]


def _warnings(report: Report) -> list[str]:
    warnings = [*report.warnings, *(warning for model in report.models for warning in model.warnings)]
    for case in report.cases:
        warnings += [f"batch {case.batch}, {case.threads} thread(s): {warning}" for warning in case.warnings]
    return list(dict.fromkeys(warnings))


def _files(report: Report) -> Table:
    """Lay out what the files are."""
    rows = [
        (
            model.facts.name,
            units.size(model.facts.bytes or None),
            units.count(model.facts.parameters or None),
            units.count(model.facts.macs),
            units.duration(model.load_s or None),
            units.size(model.peak_bytes),
            units.share(model.integer_share) if model.compute_nodes else units.DASH,
            nodes(model),
        )
        for model in report.models
    ]
    return Table(FILES, rows)


def nodes(model: Model) -> str:
    """Count the executed nodes by provider: `23 CPU`, or `40 CUDA + 2 CPU`."""
    counts: Counter[str] = Counter()
    for key, count in model.nodes.items():
        counts[key.partition("/")[0].removesuffix("ExecutionProvider")] += count
    return " + ".join(f"{count} {name}" for name, count in counts.most_common())


def _latency(report: Report, case: Case) -> Table:
    rows = [(report.models[arm].facts.name, *_cells(row)) for arm, row in zip(case.arms, case.rows, strict=True)]
    title = f"batch {case.batch}, {case.threads} thread(s), {len(case.pairs)} session pairs"
    return Table(LATENCIES, rows, title=title, spare=_SPARE)


def _cells(row: Row) -> list[str]:
    """Write one file's latency, a cell a column; `~` marks a difference that is noise."""
    faster, quiet = "baseline", units.DASH
    if row.ratio is not None:
        faster = units.faster(row.ratio) + (" ~" if units.undecided(row.ratio) else "")
        quiet = units.DASH if row.quiet_ratio is None else f"{units.finely(1 / row.quiet_ratio)}×"
    copies = f" ({units.duration(row.end_to_end_s)} with copies)" if row.end_to_end_s else ""
    return [
        units.duration(row.p50_s) + copies,
        units.duration(row.p90_s),
        units.duration(row.p99_s),
        units.duration(row.quiet_s),
        units.count(row.samples),
        faster,
        quiet,
    ]
