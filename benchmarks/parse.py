"""Reading what a user wrote: shares, counts, sizes, inputs. Every mistake names the option and the mend."""

from __future__ import annotations

import math
import tokenize
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from distill.documents import parse_json, read_text
from distill.errors import UserError
from distill.plain_yaml import parse_yaml
from distill.types import Array
from distill.wording import shortened

DAMAGED_ARRAYS = (
    *(ValueError, LookupError, EOFError, RuntimeError, TypeError, OverflowError),
    *(zlib.error, zipfile.BadZipFile, tokenize.TokenError),
)
"""What numpy ends in where an .npy or .npz file is damaged."""


def fraction(option: str, text: str, *, zero: bool = False) -> float:
    """Read 5% or 0.05. Raises UserError for what is neither, and for a bare number from 1 on, which would be 100 %."""
    number, per_cent = text.strip().removesuffix("%"), text.strip().endswith("%")
    try:
        value = float(number) / (100 if per_cent else 1)
    except ValueError:
        value = math.nan
    if not (value > 0 or (zero and value == 0)) or math.isinf(value):
        raise UserError(
            f"{option} {shortened(text)}: must be a share such as 5% or 0.05, {'0 or more' if zero else 'above 0'}"
        )
    if value >= 1 and not per_cent:
        raise UserError(f"{option} {text}: is {100 * value:g} %; write {text}% or {value / 100:g} if that is meant")
    return value


def positive(option: str, value: object) -> float:
    """Read a number above 0. Raises UserError for what is none."""
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        number = math.nan
    if not 0 < number < math.inf:
        raise UserError(f"{option} {shortened(str(value))}: must be a number above 0")
    return number


def counts(option: str, text: str, most: int) -> tuple[int, ...]:
    """Read 1,8,32. Raises UserError for what is no list of whole numbers from 1 to ``most``."""
    numbers = tuple(dict.fromkeys(whole(word.strip()) for word in text.split(",")))
    if min(numbers) < 1 or max(numbers) > most:
        raise UserError(f"{option} {shortened(text)}: must be whole numbers from 1 to {most}, as 1,8")
    return numbers


def sizes(option: str, entries: Sequence[str]) -> dict[str, int]:
    """Read sequence=128. Raises UserError for a size that is no whole number from 1 on."""
    numbers = {}
    for name, value in named_values(option, entries).items():
        numbers[name] = whole(value)
        if numbers[name] < 1:
            raise UserError(f"{option} {name}={shortened(value)}: the size must be a whole number from 1 on")
    return numbers


def whole(text: str) -> int:
    """Read a whole number from 0 on as people write it, in digits alone; -1 for anything else, or far too much."""
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 19 else -1


def named_values(option: str, entries: Sequence[str]) -> dict[str, str]:
    """Read name=value. Raises UserError for what lacks either."""
    values = {}
    for entry in entries:
        name, equals, value = entry.partition("=")
        if not name or not equals:
            raise UserError(f"{option} {entry}: must be name=value")
        values[name] = value
    return values


def document(option: str, path: Path) -> tuple[str, Any]:
    """Return the text of a file of JSON (.json) or YAML, and its value. Raises UserError for what is neither."""
    try:
        text = read_text(path)
        return text, parse_json(text) if path.suffix == ".json" else parse_yaml(text)
    except OSError as error:
        raise UserError(f"{option} {path}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise UserError(f"{option} {path}: {' '.join(str(error).split())}") from error


_MAGIC = (b"PK", b"\x93NUMPY")


def read_npz(path: Path) -> dict[str, Array]:
    """Read inputs by name, in this machine's byte order. Raises UserError for what is no .npz, or holds objects."""
    if path.exists() and not path.is_file() and not path.is_dir():  # a pipe would be waited for
        raise UserError(f"--inputs {path}: is a pipe or a device, not an .npz")
    try:
        with path.open("rb") as file:
            if not file.read(6).startswith(_MAGIC):  # numpy would take it for a pickle, and advise to trust it
                raise UserError(
                    f"--inputs {path}: must be an .npz of plain arrays, as np.savez(file, input=rows) writes"
                )
            file.seek(0)
            stored = np.load(file, allow_pickle=False)
            if not isinstance(stored, np.lib.npyio.NpzFile):
                raise UserError(f"--inputs {path}: is a single array; write it by name, as np.savez(file, input=rows)")
            if not stored.files:
                raise UserError(f"--inputs {path}: holds no arrays; write rows by name, as np.savez(file, input=rows)")
            return {name: native(member(stored, name)) for name in stored.files}
    except OSError as error:
        raise UserError(f"--inputs {path}: cannot be read ({error.strerror or error})") from error
    except DAMAGED_ARRAYS as error:
        raise UserError(f"--inputs {path}: must be an .npz of plain arrays ({' '.join(str(error).split())})") from error


def member(stored: np.lib.npyio.NpzFile, name: str) -> Array:
    """Return an array of an open .npz; of what is none numpy returns the bytes. Raises what numpy ends in."""
    values = stored[name]
    if not isinstance(values, np.ndarray):
        raise TypeError(f"{name} is no array")
    return values


def native(values: Array) -> Array:
    """Return an array in this machine's byte order, itself where it is."""
    return values.astype(values.dtype.newbyteorder("="), copy=False)
