"""Where the verb `quantize` writes: checked before hours of work, and written whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from distill.errors import UserError


def require_places(outputs: Mapping[str, Path]) -> None:
    """Find out before any work whether files can be written.

    Args:
        outputs: option -> path.

    Raises:
        UserError: a path is a folder, lies in none or in one without permission, or two are the same.
    """
    seen: dict[Path, str] = {}
    for option, path in outputs.items():
        folder = path.absolute().parent
        if path.is_dir():
            raise UserError(f"{option} {path}: is a folder; give the name of a file")
        if not folder.is_dir():
            raise UserError(f"{option} {path}: the folder {folder} does not exist; make it first")
        if not os.access(folder, os.W_OK):
            raise UserError(f"{option} {path}: no permission to write into {folder}")
        other = seen.setdefault(path.resolve(), option)
        if other != option:
            raise UserError(f"{option} {path}: is what {other} writes; give another name")


def require_apart(outputs: Mapping[str, Path], inputs: Iterable[tuple[str, Path]]) -> None:
    """Refuse to write over what is read, by whatever name or link.

    Args:
        outputs: option -> path.
        inputs: what a file is, in words, and its path.

    Raises:
        UserError: an output is an input.
    """
    for what, source in inputs:
        for option, path in outputs.items():
            if path.exists() and source.exists() and path.samefile(source):
                raise UserError(f"{option} {path}: is {what}, which stays as it is; give another name")


def write_whole(path: Path, content: bytes) -> None:
    """Write a file whole or not at all; nothing is left of one that is interrupted."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_bytes(content)
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
