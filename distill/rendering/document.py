"""A report as plain data, whatever it is of: sections of tables, notes, code and charts. It holds no markup.

Every text may come from a stranger; each renderer escapes it for its medium.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

Style = Literal["", "strong", "good", "warn", "bad", "faint"]


@dataclass(frozen=True)
class Cell:
    """A cell of a table: a `badge` is coloured by its text, a `stage` bears its dot; ``bar`` is a length in percent."""

    text: str
    kind: Literal["", "badge", "stage"] = ""
    bar: float | None = None


@dataclass(frozen=True)
class Table:
    """Rows of cells below a head; a line break in a head is for terminals alone.

    Args:
        head: title of each column; none is shown where all are empty.
        rows: the cells.
        numbers: how many of the last columns are aligned right; all but the first where None.
        title: stands above the table.
        caption: says how to read it; pages alone show it.
        styles: a row's: `off` is faint, `shipped` stands out; none where empty.
        spare: columns that a narrow terminal leaves out.
        second: the column with which a second table begins where a terminal is too narrow for one.
        pinned: how many columns that second table has of the first.
        wide: whether it takes the whole width beside others.
    """

    head: Sequence[str]
    rows: Sequence[Sequence[str | Cell]]
    numbers: int | None = None
    title: str = ""
    caption: str = ""
    styles: Sequence[str] = ()
    spare: Sequence[int] = ()
    second: int | None = None
    pinned: int = 1
    wide: bool = False

    @property
    def columns(self) -> tuple[tuple[str, bool], ...]:
        """Return (title, whether it is aligned right) of every column."""
        first = len(self.head) - self.numbers if self.numbers is not None else 1
        return tuple((title, place >= first) for place, title in enumerate(self.head))


@dataclass(frozen=True)
class Note:
    """A sentence, with what it is about in front."""

    text: str
    label: str = ""
    style: Style = ""


@dataclass(frozen=True)
class Notes:
    """A list of notes, or of warnings."""

    notes: Sequence[Note]
    warnings: bool = False


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str
    style: Style = ""


@dataclass(frozen=True)
class Code:
    """Text to copy."""

    text: str
    language: str


@dataclass(frozen=True)
class Verdict:
    """What was decided, and why."""

    text: str
    style: Style
    reasons: Sequence[str] = ()


@dataclass(frozen=True)
class Card:
    """One figure that matters, and what it is measured against; ``missing`` where there is none."""

    title: str
    value: str
    notes: Sequence[str] = ()
    missing: bool = False


@dataclass(frozen=True)
class Cards:
    """The figures that matter most, for pages in colour: every one of them stands in a table too."""

    cards: Sequence[Card]


@dataclass(frozen=True)
class Chart:
    """One figure: what plotly draws, with CSS variables for colours, or an SVG; ``key`` is its element's id."""

    key: str
    title: str
    caption: str
    height: int = 0
    data: Sequence[Mapping[str, Any]] = ()
    layout: Mapping[str, Any] = field(default_factory=dict)
    wide: bool = False
    svg: str = ""


@dataclass(frozen=True)
class Charts:
    """Figures side by side, for what can draw: every number in them stands in a table."""

    charts: Sequence[Chart]


@dataclass(frozen=True)
class Links:
    """Files of the folder that the report lies in: (what it is, path inside the folder)."""

    folder: str
    links: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Details:
    """Blocks that a page folds away below a line: a stage's name and status, a remark, and at its end an aside."""

    title: str
    blocks: Sequence[Block]
    badges: Sequence[str] = ()
    remark: str = ""
    aside: str = ""
    open: bool = False


Block: TypeAlias = Table | Notes | Text | Code | Verdict | Cards | Charts | Links | Details


@dataclass(frozen=True)
class Section:
    """Blocks below a title; ``medium`` is where they are shown: on pages (Markdown and HTML), a terminal, or both."""

    title: str
    blocks: Sequence[Block]
    medium: Literal["pages", "terminal", "both"] = "pages"

    @property
    def key(self) -> str:
        """Return the id of its element."""
        return "-".join(self.title.lower().split())


@dataclass(frozen=True)
class Document:
    """A report: what it is of and of which kind, the result in parts of one line, and the sections.

    ``alert`` is said before all else. A terminal frames the result in the colour of ``mood``, if it has one.
    """

    name: str
    kind: str
    headline: Sequence[Note]
    sections: Sequence[Section]
    alert: str = ""
    mood: Style = ""
    footer: str = ""

    @property
    def result(self) -> str:
        """Return the alert and the headline as one line."""
        return " · ".join(text for text in (self.alert, *(note.text for note in self.headline)) if text)

    @property
    def charts(self) -> tuple[Chart, ...]:
        """Return the charts that plotly draws."""
        blocks = (block for section in self.sections for block in section.blocks)
        return tuple(chart for block in blocks if isinstance(block, Charts) for chart in block.charts if chart.data)


def pairs(rows: Sequence[tuple[str, str]], title: str = "") -> Table:
    """Return a table of names and values, without a head."""
    return Table(("", ""), rows, numbers=0, title=title)


def text_of(cell: str | Cell) -> str:
    """Return what a cell says."""
    return cell.text if isinstance(cell, Cell) else cell
