"""From columns of text to arrays, and to the preprocessing that is fitted on the training rows alone."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from decimal import Decimal

import numpy as np
from numpy.typing import NDArray

from distill.errors import UserError
from distill.export import CategoryColumn, ColumnsPreprocess, NumericColumn
from distill.tasks import number_parsing as numerals
from distill.tasks.cells import Column
from distill.tasks.settings import CsvSettings
from distill.tasks.suspicious import suspicions
from distill.tasks.table_file import Table
from distill.types import Array
from distill.wording import first_of, quoted, yaml_list

_MANY = 100
_IDENTIFIER = 50
_FEW = 10


def fit_columns(
    table: Table,
    names: Sequence[str],
    train: NDArray[np.int64],
    settings: CsvSettings,
    warnings: list[str],
    target: NDArray[np.int64],
) -> tuple[dict[str, Array], ColumnsPreprocess]:
    """Decide for each column whether it holds numbers or categories, and fit its preprocessing on the rows ``train``.

    Numbers: missing becomes the mean, then mean 0 and deviation 1. Categories: those of the training rows. A column
    that is constant over the training rows is left out, with a warning. Returns one array [N, 1] an input column,
    float32 with NaN, or text with "" where missing (of objects: NumPy's own would give every row the room of the
    longest cell), and what to do with them.

    Raises:
        UserError: a column holds nothing, cells that cannot be read, or a name for nearly every row.
    """
    raw: dict[str, Array] = {}
    fitted: list[NumericColumn | CategoryColumn] = []
    gaps: list[str] = []
    for name in names:
        column = Column(table, name, settings)
        cells, values = column.cells, column.values
        absent = [not text for text in cells] if values is None else np.isnan(values)
        if all(absent[row] for row in train):
            home = "every row" if all(absent) else "every training row"
            raise UserError(f"column {name!r}: missing in {home}; add data.drop: {yaml_list(name)}")
        if column.missing:
            gaps.append(f"{name!r} {sum(column.missing.values())} ({numerals.counted(column.missing)})")
        fit = _category(column, train, warnings) if values is None else _numeric(name, values, train, warnings)
        if fit is not None:
            fitted.append(fit)
            seen = [cells[row] for row in train] if values is None else values[train]
            warnings += suspicions(name, seen, target[train])
            raw[name] = (np.asarray(cells, object) if values is None else values.astype(np.float32)).reshape(-1, 1)
    if not fitted:
        raise UserError(f"{table.files[0][1]}: no column is left as input; every one is dropped or constant")
    if gaps:
        warnings.append(f"missing values among numbers, read as the training mean: {first_of(gaps)}; see data.missing")
    return raw, ColumnsPreprocess(tuple(fitted))


def class_numbers(
    table: Table, settings: CsvSettings, warnings: list[str]
) -> tuple[tuple[str, ...], NDArray[np.int64]]:
    """Return the labels of ``data.target``, sorted (as numbers if all are numbers), and each row's class number.

    Texts that differ in trailing decimal zeros, such as 0 and 0.0, are one class.

    Raises:
        UserError: a row has no class, or all have the same.
    """
    cells = named_cells(table, settings.target, "data.target", "target", settings, warnings)
    counts = Counter(cells)
    if len(counts) == 1:
        raise UserError(
            f"data.target={settings.target!r}: every row is {quoted(cells[0])}; a classifier needs at least two classes"
        )
    absent = {text.lower() for text in settings.missing}
    warnings += [
        f"data.target={settings.target!r}: {quoted(label)} ({counts[label]} rows) is a class like the others; remove "
        "the rows if it means that the class is unknown"
        for label in sorted(counts)
        if label.lower() in absent
    ]
    labels = sorted(counts)
    mark = settings.decimal or numerals.decimal_mark(labels)
    if all(numerals.is_quantity(label, mark) for label in labels):
        labels.sort(key=lambda label: (Decimal(label.replace(mark, ".")), label))
    number = {label: place for place, label in enumerate(labels)}
    return tuple(labels), np.asarray([number[cell] for cell in cells], np.int64)


def named_cells(
    table: Table, name: str, field: str, noun: str, settings: CsvSettings, warnings: list[str]
) -> list[str]:
    """Return the texts of a column that names classes or groups; numbers that are spelt in two ways get one spelling.

    Raises:
        UserError: there is no such column, or a cell is empty.
    """
    cells = table.column(name, field)
    for row, cell in enumerate(cells):
        if not cell:
            raise UserError(f"{table.where(row)}: the {noun} {name!r} is missing; fill it in or remove the row")
    texts = set(cells)
    mark = settings.decimal or numerals.decimal_mark(texts)
    groups = numerals.alike(texts, mark)
    if not groups:
        return cells
    spellings = first_of((" and ".join(map(quoted, group)) for group in groups), 3)
    warnings.append(
        f"{field}={name!r}: {spellings} are one {'class' if noun == 'target' else noun} each, in several spellings"
    )
    spelling = {
        text: numerals.plain(text, mark)
        for text in texts
        if numerals.is_quantity(text, mark) and "e" not in text.lower()
    }
    return [spelling.get(cell, cell) for cell in cells]


def _numeric(
    name: str, exact: NDArray[np.float64], train: NDArray[np.int64], warnings: list[str]
) -> NumericColumn | None:
    numbers = exact.astype(np.float32)
    values = numbers[train].astype(np.float64)
    present = values[~np.isnan(values)]
    if (present == present[0]).all():
        warnings.append(f"column {name!r} has one value in all training rows: it is no input")
        if len(np.unique(exact[train][~np.isnan(values)])) > 1:
            warnings[-1] += "; its numbers are one in float32, subtract a constant in the data to tell them apart"
        elif len(present) < len(values):
            gaps = len(values) - len(present)
            warnings[-1] += f"; it is missing in {gaps}, which data.categorical: {yaml_list(name)} would keep apart"
        return None
    fill = float(present.mean())
    filled = np.where(np.isnan(values), fill, values)
    mean, deviation = float(filled.mean()), float(filled.std())
    with np.errstate(over="ignore", invalid="ignore"):
        scaled = (numbers - np.float32(mean)) * np.float32(1 / deviation)
    if np.isinf(scaled).any() or not np.isfinite(np.float32(1 / deviation)):
        raise UserError(
            f"column {name!r} goes from {present.min():.3g} to {present.max():.3g}, which float32 cannot standardise; "
            "divide it by a constant in the data"
        )
    # The shipped file takes float32: it cannot tell neighbours apart whose distance is below its spacing.
    if abs(mean) * 2.0**-23 > 0.01 * deviation:
        warnings.append(
            f"column {name!r} lies around {mean:.6g} and varies by {deviation:.2g}: float32 keeps little of that; "
            "subtract a constant in the data"
        )
    return NumericColumn(name, fill, mean, 1 / deviation)


def _category(column: Column, train: NDArray[np.int64], warnings: list[str]) -> CategoryColumn | None:
    name, cells, named, why_text = column.name, column.cells, column.named_category, column.why_text
    seen = [cells[row] for row in train]
    categories = sorted({cell for cell in seen if cell})
    if len(categories) == 1 and all(seen):
        warnings.append(f"column {name!r} has one value in all training rows: it is no input")
        return None
    reason = f" ({why_text})" if why_text else ""
    if not named and len(categories) > max(_IDENTIFIER, 0.5 * sum(map(bool, seen))):
        raise UserError(
            f"column {name!r}: {len(categories)} different values in {len(seen)} training rows, so it looks like a "
            f"name or number of the row{reason}; add data.drop: {yaml_list(name)}, or data.categorical: "
            f"{yaml_list(name)} to keep it"
        )
    if why_text:
        warnings.append(f"column {name!r} is read as {len(categories)} categories: {why_text}")
    elif not named and len(categories) > _FEW:
        _tell_digits(column, len(categories), warnings)
    if len(categories) > _MANY:
        warnings.append(f"column {name!r} has {len(categories)} categories, so it makes {len(categories) + 1} features")
    groups = numerals.alike(set(cells))
    if groups:
        spellings = first_of((" and ".join(map(quoted, group)) for group in groups), 3)
        warnings.append(f"column {name!r}: {spellings} are categories of their own; spell them alike if they are one")
    _tell_unseen(column, set(seen), train, warnings)
    return CategoryColumn(name, tuple(categories))


def _tell_unseen(column: Column, seen: set[str], train: NDArray[np.int64], warnings: list[str]) -> None:
    """Warn where most cells outside of the training rows are categories that those do not have."""
    cells, learnt = column.cells, set(train.tolist())
    others = [row for row in range(len(cells)) if row not in learnt and cells[row]]
    unseen = [row for row in others if cells[row] not in seen]
    if len(unseen) > 0.5 * len(others):
        warnings.append(
            f"column {column.name!r}: {len(unseen)} of {len(others)} cells outside of the training rows are categories "
            f"that those do not have, such as {column.at(cells[unseen[0]])}, and count as missing; spell them alike, "
            f"or add data.drop: {yaml_list(column.name)}"
        )


def _tell_digits(column: Column, categories: int, warnings: list[str]) -> None:
    """Warn of quantities with units, dates and the like, which became categories."""
    cells = list(filter(None, column.cells))
    digits = [cell for cell in cells if re.match(r"[+-]?\d", cell)]
    first = next((cell for cell in digits if not numerals.is_number(cell)), None)
    if first is not None and len(digits) >= 0.9 * len(cells):
        warnings.append(
            f"column {column.name!r} is read as {categories} categories: {column.at(first)} begins like a number; "
            f"write numbers if it is a quantity, or name the column in data.categorical: {yaml_list(column.name)}"
        )
