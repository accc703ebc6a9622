"""A document as one HTML file that opens without a network; plotly.js is in it once where plotly draws."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill import clean
from distill.documents import plain
from distill.rendering.document import Cell, Document

if TYPE_CHECKING:
    import jinja2


def html(document: Document) -> str:
    """Return the document as HTML: about 5 MB with plotly.js, some KB without a chart that it draws."""
    figures = [{"id": chart.key, "data": chart.data, "layout": chart.layout} for chart in document.charts]
    page = _environment().get_template("page.html.j2")
    return page.render(document=document, figures=plain(figures), plotly=_plotly() if figures else "") + "\n"


@cache
def _environment() -> jinja2.Environment:
    import jinja2
    from markupsafe import Markup

    def finalize(value: Any) -> Any:
        """Let no control character, bidi override or lone surrogate of a user's text into the page."""
        return clean.text(value) if isinstance(value, str) and not isinstance(value, Markup) else value

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=finalize,
    )
    environment.filters |= {"drawn": Markup, "kind": lambda block: type(block).__name__, "cell": _as_cell}
    return environment


def _as_cell(cell: str | Cell) -> Cell:
    return Cell(cell) if isinstance(cell, str) else cell


def _plotly() -> str:
    """Return plotly.js; the charts need it and a report must not fetch it."""
    from plotly.offline import get_plotlyjs  # slow to import, and only a report with charts needs it

    return str(get_plotlyjs())
