"""A commented configuration with a working example of a user's own teacher, student and data."""

from __future__ import annotations

from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path

from distill.errors import UserError


def write_example(folder: str | Path) -> list[Path]:
    """Write the example into a new or empty folder and return the files, in order of name.

    Raises:
        UserError: the folder holds something already, is a file, or cannot be written.
    """
    place = Path(folder)
    try:
        if place.exists() and not place.is_dir():
            raise UserError(f"init {place}: is a file; name a new folder")
        held = sorted(one.name for one in place.iterdir()) if place.is_dir() else []
        if held:
            shown = ", ".join(held[:3]) + (", …" if len(held) > 3 else "")
            raise UserError(f"init {place}: the folder is not empty ({shown}); name a new one, such as {_free(place)}")
        place.mkdir(parents=True, exist_ok=True)
        return [_copy(entry, place) for entry in _files()]
    except OSError as error:
        raise UserError(
            f"init {place}: cannot be written ({error.strerror or error}); name a folder that you may write to"
        ) from error


def _files() -> list[Traversable]:
    entries = resources.files("distill").joinpath("templates", "example").iterdir()
    return sorted((entry for entry in entries if entry.is_file()), key=lambda entry: entry.name)


def _copy(entry: Traversable, folder: Path) -> Path:
    path = folder / entry.name
    path.write_text(entry.read_text(encoding="utf-8"), encoding="utf-8")
    return path


def _free(place: Path) -> Path:
    """Return a name beside a folder that nothing has yet."""
    name, number = place.resolve().name or "mine", 2
    while (place.parent / f"{name}-{number}").exists():
        number += 1
    return place.parent / f"{name}-{number}"
