"""Where a verb writes: checked before minutes of work, and written whole or not at all."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from distill import files
from distill.errors import UserError


def require_places(outputs: Mapping[str, Path], *, makes_folders: bool = False) -> None:
    """Find out before any work whether files can be written; nothing that is there is touched.

    Args:
        outputs: option -> path.
        makes_folders: whether who writes them makes the folders that are not there.

    Raises:
        UserError: a path is a folder, lies in none or in one without permission, or two are the same.
    """
    seen: list[tuple[str, Path]] = []
    for option, path in outputs.items():
        why = files.why_unwritable(path, makes_folder=makes_folders)
        if why is not None:
            raise UserError(f"{option} {path}: {why}")
        other = next((name for name, path_before in seen if files.same_file(path, path_before)), None)
        if other is not None:
            raise UserError(f"{option} {path}: is what {other} writes; give another name")
        if not path.exists() or path.is_file():  # a pipe or a device may take several
            seen.append((option, path))


def require_apart(outputs: Mapping[str, Path], inputs: Iterable[tuple[str, Path]]) -> None:
    """Refuse to write over what is read, by whatever name or link.

    Args:
        outputs: option -> path.
        inputs: what a file is, in words, and its path.

    Raises:
        UserError: an output is an input.
    """
    for description, source in inputs:
        for option, path in outputs.items():
            if path.exists() and source.exists() and path.samefile(source):
                raise UserError(f"{option} {path}: is {description}, which stays as it is; give another name")


def write_output(option: str, path: Path, content: bytes | str) -> None:
    """Write what an option asks for, whole or not at all.

    Raises:
        UserError: it cannot be written. OSError: the disk is full.
    """
    try:
        files.write_whole(path, content)
    except OSError as error:
        if files.disk_is_full(error):
            raise
        raise UserError(f"{option} {path}: cannot be written ({error.strerror or error})".lstrip()) from error
