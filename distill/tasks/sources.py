"""Where a known data set lies: the given folder, the system's usual place, the cache, or a download with a checksum."""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from distill.errors import UserError
from distill.types import Progress

_TIMEOUT_S = 30.0
_BLOCK = 1 << 18


@dataclass(frozen=True)
class Remote:
    """A file to download: its name and the MD5 that its publisher states (32 hexadecimal digits)."""

    name: str
    md5: str


@dataclass(frozen=True)
class Source:
    """A published data set: where it may lie and where it can be had.

    ``find`` returns the files it needs out of a folder, or None if the folder does not hold all of them; ``holds``
    names those files in messages.
    """

    name: str
    holds: str
    find: Callable[[Path], dict[str, Path] | None]
    system: tuple[Path, ...]
    remotes: tuple[Remote, ...]
    urls: tuple[str, ...]
    package: str = ""


@dataclass(frozen=True)
class Location:
    """The files of a data set, by role, and what the user should know about where they are from."""

    files: dict[str, Path]
    warnings: tuple[str, ...] = ()


def locate(
    source: Source,
    *,
    path: Path | None = None,
    download: bool = True,
    mirror: str | None = None,
    progress: Progress | None = None,
) -> Location:
    """Return the data set's files: from ``path``, else the system's place, else the cache, else downloaded.

    ``mirror`` is an http(s) folder that replaces the publisher's. Downloads go to the cache, checked and renamed.

    Raises:
        UserError: no way worked; the message names them all.
    """
    attempts = []
    warnings: tuple[str, ...] = ()
    if path is not None:
        if (files := source.find(path)) is not None:
            return Location(files)
        attempts.append(f"data.path={path} {f'does not hold {source.holds}' if path.is_dir() else 'is no folder'}")
        warnings = (f"{attempts[0]}: {source.name} was taken from elsewhere",)
    else:
        attempts.append(f"set data.path to a folder that holds {source.holds}")
    cache = cache_folder() / source.name
    for place in (*source.system, cache):
        if (files := source.find(place)) is not None:
            return Location(files, tuple(f"{warning} ({place})" for warning in warnings))
    package = f" (Debian and Ubuntu: apt install {source.package})" if source.package else ""
    attempts.append(f"not in {' or '.join(map(str, (*source.system, cache)))}{package}")
    if not download:
        attempts.append("data.download is off")
    else:
        problem = _download(source, cache, (mirror,) if mirror else source.urls, progress)
        if problem is None and (files := source.find(cache)) is not None:
            return Location(files, tuple(f"{warning} ({cache})" for warning in warnings))
        attempts.append(f"download failed: {problem or 'files are missing'}")
    raise UserError(f"{source.name} was not found: " + "; ".join(attempts))


def cache_folder() -> Path:
    """Return the folder for downloads: ``$XDG_CACHE_HOME/distill``, by default ``~/.cache/distill``."""
    cache = os.environ.get("XDG_CACHE_HOME")
    home = os.path.expanduser("~")
    # Who has no home has that of `login` and of containers.
    return Path(cache or os.path.join(home if os.path.isabs(home) else "/", ".cache"), "distill")


def _download(source: Source, folder: Path, urls: Sequence[str], progress: Progress | None) -> str | None:
    """Fetch every file of the source; return what went wrong, or None."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        return f"{folder} cannot be made ({error.strerror})"
    for remote in source.remotes:
        if (folder / remote.name).is_file():
            continue
        problems = []
        for url in urls:
            problem = _fetch(f"{url.rstrip('/')}/{remote.name}", remote, folder, progress)
            if problem is None:
                break
            problems.append(problem)
        else:
            return "; ".join(problems)
    return None


def _fetch(url: str, remote: Remote, folder: Path, progress: Progress | None) -> str | None:
    """Download one file under a temporary name, check it, rename it; return what went wrong, or None."""
    if not url.startswith(("http://", "https://")):
        return f"{url} is not an http(s) address"
    handle, temporary = tempfile.mkstemp(dir=folder, prefix=f".{remote.name}.")
    digest = hashlib.md5(usedforsecurity=False)
    try:
        with os.fdopen(handle, "wb") as out, urllib.request.urlopen(url, timeout=_TIMEOUT_S) as answer:
            total = int(answer.headers.get("Content-Length") or 0)
            received = 0
            while block := answer.read(_BLOCK):
                digest.update(block)
                out.write(block)
                received += len(block)
                if progress is not None:
                    progress(f"download {remote.name}", received, max(total, received))
        if digest.hexdigest() != remote.md5:
            return f"{url} has the checksum {digest.hexdigest()}, expected {remote.md5}: truncated or not the file"
        Path(temporary).replace(folder / remote.name)
    except urllib.error.HTTPError as error:
        return f"{url} answered {error.code} {error.reason}"
    except urllib.error.URLError as error:
        return f"{url} is out of reach ({error.reason})"
    except (OSError, ValueError) as error:
        return f"{url}: {error}"
    finally:
        with contextlib.suppress(FileNotFoundError):
            Path(temporary).unlink()
    return None
