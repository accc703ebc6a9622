"""Folders for files that are soon gone: removed at the end, and by the next process where their own was killed.

The process that made a folder holds a lock on it, which ends with the process, however that ends. So a folder that
nobody holds is one that was left.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from distill import files
from distill.errors import UserError

try:
    import fcntl
except ImportError:  # Windows has no such locks, and keeps what a killed process left
    fcntl = None  # type: ignore[assignment]

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
        if _is_full(error) and shutil.disk_usage(room).free < _LITTLE:
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
    try:
        _sweep(place)
        # It gets the name that a sweep looks for once it is held.
        room = Path(tempfile.mkdtemp(prefix=f"distill-{purpose}-", dir=place))
        final = room.with_name(room.name + _SUFFIX)
        _held[final] = -1
        with suppress(OSError):  # a file system without locks: nothing there is ever swept
            _held[final] = _hold(room)
        return room.rename(final)
    except OSError as error:
        raise UserError(f"{place}: no folder for temporary files can be made ({error.strerror}); {_mend()}") from error


def _mend() -> str:
    return "free some space there, or name another folder in the environment variable TMPDIR"


def _is_full(error: BaseException) -> bool:
    """Tell whether a full disk is what an error is about, also where a library puts it in words."""
    return (isinstance(error, OSError) and files.disk_is_full(error)) or os.strerror(errno.ENOSPC) in str(error)


def _hold(path: Path) -> int:
    """Lock a folder for as long as this process lives; returns the open file. Raises BlockingIOError where one does."""
    opened = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW) if fcntl else -1
    try:
        if fcntl:
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BaseException:
        os.close(opened)
        raise
    return opened


def _remove(room: Path) -> None:
    shutil.rmtree(room, ignore_errors=True)
    opened = _held.pop(room, -1)
    if opened >= 0:
        os.close(opened)


def _sweep(place: Path) -> None:
    """Remove the folders of this user that no process holds any more."""
    if fcntl is None:
        return
    for path in list(place.glob(f"distill-*{_SUFFIX}")):
        # A folder that is gone by now, is a link, is somebody else's, or is held, is none that was left.
        with suppress(OSError):
            if _OURS.fullmatch(path.name) and path.lstat().st_uid == os.geteuid():
                opened = _hold(path)
                shutil.rmtree(path, ignore_errors=True)
                os.close(opened)
