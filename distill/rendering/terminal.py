"""A document for people at a terminal, whatever its width."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePath

from rich import box, table
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.measure import Measurement
from rich.panel import Panel
from rich.text import Text as Line

from distill.clean import line
from distill.rendering.document import Block, Cell, Document, Links, Note, Notes, Style, Table, Text, Verdict, text_of

STYLES: dict[Style, str] = {
    "": "",
    "strong": "bold",
    "good": "bold green",
    "warn": "bold yellow",
    "bad": "bold red",
    "faint": "dim",
}
_BADGES = {"done": "green", "reverted": "yellow", "unmeasured": "yellow", "off": "dim"}
_ROWS = {"off": "dim"}


@dataclass(frozen=True)
class Terminal:
    """A rich renderable that fits itself to the console's width when it is printed."""

    blocks: Sequence[Block]
    document: Document | None = None

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield the framed result, if there is one, and the blocks."""
        if self.document is not None and self.document.mood:
            yield _panel(self.document)
            yield Line()
        for block in self.blocks:
            if isinstance(block, Table):
                yield from _fitted(block, console, options)
            else:
                yield from _lines(block)


def render(document: Document) -> Terminal:
    """Return what a terminal shows of a document: the sections that are for it, without their titles."""
    sections = (section for section in document.sections if section.medium != "pages")
    return Terminal([block for section in sections for block in section.blocks], document)


def _panel(document: Document) -> Panel:
    result = Line()
    for note in (Note(document.alert, style="bad"), *document.headline):
        if note.text:
            result.append(" · " if result else "", "dim").append(note.text, STYLES[note.style])
    border = STYLES[document.mood].removeprefix("bold ")
    return Panel(result, title=Line(line(document.name), "bold"), title_align="left", border_style=border)


def _lines(block: Block) -> Iterator[RenderableType]:
    if isinstance(block, Notes):
        for note in block.notes:
            sign = ("warning: ", "yellow") if block.warnings else ""
            label = f"{line(note.label)} " if note.label else ""
            yield Line.assemble(sign, (label, "bold"), (line(note.text), STYLES[note.style]))
        if not block.warnings:
            yield Line()
    elif isinstance(block, Text):
        yield Line(line(block.text), STYLES[block.style])
    elif isinstance(block, Verdict):
        yield Line(line(block.text), STYLES[block.style])
        yield from (Line(f"  {line(reason)}") for reason in block.reasons)
    elif isinstance(block, Links):
        grid = table.Table.grid(padding=(0, 2))
        grid.add_column(style="dim")
        grid.add_column(overflow="fold")
        for name, path in block.links:
            grid.add_row(name, Line(line(PurePath(block.folder, path))))
        yield grid
    else:
        raise TypeError(f"a terminal does not show {type(block).__name__}")


def _fitted(block: Table, console: Console, options: ConsoleOptions) -> RenderResult:
    """Yield a table that fits: columns closer together, without the spare ones, intervals below, or in two tables."""
    every = range(len(block.head))
    necessary = [place for place in every if place not in block.spare]

    def fitting(*layouts: table.Table) -> table.Table | None:
        wide = options.update(width=1000)
        return next((one for one in layouts if Measurement.get(console, wide, one).maximum <= options.max_width), None)

    whole = fitting(_table(block, every, 2), _table(block, every, 1), _table(block, necessary, 1))
    parts: list[Sequence[int]] = [necessary]
    if block.second is not None:
        parts = [range(block.second), (*range(block.pinned), *every[block.second :])]
    for columns in parts if whole is None else ():
        narrow = _table(block, columns, 1, below=True)
        yield fitting(_table(block, columns, 2), _table(block, columns, 1)) or narrow
        yield Line()
    if whole is not None:
        yield whole
        yield Line()


def _table(block: Table, columns: Sequence[int], gap: int, *, below: bool = False) -> table.Table:
    """Lay a table out; text is folded where the terminal is narrow, a number is read whole."""
    layout = table.Table(box=box.SIMPLE_HEAD, padding=(0, gap - 1, 0, 0), show_edge=False, header_style="bold")
    layout.title, layout.title_justify = (Line(line(block.title)) if block.title else None), "left"
    for place in columns:
        title, number = block.columns[place]
        layout.add_column(
            Line("\n".join(map(line, title.split("\n")))),
            justify="right" if number else "left",
            overflow="fold",
            no_wrap=number,
        )
    for place, row in enumerate(block.rows):
        style = _ROWS.get(block.styles[place], "") if block.styles else ""
        layout.add_row(*(_cell(row[column], below=below) for column in columns), style=style)
    return layout


def _cell(cell: str | Cell, *, below: bool) -> Line:
    """Dim an interval, so that the value is read first; ``below`` puts it on a line of its own."""
    if isinstance(cell, Cell) and cell.kind:
        return Line(line(cell.text), "bold" if cell.kind == "stage" else _BADGES.get(cell.text, ""))
    value, bracket, bounds = line(text_of(cell)).partition(" [")
    return Line(value).append(("\n" + bracket[1:] if below else bracket) + bounds, "dim")
