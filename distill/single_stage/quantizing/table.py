"""What was tried and measured, for people, on a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from distill.benchmarks import Report, units
from distill.benchmarks.records import Model, Row
from distill.quantize.choose import Candidate, Choice

_WIDE = 100  # columns of a terminal from which on an interval stands beside its value, and not below it


def render(choice: Choice, report: Report | None, width: int = 120) -> RenderableType:
    """Lay out the candidates, the sensitivity of layers where it was measured, and the remarks."""
    measured = _measured(report)
    between = " " if width >= _WIDE else "\n"
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("precision", overflow="fold")
    sizes = [case.batch for case in report.cases] if report is not None else []
    for column in ("drop", "size", *(["batch"] if len(sizes) > 1 else []), "p50", "speed-up", "integer", ""):
        table.add_column(column, justify="right", no_wrap=True)
    for one in choice.candidates:
        rows, model = measured.get(one.name, ((), None))
        mark = "ships" if one is choice.chosen else "" if one.within else "over budget"
        mark = "no answers" if one.loss.fault else mark
        table.add_row(*map(Text, (units.line(one.name), *_cells(one, rows, model, sizes, between), mark)))
    parts: list[RenderableType] = [table]
    if choice.judged:
        parts.append(Text(units.line(choice.judged), style="dim"))
    if choice.sensitivity:
        parts.append(_sensitivity(choice))
    remarks = [*choice.warnings]
    if report is not None:
        remarks += [*report.warnings, *(text for case in report.cases for text in case.warnings)]
        # Those on the float file hold whatever ships: it is what the others are made from.
        for one in (choice.candidates[0], choice.chosen):
            remarks += measured[one.name][1].warnings if one.name in measured else ()
    else:
        within = any(one.within for one in choice.candidates[1:])
        remarks.append(f"nothing was timed: {'the target is not at hand' if within else 'nothing keeps the budget'}")
    if choice.chosen.record is not None:
        remarks += choice.chosen.record.warnings
    parts += [Text(f"warning: {units.line(text)}", style="yellow") for text in dict.fromkeys(remarks)]
    return Group(*parts)


def _measured(report: Report | None) -> dict[str, tuple[Sequence[Row], Model]]:
    """Find each timed candidate's rows and file in the report, which calls the files as the candidates are called."""
    if report is None:
        return {}
    by_file = zip(*(case.rows for case in report.cases), strict=True)
    return {model.facts.name: (rows, model) for model, rows in zip(report.models, by_file, strict=True)}


def _cells(one: Candidate, rows: Sequence[Row], model: Model | None, sizes: Sequence[int], between: str) -> list[str]:
    """Lay out one candidate; of several batch sizes each has a line, on a narrow terminal without the intervals."""
    speeds = []
    for row in rows:
        speeds.append(units.DASH)
        if row.ratio is not None and one.record is not None:
            interval = f"{between}[{1 / row.ratio.high:.2f}, {1 / row.ratio.low:.2f}]"
            speeds[-1] = f"{1 / row.ratio.value:.2f}×{interval if len(sizes) == 1 or between == ' ' else ''}"
    return [
        _drop(one, between) if one.record is not None else "baseline",
        units.size(one.file_bytes),
        *(["\n".join(map(str, sizes))] if len(sizes) > 1 else []),
        "\n".join(units.duration(row.p50_s) for row in rows) or units.DASH,
        "\n".join(speeds) or units.DASH,
        units.DASH if model is None or not model.compute_nodes else units.share(model.integer_share),
    ]


def _drop(one: Candidate, between: str) -> str:
    text, interval = units.points(one.loss.drop, unit=False), one.loss.interval
    if text == units.DASH:
        return text
    bounds = [] if interval is None else [units.points(bound, unit=False) for bound in (interval.low, interval.high)]
    return f"{text} pts" + (f"{between}[{', '.join(bounds)}]" if bounds else "")


def kept_float(choice: Choice) -> set[str]:
    """Name the outputs of the layers that stay float in the static int8 candidate."""
    models = [one.model for one in choice.candidates]
    return {name for tried in choice.attempts if any(tried.model is one for one in models) for name in tried.floats}


def _sensitivity(choice: Choice) -> Table:
    """Lay out the layers that cost most, worst first, and which of them stayed float."""
    floats = kept_float(choice)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), title="layers alone in int8")
    table.title_justify = "left"
    for column in ("layer", "operator", "divergence", "saves", ""):
        table.add_column(column, justify="left" if column in ("layer", "operator") else "right")
    worst = sorted(choice.sensitivity, key=lambda one: one.price, reverse=True)
    for layer in worst[:10]:
        stays = "stays float" if layer.output in floats else ""
        saves = units.duration(layer.saved_s)
        cells = (units.line(layer.output), units.line(layer.operator), f"{layer.divergence:.2g}", saves, stays)
        table.add_row(*map(Text, cells))
    return table
