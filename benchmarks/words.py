"""Reading what a user wrote: shares, counts, sizes, inputs. Every mistake names the option and the mend."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from distill.errors import UserError

from .inputs import Array

_MOST = 10.0  # a share above is a typing error: 500 for 5.00


def fraction(option: str, text: str) -> float:
    """Read 5% or 0.05. Raises UserError for what is neither, or not between 0 and 10."""
    number = text.strip().removesuffix("%")
    try:
        value = float(number) / (100 if text.strip().endswith("%") else 1)
    except ValueError:
        value = -1.0
    if not 0 < value < _MOST:
        raise UserError(f"{option} {text}: must be a share such as 5% or 0.05, above 0")
    return value


def counts(option: str, text: str) -> tuple[int, ...]:
    """Read 1,8,32. Raises UserError for what is no list of whole numbers from 1 on."""
    try:
        found = tuple(dict.fromkeys(int(one) for one in text.split(",")))
    except ValueError:
        found = ()
    if not found or min(found) < 1:
        raise UserError(f"{option} {text}: must be whole numbers from 1 on, as 1,8")
    return found


def sizes(option: str, entries: Sequence[str]) -> dict[str, int]:
    """Read sequence=128. Raises UserError for a size that is no whole number from 1 on."""
    found = {}
    for name, value in named_values(option, entries).items():
        if not value.isdigit() or int(value) < 1:
            raise UserError(f"{option} {name}={value}: the size must be a whole number from 1 on")
        found[name] = int(value)
    return found


def named_values(option: str, entries: Sequence[str]) -> dict[str, str]:
    """Read name=value. Raises UserError for what lacks either."""
    found = {}
    for entry in entries:
        name, equals, value = entry.partition("=")
        if not name or not equals:
            raise UserError(f"{option} {entry}: must be name=value")
        found[name] = value
    return found


def read_npz(path: Path) -> dict[str, Array]:
    """Read inputs by name. Raises UserError for what is no .npz, or holds pickled objects."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files}
    except OSError as error:
        raise UserError(f"--inputs {path}: cannot be read ({error.strerror or error})") from error
    except (ValueError, AttributeError, EOFError) as error:
        raise UserError(f"--inputs {path}: must be an .npz of plain arrays ({' '.join(str(error).split())})") from error
