"""Columns that a model should perhaps not read: numbers of the row, and answers in disguise. They stay, with a word."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from distill.wording import yaml_list

_FEWEST_ROWS = 50
_DISTINCT = 0.99
_LEAK = 0.01
"""Errors of a column alone, as a share of those that answering the most frequent class would make."""


def suspicions(name: str, values: NDArray[np.float64] | Sequence[str], target: NDArray[np.int64]) -> Iterator[str]:
    """Yield what is odd about a column's training rows: numbers with NaN, or texts; ``target`` is int64 [rows]."""
    mend = f"; add data.drop: {yaml_list(name)} unless the model may know it"
    if len(target) < _FEWEST_ROWS:
        return
    numbers = values if isinstance(values, np.ndarray) else None
    if numbers is not None and (reason := _row_number(numbers[~np.isnan(numbers)])):
        yield f"column {name!r} {reason}, so it looks like a number of the row{mend}"
    if _tells_the_class(values, target):
        yield f"column {name!r} alone tells the class of nearly every training row: is it made from the class?{mend}"


def _row_number(present: NDArray[np.float64]) -> str:
    """Say why numbers look like those of rows; "" where they do not."""
    if len(present) < _FEWEST_ROWS:
        return ""
    whole = bool((present == np.round(present)).all())
    steps = np.diff(present)
    if (steps > 0).all() or (steps < 0).all():
        return "goes one way from row to row"
    if whole and len(np.unique(present)) >= _DISTINCT * len(present):
        return "has a whole number of its own in nearly every row"
    return ""


def _tells_the_class(values: NDArray[np.float64] | Sequence[str], target: NDArray[np.int64]) -> bool:
    """Whether each value has nearly one class, and numbers in order change it no more often than there are classes."""
    ordered = isinstance(values, np.ndarray)
    codes = values if isinstance(values, np.ndarray) else _numbered(values)
    cells, places = np.unique(codes, return_inverse=True)
    classes = int(target.max()) + 1
    if not ordered and len(cells) > 0.1 * len(target):
        return False
    pairs, counts = np.unique(places * classes + target, return_counts=True)
    best = np.zeros(len(cells), np.int64)
    np.maximum.at(best, pairs // classes, counts)
    wrong = len(target) - int(best.sum())
    if ordered:
        majority = pairs[counts == best[pairs // classes]] % classes
        wrong += max(0, int(np.count_nonzero(np.diff(majority))) - (classes - 1))
    return wrong <= _LEAK * (len(target) - int(np.bincount(target).max()))


def _numbered(texts: Sequence[str]) -> NDArray[np.int64]:
    number = {text: place for place, text in enumerate(dict.fromkeys(texts))}
    return np.asarray([number[text] for text in texts], np.int64)
