"""The folder that the verb `prune` leaves: checked before any work."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from distill.documents import read_json
from distill.errors import UserError

RECORD = "prune.json"
FORMAT = "distill prune 1"
FILES = frozenset({"model.onnx", "model.safetensors", "model.json", RECORD, "report.md", "report.html"})


def require_place(out: Path, inputs: Iterable[Path]) -> None:
    """Find out before any work whether the folder can be written.

    A folder that is there has to be empty, or to hold nothing but an earlier output of this verb, which is replaced.

    Raises:
        UserError: it is a file, lies nowhere or where nothing may be written, or holds what would be lost.
    """
    parent = out.absolute().parent
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise UserError(f"--out {out}: is a {'link' if out.is_symlink() else 'file'}; give the name of a folder")
    if not parent.is_dir():
        raise UserError(f"--out {out}: the folder {parent} does not exist; make it first")
    if not os.access(parent, os.W_OK):
        raise UserError(f"--out {out}: no permission to write into {parent}")
    if not out.exists():
        return
    if Path.cwd().is_relative_to(out.resolve()):
        raise UserError(f"--out {out}: is the current folder or holds it; give the name of a new folder")
    names = sorted(path.name for path in out.iterdir())
    strange = [name for name in names if name not in FILES]
    if strange or (names and not _is_ours(out / RECORD)):
        raise UserError(f"--out {out}: holds {(strange or names)[0]}, which is no output of prune; give a new folder")
    for path in inputs:
        if path.exists() and path.resolve().is_relative_to(out.resolve()):
            raise UserError(f"--out {out}: holds {path.name}, which is read; give a new folder")


def _is_ours(path: Path) -> bool:
    try:
        document = read_json(path)
    except (OSError, ValueError):
        return False
    return isinstance(document, dict) and document.get("format") == FORMAT
