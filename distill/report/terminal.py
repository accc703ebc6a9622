"""The report for a terminal: headline, one row a stage, what was left out and why, warnings, files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePath

from rich import box
from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from distill.benchmarks import units as fmt
from distill.runtime.records import RunResult

from . import facts

_STATUS = {"done": "green", "reverted": "yellow", "unmeasured": "yellow", "off": "dim"}
_VERDICT = {"met": "bold green", "missed": "bold red", "unresolved": "bold yellow"}


@dataclass(frozen=True)
class TerminalReport:
    """A rich renderable that fits itself to the console's width when it is printed."""

    result: RunResult

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield the headline, the table, the notes, the warnings and the files."""
        yield _headline(self.result)
        yield Text()
        rows = facts.rows(self.result)
        if rows:
            yield from _tables(self.result, rows, console, options)
        yield from _notes(self.result, rows)
        yield from _warnings(self.result)
        yield _files(self.result)


def render(result: RunResult) -> TerminalReport:
    """Return the report as a rich renderable: one table where it fits (120 columns), else two (80 columns)."""
    return TerminalReport(result)


def _headline(result: RunResult) -> Panel:
    head, total = facts.headline(result), result.comparison
    style = _VERDICT.get(total.verdict or "", "bold")
    bad = "missed" in (total.verdict, total.latency_verdict)
    words = Text()
    parts = (
        (head.state, "bold red"),
        (head.shipped, "bold"),
        (head.speed, "bold" if total.speedup else "bold yellow"),
        (head.size, "bold"),
        (head.metric, ""),
        (head.verdict, "bold red" if bad else style),
        (head.target, "dim"),
    )
    for part, how in parts:
        if part:
            words.append(" · " if words else "", "dim").append(part, how)
    border = "red" if bad or not result.deployable else "yellow" if total.speedup is None else "green"
    return Panel(words, title=Text(facts.text(result.task) or "run", "bold"), title_align="left", border_style=border)


def _tables(result: RunResult, rows: tuple[facts.Row, ...], console: Console, options: ConsoleOptions) -> RenderResult:
    """Yield the stages in one table, closer together where that helps; in two tables where one does not fit."""
    value = (f"test {facts.text(result.comparison.metric) or 'metric'}", tuple(row.quality for row in rows))
    quality = (
        value,
        ("agree-\nment", tuple(row.agreement for row in rows)),
        ("param-\neters", tuple(row.parameters for row in rows)),
        ("MACs", tuple(row.macs for row in rows)),
        ("file\nsize", tuple(row.size for row in rows)),
    )
    titles = (title.replace(", ", "\n") for title in facts.p50_titles(result))
    speed = tuple((title, tuple(row.p50[place] for row in rows)) for place, title in enumerate(titles))
    speed += (
        ("speed-up\nover teacher", tuple(row.speedup for row in rows)),
        ("integer\nkernels", tuple(row.integer for row in rows)),
    )
    for gap in (2, 1):
        whole = _table(rows, quality + speed, gap)
        if Measurement.get(console, options.update(width=1000), whole).maximum <= options.max_width:
            yield whole
            yield Text()
            return
    for columns in (quality, speed):
        yield _table(rows, columns, 2)
        yield Text()


def _table(rows: tuple[facts.Row, ...], columns: tuple[tuple[str, tuple[str, ...]], ...], gap: int) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, gap - 1, 0, 0), show_edge=False, header_style="bold")
    table.add_column("stage")
    table.add_column("status")
    for title, _ in columns:
        table.add_column(Text(title), justify="right", overflow="fold")
    for place, row in enumerate(rows):
        cells = [_cell(values[place]) for _, values in columns]
        style = "dim" if row.status in ("off", "reverted") else ""
        table.add_row(Text(row.name, "bold"), Text(row.status, _STATUS.get(row.status, "")), *cells, style=style)
    return table


def _cell(text: str) -> Text:
    """Dim the interval, so that the value is read first."""
    value, bracket, rest = text.partition(" [")
    return Text(value).append(bracket + rest, "dim")


def _notes(result: RunResult, rows: tuple[facts.Row, ...]) -> RenderResult:
    for name, why in facts.notes(result):
        yield Text.assemble((f"{name} ", "bold"), (why, "yellow" if not why.startswith("off") else "dim"))
    for sign, meaning in facts.legend(rows):
        yield Text(f"{sign} {meaning}", "dim")
    yield Text()


def _warnings(result: RunResult) -> RenderResult:
    for name, words in facts.warnings(result):
        yield Text.assemble(("warning ", "bold yellow"), (f"{name}: " if name else "", "bold"), words)


def _files(result: RunResult) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    for what, path in facts.files(result):
        table.add_row(what, Text(fmt.line(PurePath(result.folder, path))))
    return table
