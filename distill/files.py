"""Files that are written whole or not at all, wherever a user has them go."""

from __future__ import annotations

import errno
import os
import secrets
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

PARTIAL = ".partial"
"""How the names of files end that are not whole yet; only a killed process leaves one."""

_HIDDEN = ".distill-"
_FULL_DISK = (errno.ENOSPC, errno.EDQUOT)
_MOST_LINKS = 40


def write_whole(path: Path, content: bytes | str, *, follow: bool = True) -> None:
    """Write a file whole or not at all; text is written as UTF-8.

    Without ``follow`` a link or a pipe of that name is replaced, as in a folder that only this product writes.

    Raises:
        OSError: the place cannot be written; a regular file that was there is still there.
    """
    with whole(path) if follow else _synced(path) as file:
        file.write(content.encode("utf-8") if isinstance(content, str) else content)


@contextmanager
def whole(path: Path) -> Iterator[IO[bytes]]:
    """Open a file whose content takes the place of ``path`` at the end of the context, unless that ends in an error.

    A link is followed, as ``cp`` does: the file that it names is replaced (or made), and the link stays. What is
    neither a regular file nor absent (a pipe, a device, an open file of a process) is written through, never replaced.

    Raises:
        OSError: the place cannot be written.
    """
    target = _target(path)
    if target is None:
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_APPEND), "wb") as file:
            yield file
        return
    with _synced(target) as file:
        yield file


@contextmanager
def _synced(path: Path) -> Iterator[IO[bytes]]:
    with replacing(path) as partial, partial.open("wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder beside ``path`` that takes its place at the end; after an error nothing is left of it."""
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", suffix=PARTIAL, dir=path.absolute().parent) as room:
        new, old = Path(room, "new"), Path(room, "old")
        new.mkdir()
        yield new
        if path.exists():
            os.replace(path, old)
        try:
            os.replace(new, path)
        except BaseException:
            if old.exists():
                os.replace(old, path)
            raise


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield the path of an empty file that takes the place of the regular file ``path``, for what writes by name.

    It lies in the same folder, has the permissions of the file that it replaces, or those of any new file, and is
    removed after an error.

    Raises:
        OSError: the folder cannot be written.
    """
    partial = path.with_name(f"{_HIDDEN}{secrets.token_hex(8)}{PARTIAL}")
    # Exclusive, so that no link that somebody laid there is followed.
    os.close(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
    try:
        with suppress(FileNotFoundError):
            _take_over(path.stat(), partial)
        yield partial
        try:
            os.replace(partial, path)
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            # A file that is mounted by itself, as containers have it, cannot be replaced, only written.
            path.write_bytes(partial.read_bytes())
            partial.unlink()
    except BaseException:
        with suppress(OSError):
            partial.unlink()
        raise


def why_unwritable(path: Path) -> str | None:
    """Say why a file cannot be written, in words that follow its name; None where it can. Nothing is touched."""
    try:
        target = _target(path)
        there = path if target is None else target
        if there.exists():
            return _why_fixed(there, special=target is None)
        return _why_closed(there.absolute().parent)
    except OSError as error:
        return f"cannot be written ({error.strerror})"
    except ValueError as error:  # a zero byte
        return f"cannot be written ({error})"


def same_file(path: Path, other: Path) -> bool:
    """Tell whether two paths name one file, by whatever links, also where it does not exist yet."""
    if path.exists() and other.exists():
        return path.samefile(other)
    return os.path.realpath(path) == os.path.realpath(other)


def disk_is_full(error: OSError) -> bool:
    """Tell whether an error is that of a full disk or of a used-up quota."""
    return error.errno in _FULL_DISK


def sweep(folder: Path) -> None:
    """Remove what a killed process left half-written in a folder that only this process writes, at any depth."""
    for left in folder.rglob(f"{_HIDDEN}*{PARTIAL}"):
        if left.is_file() and not left.is_symlink():
            left.unlink()


def _target(path: Path) -> Path | None:
    """Follow links to the regular or absent file that they name; None for anything else, which is opened as it is."""
    with suppress(FileNotFoundError, NotADirectoryError):
        if not stat.S_ISREG(path.stat().st_mode):
            return None
    for _ in range(_MOST_LINKS):
        if not path.is_symlink():
            return path
        if Path(os.path.realpath(path.parent)).is_relative_to("/proc"):
            return None  # /dev/stdout and its like: what it names is held open, and a file in its place is not
        path = path.parent / os.readlink(path)
    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))


def _why_fixed(path: Path, *, special: bool) -> str | None:
    if path.is_dir():
        return "is a folder; give the name of a file"
    if path.is_socket():
        return "is a socket, which cannot be written as a file; give another name"
    if not os.access(path, os.W_OK):
        return "cannot be written (no permission)"
    return None if special else _why_closed(path.absolute().parent)


def _why_closed(folder: Path) -> str | None:
    if not folder.is_dir():
        return f"the folder {folder} does not exist; make it first"
    return None if os.access(folder, os.W_OK) else f"no permission to write into {folder}"


def _take_over(replaced: os.stat_result, partial: Path) -> None:
    """Give a new file the owner, where that is allowed, and the permissions of the one that it replaces."""
    if hasattr(os, "chown"):
        with suppress(OSError):
            os.chown(partial, replaced.st_uid, replaced.st_gid)
    os.chmod(partial, replaced.st_mode & 0o777)
