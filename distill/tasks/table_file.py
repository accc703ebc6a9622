"""Reading CSV files into columns of text, with every cell's file and line kept for messages."""

from __future__ import annotations

import csv
from array import array
from bisect import bisect
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from distill.errors import UserError
from distill.tasks.base import SPLITS
from distill.tasks.splits import places_of_splits
from distill.tasks.table_text import PACKED, TableText
from distill.wording import did_you_mean

DELIMITERS = ("\t", ";", ",")
_SAMPLE = 100
"""Records that decide which delimiter a file has."""
_LONGEST_CELL = 1 << 27
_NAMES = (".csv", ".tsv")


@dataclass(frozen=True)
class Table:
    """Columns of text, without white space around it; ``lines[row]`` is the line of its file where the row begins.

    ``files`` are the files, each with the number of its first row. ``parts`` says which rows each split's file held; it
    is empty for a single file. ``delimiters`` are the files' own.
    """

    columns: dict[str, list[str]] = field(default_factory=dict)
    lines: array[int] = field(default_factory=lambda: array("q"))
    files: list[tuple[int, Path]] = field(default_factory=list)
    parts: dict[str, range] = field(default_factory=dict)
    delimiters: set[str] = field(default_factory=set)

    def __len__(self) -> int:
        return len(self.lines)

    def where(self, row: int) -> str:
        """Return "FILE line N"."""
        place = bisect([first for first, _ in self.files], row) - 1
        return f"{self.files[place][1]} line {self.lines[row]}"

    def column(self, name: str, field: str) -> list[str]:
        """Return a column that the config names in ``field``; UserError if there is none."""
        if name not in self.columns:
            raise UserError(f"{field}={name!r}: no such column{did_you_mean(name, self.columns)}")
        return self.columns[name]


def read_table(path: Path) -> Table:
    """Read one CSV file, or train.csv with validation.csv and test.csv in a folder.

    Comma, semicolon or tab, whichever gives the rows as many cells as the header; packed and coded as ``TableText``
    takes it. A cell in quotes may hold delimiters, doubled quotes and line breaks. No cell is interpreted.

    Raises:
        UserError: a file is missing, empty, ragged, or has another header than train.csv.
    """
    table = Table()
    if path.is_file():
        _append(table, path)
        return table
    if not path.is_dir():
        near = sorted(file.name for file in path.parent.glob("*.[ct]sv*")) if path.parent.is_dir() else []
        raise UserError(f"data.path={path}: no such file or folder{did_you_mean(path.name, near)}")
    named = [(_stem(file), file) for file in sorted(path.iterdir()) if _stem(file) and file.is_file()]
    splits = places_of_splits(path, named, "rename one")
    if "train" not in splits:
        raise UserError(
            f"data.path={path}: holds no train.csv; name a file, or put train.csv (and validation.csv, test.csv) there"
        )
    for split in filter(splits.get, SPLITS):
        start = len(table)
        _append(table, splits[split])
        table.parts[split] = range(start, len(table))
    return table


def _stem(path: Path) -> str:
    """Return the name of a table's file without its endings; "" for a hidden file, or one of another kind."""
    name = path.with_suffix("") if path.suffix.lower() in PACKED else path
    return name.stem if name.suffix.lower() in _NAMES and not path.name.startswith(".") else ""


def _append(table: Table, path: Path) -> None:
    """Add a file's rows to the table's columns, by name."""
    try:
        text = TableText(path)
        with _long_cells():
            delimiter = _delimiter(text)
            table.delimiters.add(delimiter)
            with closing(text.lines()) as lines:
                reader = _records(path, lines, delimiter)
                header = _header(path, next(reader)[1])
                if not table.columns:
                    table.columns.update({name: [] for name in header})
                _same_columns(path, header, table)
                _append_rows(table, path, header, reader)
    except UnicodeError as error:
        code = "UTF-8" if text.encoding.startswith("utf-8") else text.encoding.upper()
        line = text.undecodable_line() if code == "UTF-8" else ""
        raise UserError(f"{path}{line}: not {code}; save the file as UTF-8") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error


