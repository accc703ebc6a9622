"""From a `RunResult` to text: `render` for a terminal, `markdown`, `html`; `write_reports` puts both files in place.

All but `write_reports` are pure: equal results give equal text, and a number that is in no record is in no report.
"""

from __future__ import annotations

from pathlib import Path

from distill import files
from distill.errors import UserError
from distill.report.html_page import html
from distill.report.markdown_page import markdown
from distill.runtime.records import RunResult

from .facts import headline
from .terminal import render

__all__ = ["headline", "html", "markdown", "render", "write_reports"]


def write_reports(result: RunResult, folder: str | Path) -> tuple[Path, Path]:
    """Write ``report.md`` and ``report.html`` into ``folder``, each whole or not at all; return their paths.

    Raises:
        UserError: the folder cannot be written, or the disk is full; what was there before is still there.

    """
    place = Path(folder)
    texts = {"report.md": markdown(result), "report.html": html(result)}
    return tuple(_write(place / name, text) for name, text in texts.items())  # type: ignore[return-value]


def _write(path: Path, text: str) -> Path:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # A link of this name is replaced, not followed: what lies behind it is none of the folder's.
        with files.replacing(path) as partial:
            partial.write_bytes(text.encode("utf-8", "replace"))
    except OSError as error:
        raise UserError(
            f"folder={path.parent}: {path.name} cannot be written ({error.strerror or error}); "
            "free some space or choose a folder that you may write to"
        ) from error
    return path
