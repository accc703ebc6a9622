"""Files that are written whole or not at all, wherever a user has them go."""

from __future__ import annotations

import ctypes
import errno
import glob
import os
import secrets
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

try:
    import fcntl
except ImportError:  # Windows has no such locks, and keeps what a killed process left
    fcntl = None  # type: ignore[assignment]

PARTIAL = ".partial"
"""How the names of files end that are not whole yet; only a killed process leaves one."""

_HIDDEN = ".distill-"
_FULL_DISK = (errno.ENOSPC, errno.EDQUOT)
_MOST_LINKS = 40
_CURRENT_FOLDER, _EXCHANGE = -100, 2  # AT_FDCWD and RENAME_EXCHANGE of Linux
_NEW_S = 60.0  # longer than a process takes from making a file to holding it


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
    try:
        with replacing(path) as partial, partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        if error.filename is None and error.errno in (*_FULL_DISK, errno.EFBIG):  # a write does not say where to
            error.filename = str(path)
        raise


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder beside ``path`` that takes its place at the end; after an error nothing is left of it."""
    settle_folder(path)
    parent, prefix = path.absolute().parent, f".{path.name}."
    sweep_left(parent, f"{glob.escape(prefix)}*{PARTIAL}", _is_old)
    with tempfile.TemporaryDirectory(prefix=prefix, suffix=PARTIAL, dir=parent) as room, held(Path(room)):
        new = Path(room, "new")
        new.mkdir()
        yield new
        replace_folder(path, new)


def replace_folder(final: Path, building: Path, *, ours: Collection[str] | None = None) -> None:
    """Let a folder take the place of another; what is in the other and not in ``ours`` (None: all) moves over.

    Where the system can, and nothing has to move, it is one step; ``settle_folder`` finishes two that were cut off.
    """
    old = _old(final)
    if final.is_dir() and not final.is_symlink():
        if (ours is None or all(path.name in ours for path in final.iterdir())) and _exchanged(final, building):
            remove(building)
            return
        final.rename(old)
    else:
        remove(final)
    building.rename(final)
    for path in list(old.iterdir()) if old.is_dir() else []:
        if ours is None or path.name in ours:
            remove(path)
    settle_folder(final)


def settle_folder(final: Path) -> None:
    """Finish a replacement of a folder that was cut off."""
    old = _old(final)
    if old.is_symlink():
        remove(old)
    if not old.is_dir():
        return
    if not final.exists():
        old.rename(final)
        return
    for path in list(old.iterdir()):
        if not os.path.lexists(final / path.name):
            path.rename(final / path.name)
    remove(old)


def _old(final: Path) -> Path:
    return final.with_name(f".{final.name}.old")


def _exchanged(path: Path, other: Path) -> bool:
    """Let two paths change places in one step; returns whether the system could, as Linux can."""
    try:
        exchange = ctypes.CDLL(None).renameat2
    except (AttributeError, OSError, TypeError):
        return False
    return bool(exchange(_CURRENT_FOLDER, os.fsencode(path), _CURRENT_FOLDER, os.fsencode(other), _EXCHANGE) == 0)


def remove(path: Path) -> None:
    """Remove whatever is at a path, if anything is; what a link leads to stays."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield the path of an empty file that takes the place of the regular file ``path``, for what writes by name.

    It lies in the same folder, has the permissions of the file that it replaces, or those of any new file, and is
    removed after an error.

    Raises:
        OSError: the folder cannot be written.
    """
    partial = path.with_name(f"{_HIDDEN}{secrets.token_hex(8)}{PARTIAL}")
    sweep_left(path.absolute().parent, f"{_HIDDEN}*{PARTIAL}", _is_old)
    # Exclusive, so that no link that somebody laid there is followed.
    os.close(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
    try:
        with suppress(FileNotFoundError):
            if not path.is_symlink():  # what lies behind a link that is replaced is none of ours
                _take_over(path.stat(), partial)
        with held(partial):
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


@contextmanager
def held(path: Path) -> Iterator[None]:
    """Lock a file or a folder while the context, and this process, last; where locks are known."""
    opened = -1
    with suppress(OSError):
        opened = hold(path)
    try:
        yield
    finally:
        if opened >= 0:
            os.close(opened)


def hold(path: Path) -> int:
    """Lock a file or a folder, for as long as the open file that is returned is open; -1 where locks are unknown.

    Raises:
        OSError: another process holds it, or the file system knows no locks.
    """
    if fcntl is None:
        return -1
    opened = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BaseException:
        os.close(opened)
        raise
    return opened


def sweep_left(folder: Path, pattern: str, is_candidate: Callable[[Path], bool]) -> None:
    """Remove what a killed process left in a folder that others use too: what no process holds, where locks are known.

    Args:
        folder: where to look, not below it.
        pattern: of the names, as ``glob`` has it.
        is_candidate: whether a path of that name may be removed; one that raises OSError may not.
    """
    if fcntl is None:
        return
    for left in list(folder.glob(pattern)):
        # What is gone by now, is a link, or is held, is nothing that was left.
        with suppress(OSError):
            if is_candidate(left):
                opened = hold(left)
                try:
                    remove(left)
                finally:
                    os.close(opened)


def _is_old(path: Path) -> bool:
    return path.lstat().st_mtime < time.time() - _NEW_S


def why_unwritable(path: Path, *, makes_folder: bool = False) -> str | None:
    """Say why a file cannot be written, in words that follow its name; None where it can. Nothing is touched.

    With ``makes_folder`` whoever writes it makes its folder first, so that one that is not there yet is no reason.
    """
    try:
        target = _target(path)
        place = target or path
        if place.is_dir():
            return "is a folder; give the name of a file"
        if place.is_socket():
            return "is a socket, which cannot be written as a file; give another name"
        if place.exists() and not os.access(place, os.W_OK):
            return "cannot be written (no permission)"
        if target is None and place.exists():
            return None
        folder = place.absolute().parent
        while makes_folder and not path.is_symlink() and not os.path.lexists(folder):  # none is made behind a link
            folder = folder.parent
        return why_closed(folder)
    except OSError as error:
        return f"cannot be written ({error.strerror})"
    except ValueError as error:  # a zero byte
        return f"cannot be written ({error})"


def at_home(path: str | Path) -> Path:
    """Put the user's home for ``~``; where nobody knows that home, or the user, the sign stays as any other."""
    return Path(os.path.expanduser(path))


def same_file(path: Path, other: Path) -> bool:
    """Tell whether two paths name one file, by whatever links, also where it does not exist yet."""
    if path.exists() and other.exists():
        return path.samefile(other)
    return os.path.realpath(path) == os.path.realpath(other)


def disk_is_full(error: BaseException) -> bool:
    """Tell whether an error is that of a full disk or of a used-up quota, also where a library puts it in words."""
    return getattr(error, "errno", None) in _FULL_DISK or os.strerror(errno.ENOSPC) in str(error)


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


def why_closed(folder: Path) -> str | None:
    """Say why nothing can be made in a folder; None where it can."""
    if not folder.is_dir():
        missing = f"the folder {folder} does not exist; make it first"
        return f"{folder} is no folder; choose another place" if os.path.lexists(folder) else missing
    return None if os.access(folder, os.W_OK) else f"no permission to write into {folder}"


def _take_over(replaced: os.stat_result, partial: Path) -> None:
    """Give a new file the owner, where that is allowed, and the permissions of the one that it replaces."""
    if hasattr(os, "chown"):
        with suppress(OSError):
            os.chown(partial, replaced.st_uid, replaced.st_gid)
    os.chmod(partial, replaced.st_mode & 0o777)
