"""Folders for files that are soon gone: removed at the end, and by the next process where their own was killed.

The process that made a folder holds a lock on it, which ends with the process, however that ends. So a folder that
nobody holds is one that was left.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from distill import files
from distill.errors import UserError
from distill.wording import is_utf8

_SUFFIX = ".scratch"
_OURS = re.compile(rf"distill-[a-z]+-\w+{re.escape(_SUFFIX)}")
_LITTLE = 1 << 20
"""Bytes: a disk that has less left is full."""

_held: dict[Path, int] = {}
"""The folders of this process, and the open file that holds each."""


@contextmanager
def folder(purpose: str) -> Iterator[Path]:
    """Yield an empty folder that only this user can read; it is removed at the end.

    Args:
        purpose: a word for its name.

    Raises:
        UserError: there is no place for temporary files, or no room in it.
    """
    room = _make(purpose)
    try:
        yield room
    except Exception as error:
        if files.disk_is_full(error) and shutil.disk_usage(room).free < _LITTLE:
            raise UserError(f"{room.parent}: no room for temporary files; {_mend()}") from error
        raise
    finally:
        _remove(room)


def remove_all() -> None:
    """Remove every folder of this process, for an end that waits for nothing else."""
    for room in list(_held):
        _remove(room)


def _make(purpose: str) -> Path:
    try:
        place = Path(tempfile.gettempdir())
    except FileNotFoundError as error:
        raise UserError(f"no place for temporary files: {error.strerror or error}; {_mend()}") from error
    if not is_utf8(str(place)):
        raise UserError(f"{place}: not UTF-8, as onnxruntime wants its files; {_mend()}")
    try:
        files.sweep_left(place, f"distill-*{_SUFFIX}", _is_own)
        # It gets the name that a sweep looks for once it is held.
        room = Path(tempfile.mkdtemp(prefix=f"distill-{purpose}-", dir=place))
        room.chmod(0o700)  # whatever the umask
        final = room.with_name(room.name + _SUFFIX)
        _held[final] = -1
        with suppress(OSError):  # a file system without locks: nothing there is ever swept
            _held[final] = files.hold(room)
        return room.rename(final)
    except OSError as error:
        raise UserError(f"{place}: no folder for temporary files can be made ({error.strerror}); {_mend()}") from error


def _mend() -> str:
    return "free some space there, or name another folder in the environment variable TMPDIR"


def _remove(room: Path) -> None:
    shutil.rmtree(room, ignore_errors=True)
    opened = _held.pop(room, -1)
    if opened >= 0:
        os.close(opened)


def _is_own(path: Path) -> bool:
    return _OURS.fullmatch(path.name) is not None and path.is_dir() and path.lstat().st_uid == os.geteuid()
