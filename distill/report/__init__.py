"""The report of a run: `document` lays a `RunResult` out, and `distill.rendering` writes it for each medium.

All but `write_reports` are pure: equal results give equal text, and a number that is in no record is in no report.
"""

from __future__ import annotations

from pathlib import Path

from distill import files
from distill.benchmarks.units import DASH
from distill.errors import UserError
from distill.rendering import html as pages
from distill.rendering import markdown as texts
from distill.rendering import terminal
from distill.rendering.document import Document
from distill.report import summary
from distill.report.facts import text
from distill.report.sections import SECTIONS
from distill.runtime.records import RunResult

__all__ = ["document", "headline", "html", "markdown", "render", "write_reports"]
_NOT_DEPLOYABLE = "NOT DEPLOYABLE (a smoke run, or nothing was exported)"


def document(result: RunResult) -> Document:
    """Lay the report of a run out."""
    sections = (section(result) for section in SECTIONS)
    return Document(
        name=text(result.task) or "run",
        kind="compression report",
        headline=summary.headline(result),
        sections=[section for section in sections if section is not None],
        alert="" if result.deployable else _NOT_DEPLOYABLE,
        mood=summary.mood(result),
        footer=f"Every number here stands in run.json; {DASH} means that it was not run, not measured or not recorded.",
    )


def headline(result: RunResult) -> str:
    """Say in one line what shipped, how much faster and smaller it is, what it lost, and on which target."""
    return document(result).result


def html(result: RunResult) -> str:
    """Return the report as one HTML file of about 5 MB (plotly.js), or of some KB when the run has nothing to draw."""
    return pages.html(document(result))


def markdown(result: RunResult) -> str:
    """Return the report as Markdown text that ends with a newline; text from the user is escaped."""
    return texts.markdown(document(result))


def render(result: RunResult) -> terminal.Terminal:
    """Return the report as a rich renderable: one table where it fits (120 columns), else two (80 columns)."""
    return terminal.render(document(result))


def write_reports(result: RunResult, folder: str | Path) -> tuple[Path, Path]:
    """Write ``report.md`` and ``report.html`` into ``folder``, each whole or not at all; return their paths.

    Raises:
        UserError: the folder cannot be written, or the disk is full; what was there before is still there.
    """
    place = Path(folder)
    return _write(place / "report.md", markdown(result)), _write(place / "report.html", html(result))


def _write(path: Path, content: str) -> Path:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # A link of this name is replaced, not followed: what lies behind it is none of the folder's.
        files.write_whole(path, content.encode("utf-8", "replace"), follow=False)
    except OSError as error:
        raise UserError(
            f"{path} cannot be written ({error.strerror or error}); free some space, move away what lies there, or "
            "choose a folder that you may write to"
        ) from error
    return path
