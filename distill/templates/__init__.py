"""A commented configuration with a working example of a user's own teacher, student and data."""

from __future__ import annotations

import shutil
from itertools import count
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
        files = sorted(file for file in (Path(__file__).parent / "example").iterdir() if file.is_file())
        return [Path(shutil.copyfile(file, place / file.name)) for file in files]
    except OSError as error:
        raise UserError(
            f"init {place}: cannot be written ({error.strerror or error}); name a folder that you may write to"
        ) from error


def _free(place: Path) -> Path:
    """Return a name beside a folder that nothing has yet."""
    names = (place.parent / f"{place.resolve().name or 'mine'}-{number}" for number in count(2))
    return next(name for name in names if not name.exists())
