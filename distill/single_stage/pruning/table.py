"""What was cut and what it bought, for people, on a terminal of 80 columns."""

from __future__ import annotations

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from distill.benchmarks import units
from distill.single_stage.pruning import facts
from distill.single_stage.pruning.outcome import Outcome

_MOST = 15
_NAME = 34  # columns of a layer's name


def render(outcome: Outcome) -> RenderableType:
    """Lay out the layers that changed most, the figures, and the warnings."""
    parts: list[RenderableType] = []
    cut = facts.changed(outcome)
    if cut:
        parts.append(_layers(cut))
    if len(cut) > _MOST:
        parts.append(
            Text(f"and {len(cut) - _MOST} more layers, of {len(outcome.record.widths)}; all are in the report")
        )
    if outcome.record.blocks:
        parts.append(Text(f"whole blocks gone: {units.line(', '.join(outcome.record.blocks))}"))
    parts += [_figures(outcome), Text(facts.measured_on(outcome), style="dim")]
    parts.append(Text(f"importance: {outcome.record.importance}", style="dim"))
    if outcome.quality is not None and outcome.quality.judged:
        parts.append(Text(units.line(outcome.quality.judged), style="dim"))
    parts += [Text(f"warning: {units.line(text)}", style="yellow") for text in dict.fromkeys(outcome.warnings)]
    return Group(*parts)


def _layers(cut: list[facts.Layer]) -> Table:
    timed = any(one.before_s is not None for one in cut)
    heads = ("before", "after", "left", *(("alone, before", "after") if timed else ()))
    table = _table(("layer, output channels", *heads))
    for one in cut[:_MOST]:
        table.add_row(*map(Text, (_short(one.name), *one.cells[: len(heads)])))
    return table


def _figures(outcome: Outcome) -> Table:
    table = _table(("", "before", "after", ""))
    for row in facts.summary(outcome):
        table.add_row(*map(Text, row))
    return table


def _table(columns: tuple[str, ...]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column(columns[0], overflow="fold")
    for column in columns[1:]:
        table.add_column(column, justify="right", no_wrap=True)
    return table


def _short(name: str) -> str:
    """Leave out the middle of a long name: its ends tell layers apart."""
    text, half = units.line(name), (_NAME - 1) // 2
    return text if len(text) <= _NAME else f"{text[:half]}…{text[-half:]}"