@contextmanager
def _long_cells() -> Iterator[None]:
    """Let a cell be longer than the csv module's 131,072 characters: a text that the user drops may be."""
    before = csv.field_size_limit(_LONGEST_CELL)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _records(path: Path, lines: Iterator[str], delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Yield each record's first line number and its cells, from the lines of a file.

    Raises:
        UserError: a quote is out of place or not closed; it names the line where the record begins.
    """
    reader = csv.reader(lines, delimiter=delimiter, strict=True, skipinitialspace=True)
    line = 1
    try:
        for cells in reader:
            if any("\0" in cell for cell in cells):
                raise UserError(f"{path} line {line}: holds a NUL character; save the file as UTF-8")
            yield line, [cell.strip() for cell in cells]
            line = reader.line_num + 1
    except csv.Error as error:
        hint = ": a quote is not closed" if "unexpected end" in str(error) else f" ({error})"
        raise UserError(f"{path} line {line}: the row that begins here cannot be read{hint}; mend it") from error


def _append_rows(table: Table, path: Path, header: list[str], reader: Iterator[tuple[int, list[str]]]) -> None:
    # One object for each distinct text: categories repeat, and so do many numbers.
    texts: dict[str, str] = {}
    columns = [table.columns[name] for name in header]
    before = len(table)
    table.files.append((before, path))
    for line, cells in reader:
        if len(cells) < 2 and not any(cells):
            continue
        # A separator at a row's end says nothing; a text behind the last column does.
        if len(cells) < len(header) or any(cells[len(header) :]):
            raise UserError(f"{path} line {line}: {len(cells)} values; the header has {len(header)} columns")
        for column, text in zip(columns, cells, strict=False):
            column.append(texts.setdefault(text, text))
        table.lines.append(line)
    if len(table) == before:
        raise UserError(f"{path}: has a header and no rows")


def _delimiter(text: TableText) -> str:
    """Return the delimiter that gives most of the first rows as many cells as the header, and the most cells."""
    path = text.path
    with closing(text.lines()) as lines:
        if not next(lines, "").strip():
            raise UserError(f"{path}: is empty, or its first line is; expected a header")
    fits: dict[str, tuple[float, int]] = {}
    problem: UserError | None = None
    for delimiter in DELIMITERS:
        lengths: list[int] = []
        try:
            with closing(text.lines()) as lines:
                lengths.extend(len(cells) for _, cells in islice(_records(path, lines, delimiter), _SAMPLE))
        except UserError as error:  # a damaged row further down is told when it is read
            problem = error
        if lengths and lengths[0] > 1:
            fits[delimiter] = sum(length == lengths[0] for length in lengths[1:]) / len(lengths), lengths[0]
    if not fits:
        if problem is not None:
            raise problem
        raise _one_column(path)
    return max(fits, key=lambda delimiter: fits[delimiter])


def _header(path: Path, names: list[str]) -> list[str]:
    """Return the columns' names; separators at the line's end make no column."""
    while names and not names[-1]:
        names = names[:-1]
    if len(names) < 2:
        raise _one_column(path)
    for number, name in enumerate(names, start=1):
        if not name:
            raise UserError(f"{path} line 1: column {number} has no name; give it one, or leave a row index out")
        if names.index(name) != number - 1:
            raise UserError(f"{path} line 1: two columns are named {name!r}; rename one")
    return names


def _one_column(path: Path) -> UserError:
    return UserError(f"{path} line 1: one column only; expected a header with commas, semicolons or tabs")


def _same_columns(path: Path, header: list[str], table: Table) -> None:
    missing = [name for name in table.columns if name not in header]
    extra = [name for name in header if name not in table.columns]
    if missing:
        raise UserError(f"{path}: lacks the column {missing[0]!r} of train.csv{did_you_mean(missing[0], extra)}")
    if extra:
        raise UserError(f"{path}: has a column {extra[0]!r} that train.csv has not; remove it")
