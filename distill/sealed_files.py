"""Files that carry the hash of what they hold, so that one that was altered is never taken for what was written.

A JSON object has its hash under ``seal``, an array in the header of its safetensors file; the files of a folder are
listed with theirs. All of it is written whole or not at all.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from distill import files
from distill.documents import read_json
from distill.errors import UserError

SEAL = "seal"
Tell = Callable[[str], None]


class AlteredError(Exception):
    """A file is not what was written; the text says how it differs."""


def file_sha256(path: Path) -> str:
    """Return the sha256 of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_text(path: Path, text: str) -> None:
    """Write a file of a run whole or not at all; a link or a pipe of its name is replaced, never followed.

    Raises:
        UserError: a folder has the name.
    """
    if path.is_dir() and not path.is_symlink():
        raise UserError(f"{path}: is a folder where a file of the run has to be; move it away")
    files.write_whole(path, text, follow=False)


# JSON ----------------------------------------------------------------------------------------------------------------


def write_sealed(path: Path, values: Mapping[str, Any]) -> dict[str, Any]:
    """Write a JSON object with its seal, and return it as a reader will find it."""
    plain: dict[str, Any] = json.loads(json.dumps(dict(values)))
    write_text(path, json.dumps(plain | {SEAL: _seal(plain)}, indent=1) + "\n")
    return plain


def read_sealed(path: Path) -> dict[str, Any] | None:
    """Return the JSON object that ``write_sealed`` wrote; None where there is no file.

    Raises:
        AlteredError: the file is something else.
    """
    _require_file(path)
    try:
        values = read_json(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise AlteredError(f"cannot be read ({error.strerror or error})") from error
    except ValueError as error:
        raise AlteredError("is damaged") from error
    if not isinstance(values, dict):
        raise AlteredError("is damaged")
    seal = values.pop(SEAL, None)
    if seal is None:
        raise AlteredError("has no seal (an earlier version wrote it, or something else)")
    if seal != _seal(values):
        raise AlteredError("differs from what was written")
    return values


def _seal(values: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


# Arrays --------------------------------------------------------------------------------------------------------------


def sealed_array(path: Path, compute: Callable[[], NDArray[Any]], tell: Tell) -> NDArray[Any]:
    """Return the array that a .safetensors file keeps; compute and keep it where there is none, or an altered one.

    ``tell`` hears how the file differs from what was written.
    """
    try:
        _require_file(path)
        if path.is_file():
            return _read_array(path)
    except AlteredError as error:
        tell(f"{path} {error}: computed again")
        files.remove(path)
    values = np.ascontiguousarray(compute())
    path.parent.mkdir(parents=True, exist_ok=True)
    with files.replacing(path) as partial:
        save_file({"values": values}, partial, metadata={SEAL: _hash_array(values)})
    return values


def _read_array(path: Path) -> NDArray[Any]:
    try:
        with safe_open(path, framework="np") as file:
            values: NDArray[Any] = file.get_tensor("values")
            seal = (file.metadata() or {}).get(SEAL)
    except (SafetensorError, OSError) as error:
        raise AlteredError("is damaged") from error
    if seal != _hash_array(values):
        raise AlteredError("differs from what was written")
    return values


def _hash_array(values: NDArray[Any]) -> str:
    hashed = hashlib.sha256(f"{values.dtype.str}{values.shape}".encode())
    hashed.update(np.ascontiguousarray(values).data.cast("B") if values.size else b"")
    return hashed.hexdigest()


# Folders -------------------------------------------------------------------------------------------------------------


def hashes_of(folder: Path) -> dict[str, str]:
    """Return the sha256 of every file below a folder, by its path in it."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): file_sha256(path) for path in paths}


def altered(folder: Path, hashes: Mapping[str, str]) -> list[tuple[str, str]]:
    """Return (path in the folder, how it differs) of each file that is not what was recorded.

    Files that are not recorded do not count.
    """
    there = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*")}
    different = []
    for name, expected in hashes.items():
        if name not in there:
            different.append((name, "is missing"))
            continue
        try:
            _require_file(there[name])
            if file_sha256(there[name]) != expected:
                different.append((name, "differs from what run.json recorded"))
        except AlteredError as error:
            different.append((name, str(error)))
        except OSError as error:
            different.append((name, f"cannot be read ({error.strerror or error})"))
    return different


def _require_file(path: Path) -> None:
    """Refuse what has the name of a file and is a link, a folder, a device, or no longer leads anywhere."""
    if path.is_symlink():
        raise AlteredError("is a link, not the file that was written")
    if path.exists() and not path.is_file():
        raise AlteredError("is no file")
