"""Reading CSV files into columns of text, with every cell's file and line kept for messages."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from distill.errors import UserError
from distill.tasks.wording import did_you_mean

MISSING = frozenset({"", "NA", "NaN", "nan", "?"})
_SPLIT_FILES = {
    "train": ("train.csv",),
    "validation": ("validation.csv", "val.csv", "valid.csv"),
    "test": ("test.csv",),
}


@dataclass(frozen=True)
class Table:
    """Columns of stripped text, "" where a value is missing; ``origin[row]`` is the row's file and line number.

    ``parts`` says which rows each split's file held; it is empty for a single file.
    """

    columns: dict[str, list[str]]
    origin: list[tuple[Path, int]]
    parts: dict[str, range]

    def __len__(self) -> int:
        return len(self.origin)

    def where(self, row: int) -> str:
        """Return "FILE line N"."""
        return f"{self.origin[row][0]} line {self.origin[row][1]}"

    def column(self, name: str, field: str) -> list[str]:
        """Return a column that the config names in ``field``; UserError if there is none."""
        if name not in self.columns:
            raise UserError(f"{field}={name!r}: no such column{did_you_mean(name, self.columns)}")
        return self.columns[name]


def read_table(path: Path) -> Table:
    """Read one CSV file, or train.csv with validation.csv and test.csv in a folder.

    Comma, semicolon or tab, as the header has it; UTF-8.

    Raises:
        UserError: a file is missing, empty, ragged, or has another header than train.csv.
    """
    if path.is_file():
        table = Table({}, [], {})
        _append(table, path)
        return table
    if not path.is_dir():
        near = sorted(one.name for one in path.parent.glob("*.csv")) if path.parent.is_dir() else []
        raise UserError(f"data.path={path}: no such file or folder{did_you_mean(path.name, near)}")
    files = {}
    for split, names in _SPLIT_FILES.items():
        present = [path / name for name in names if (path / name).is_file()]
        if len(present) > 1:
            raise UserError(f"{path}: holds both {present[0].name} and {present[1].name}; keep one for {split}")
        if present:
            files[split] = present[0]
    if "train" not in files:
        raise UserError(
            f"data.path={path}: holds no train.csv; name a file, or put train.csv (and validation.csv, test.csv) there"
        )
    table = Table({}, [], {})
    for split, file in files.items():
        start = len(table)
        _append(table, file)
        table.parts[split] = range(start, len(table))
    return table


def _append(table: Table, path: Path) -> None:
    """Add a file's rows to the table's columns, by name."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as lines:
            delimiter = _delimiter(path, lines.readline())
            lines.seek(0)
            reader = csv.reader(lines, delimiter=delimiter, strict=True)
            header = _header(path, next(reader))
            if not table.columns:
                table.columns.update({name: [] for name in header})
            _same_columns(path, header, table)
            _append_rows(table, path, header, reader)
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: byte {error.start} is not UTF-8; save the file as UTF-8") from error
    except csv.Error as error:
        raise UserError(f"{path} line {reader.line_num}: {error}") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error


def _append_rows(table: Table, path: Path, header: list[str], reader: Iterator[list[str]]) -> None:
    # One object for each distinct text: categories repeat, and so do many numbers.
    texts: dict[str, str] = {}
    columns = [table.columns[name] for name in header]
    before = len(table)
    for cells in reader:
        line: int = reader.line_num  # type: ignore[attr-defined]
        if not cells or (len(cells) == 1 < len(header) and not cells[0].strip()):
            continue
        if len(cells) != len(header):
            raise UserError(f"{path} line {line}: {len(cells)} values; the header has {len(header)} columns")
        for column, cell in zip(columns, cells, strict=True):
            text = cell.strip()
            column.append("" if text in MISSING else texts.setdefault(text, text))
        table.origin.append((path, line))
    if len(table) == before:
        raise UserError(f"{path}: has a header and no rows")


def _delimiter(path: Path, first: str) -> str:
    if not first.strip():
        raise UserError(f"{path}: is empty, or its first line is; expected a header")
    best = max(",;\t", key=first.count)
    if best not in first:
        raise UserError(f"{path} line 1: one column only; expected a header with commas, semicolons or tabs")
    return best


def _header(path: Path, cells: Iterable[str]) -> list[str]:
    names = [cell.strip() for cell in cells]
    for number, name in enumerate(names, start=1):
        if not name:
            raise UserError(f"{path} line 1: column {number} has no name; give it one, or leave a row index out")
        if names.index(name) != number - 1:
            raise UserError(f"{path} line 1: two columns are named {name!r}; rename one")
    return names


def _same_columns(path: Path, header: list[str], table: Table) -> None:
    missing = [name for name in table.columns if name not in header]
    extra = [name for name in header if name not in table.columns]
    if missing:
        raise UserError(f"{path}: lacks the column {missing[0]!r} of train.csv{did_you_mean(missing[0], extra)}")
    if extra:
        raise UserError(f"{path}: has a column {extra[0]!r} that train.csv has not; remove it")
