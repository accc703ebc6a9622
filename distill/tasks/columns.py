"""From columns of text to arrays, and to the preprocessing that is fitted on the training rows alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distill.errors import UserError
from distill.export import CategoryColumn, ColumnsPreprocess, NumericColumn
from distill.tasks.settings import DataSettings
from distill.tasks.table import Table

_MANY = 100
_IDENTIFIER = 50
_TYPOS = 0.1


@dataclass(frozen=True)
class Fitted:
    """One array [N, 1] an input column, float32 with NaN or text with "" where missing, and what to do with them."""

    raw: dict[str, NDArray[Any]]
    preprocess: ColumnsPreprocess
    warnings: tuple[str, ...]


def fit_columns(table: Table, names: Sequence[str], train: NDArray[np.int64], settings: DataSettings) -> Fitted:
    """Decide for each column whether it holds numbers or categories, and fit its preprocessing on the rows ``train``.

    Numbers: missing becomes the mean, then mean 0 and deviation 1. Categories: those of the training rows. A column
    that is constant over the training rows is left out, with a warning.

    Raises:
        UserError: a column holds nothing, an infinite value, or a name for nearly every row.
    """
    raw: dict[str, NDArray[Any]] = {}
    fitted: list[NumericColumn | CategoryColumn] = []
    warnings: list[str] = []
    for name in names:
        cells = table.columns[name]
        if not any(cells[row] for row in train):
            home = "every row" if not any(cells) else "every training row"
            raise UserError(f"column {name!r}: missing in {home}; add data.drop: [{name}]")
        numbers = None if name in settings.categorical else _numbers(table, name, warnings)
        column = (
            _category(name, cells, train, name in settings.categorical, warnings)
            if numbers is None
            else _numeric(name, numbers, train, warnings)
        )
        if column is None:
            warnings.append(f"column {name!r} has one value in all training rows: it is no input")
            continue
        fitted.append(column)
        raw[name] = np.asarray(cells).reshape(-1, 1) if numbers is None else numbers.reshape(-1, 1)
    if not fitted:
        raise UserError(f"{table.origin[0][0]}: no column is left as input; every one is dropped or constant")
    return Fitted(raw, ColumnsPreprocess(tuple(fitted)), tuple(warnings))


def class_numbers(table: Table, name: str) -> tuple[tuple[str, ...], NDArray[np.int64]]:
    """Return the labels, sorted (as numbers if all are whole numbers), and each row's class number.

    Raises:
        UserError: a row has no class, or all have the same.
    """
    cells = table.column(name, "data.target")
    for row, cell in enumerate(cells):
        if not cell:
            raise UserError(f"{table.where(row)}: the target {name!r} is missing; fill it in or remove the row")
    labels = sorted(set(cells))
    if len(labels) == 1:
        raise UserError(f"data.target={name!r}: every row is {labels[0]!r}; a classifier needs at least two classes")
    if all(label.lstrip("+-").isdecimal() for label in labels):
        labels.sort(key=lambda label: (int(label), label))
    number = {label: place for place, label in enumerate(labels)}
    return tuple(labels), np.asarray([number[cell] for cell in cells], np.int64)


def _numbers(table: Table, name: str, warnings: list[str]) -> NDArray[np.float32] | None:
    """Return the column as float32 with NaN, or None if it holds anything but numbers."""
    cells = table.columns[name]
    values = np.full(len(cells), np.nan)
    strange = [row for row, cell in enumerate(cells) if cell and not _parse(cell, values, row)]
    if strange:
        if len(strange) <= _TYPOS * sum(map(bool, cells)):
            warnings.append(
                f"column {name!r} is read as categories: {len(strange)} value(s) are no numbers, such as "
                f"{cells[strange[0]]!r} ({table.where(strange[0])}); write NA for missing, or name the column in "
                "data.categorical"
            )
        return None
    with np.errstate(over="ignore"):
        numbers = values.astype(np.float32)
    infinite = np.flatnonzero(np.isinf(numbers))
    if len(infinite):
        row = int(infinite[0])
        raise UserError(f"{table.where(row)}: column {name!r} is {cells[row]}, no finite float32; mend it or write NA")
    return numbers


def _parse(cell: str, values: NDArray[np.float64], row: int) -> bool:
    try:
        values[row] = float(cell)
    except ValueError:
        return False
    return True


def _numeric(
    name: str, numbers: NDArray[np.float32], train: NDArray[np.int64], warnings: list[str]
) -> NumericColumn | None:
    values = numbers[train].astype(np.float64)
    known = values[~np.isnan(values)]
    if (known == known[0]).all():
        return None
    fill = float(known.mean())
    filled = np.where(np.isnan(values), fill, values)
    mean, deviation = float(filled.mean()), float(filled.std())
    # The shipped file takes float32: it cannot tell neighbours apart whose distance is below its spacing.
    if abs(mean) * 2.0**-23 > 0.01 * deviation:
        warnings.append(
            f"column {name!r} lies around {mean:.6g} and varies by {deviation:.2g}: float32 keeps little of that; "
            "subtract a constant in the data"
        )
    return NumericColumn(name, fill, mean, 1 / deviation)


def _category(
    name: str, cells: list[str], train: NDArray[np.int64], named: bool, warnings: list[str]
) -> CategoryColumn | None:
    seen = [cells[row] for row in train]
    categories = sorted({cell for cell in seen if cell})
    if len(categories) == 1 and all(seen):
        return None
    if not named and len(categories) > max(_IDENTIFIER, 0.5 * sum(map(bool, seen))):
        raise UserError(
            f"column {name!r}: {len(categories)} different values in {len(seen)} training rows, so it looks like a "
            f"name or number of the row; add data.drop: [{name}], or data.categorical: [{name}] to keep it"
        )
    if len(categories) > _MANY:
        warnings.append(f"column {name!r} has {len(categories)} categories, so it makes {len(categories) + 1} features")
    return CategoryColumn(name, tuple(categories))
