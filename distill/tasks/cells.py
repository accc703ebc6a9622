"""Whether a table's column holds numbers, which of its cells are missing, and which cannot be read as they are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from distill.errors import UserError
from distill.tasks import number_parsing as numerals
from distill.tasks.settings import CsvSettings
from distill.tasks.table_file import Table
from distill.wording import quoted, yaml_list

_MOSTLY = 0.9
"""Share of numbers from which on a column's other texts are taken for faults, not for categories."""
_QUANTITY = 20
"""Different numbers from which on half of the cells are enough for that."""
_SHOWN = 5


class Column:
    """A column read by the grammar of ``docs/tables.md``.

    ``values`` are float64 [N], NaN where missing and finite in float32, or None for text; ``missing`` counts the texts
    that were read as missing among numbers; ``why_text`` says why digits were read as text.

    Raises:
        UserError: nearly all cells are numbers and the rest is neither missing nor a number, numbers are written in a
            notation that could be misread, or a number is not finite in float32.
    """

    def __init__(self, table: Table, name: str, settings: CsvSettings) -> None:
        self.table, self.name, self.settings = table, name, settings
        self.cells = table.columns[name]
        self.values: NDArray[np.float64] | None = None
        self.missing: dict[str, int] = {}
        self.why_text = ""
        self.named_category = name in settings.categorical
        if not self.named_category:
            self._read()

    def _read(self) -> None:
        name, settings = self.name, self.settings
        self.counts = Counter(self.cells)
        self.forced = name in settings.numeric
        absent = {text.strip().lower() for text in settings.missing}
        present = [text for text in self.counts if text and text.lower() not in absent]
        self.mark = settings.decimal or numerals.decimal_mark(present)
        # -999 as a missing value is also -999.0.
        values = {numerals.plain(text) for text in absent if numerals.is_quantity(text)}
        if values:
            present = [text for text in present if self._plain(text) not in values]
        self.present = present
        self.codes = [] if self.forced else [text for text in present if numerals.is_code(text)]
        codes = set(self.codes)
        self.numbers = [text for text in present if text not in codes and numerals.is_number(text, self.mark)]
        readable = codes.union(self.numbers)
        self.others = [text for text in present if text not in readable]
        if self.others and (self.forced or not self.codes):
            self._check_others()
        self.why_text = self._why_text()
        if not (self.codes or self.others or self.why_text):
            self._check_thousands()
            self.values = self._values()
            readable = set(present)
            self.missing = {text: n for text, n in self.counts.items() if text not in readable}

    def _plain(self, text: str) -> str | None:
        return numerals.plain(text, self.mark) if numerals.is_quantity(text, self.mark) else None

    def _rows(self, texts: Iterable[str]) -> int:
        return sum(self.counts[text] for text in texts)

    def at(self, text: str) -> str:
        """Return a text in quotes, with the file and line where it first stands."""
        return f"{quoted(text)} ({self.table.where(self.cells.index(text))})"

    def _share(self, texts: Iterable[str]) -> float:
        return self._rows(texts) / max(1, self._rows(self.present))

    def _check_others(self) -> None:
        """Refuse a column of numbers that holds other texts: neither reading would be what the user means."""
        as_text = f"name the column in data.categorical: {yaml_list(self.name)}"
        if self.forced:
            as_text = "take the column out of data.numeric"
        noted = {text: reason for text in self.others if (reason := numerals.notation(text, self.mark))}
        if noted and self._share([*self.numbers, *noted]) >= _MOSTLY:
            text, reason = next(iter(noted.items()))
            raise UserError(
                f"column {self.name!r}: {self.at(text)} is written with {reason}; write plain numbers, such as "
                f"-1234{self.mark}5, in all of its cells, or {as_text} to keep texts"
            )
        enough = len(self.numbers) >= _QUANTITY and self._share(self.numbers) >= 0.5
        if self.forced or enough or self._share(self.numbers) >= _MOSTLY:
            examples = ", ".join(self.at(text) for text in self.others[:_SHOWN])
            more = f" and {len(self.others) - _SHOWN} other texts" if len(self.others) > _SHOWN else ""
            wrong, total = self._rows(self.others), self._rows(self.present)
            raise UserError(
                f"column {self.name!r}: {wrong} of {total} cells are no numbers: {examples}{more}; mend them, add what "
                f"means a missing value to data.missing, or {as_text}"
            )

    def _why_text(self) -> str:
        """Return why a column of digits is text: it holds codes, or one number in spellings that differ."""
        if self.forced or not self.numbers + self.codes or self._share([*self.numbers, *self.codes]) < _MOSTLY:
            return ""
        reads = f"data.numeric: {yaml_list(self.name)} reads numbers"
        if self.codes:
            return f"{self.at(self.codes[0])} is a code, not a number; {reads}"
        finite = [text for text in self.numbers if numerals.is_quantity(text, self.mark)]
        pair = numerals.one_by_exponent(finite, self.mark)
        return f"{self.at(pair[0])} and {self.at(pair[1])} would be one number; {reads}" if pair else ""

    def _check_thousands(self) -> None:
        """Refuse numbers such as 1,234 whose mark may separate thousands, where nothing tells."""
        if self.settings.decimal is not None or not numerals.may_be_thousands(self.numbers, self.mark):
            return
        marked = [text for text in self.numbers if self.mark in text]
        if self.mark == ".":
            # Where semicolons separate, commas are decimal marks, and 950 beside 1.234 is a thousand and a bit.
            whole = [numerals.value_of(text) for text in self.numbers if self.mark not in text]
            if ";" not in self.table.delimiters or not any(whole) or max(map(abs, whole)) >= 1000:
                return
        raise UserError(
            f"column {self.name!r}: {self.at(marked[0])} can be read in two ways; set data.decimal: {self.mark!r} if "
            f"{self.mark!r} is the decimal mark, or write numbers without separators of thousands"
        )

    def _values(self) -> NDArray[np.float64]:
        values = {text: numerals.value_of(text, self.mark) for text in self.numbers}
        numbers = np.asarray([values.get(text, np.nan) for text in self.cells], np.float64)
        with np.errstate(over="ignore"):
            infinite = np.flatnonzero(np.isinf(numbers.astype(np.float32)))
        if len(infinite):
            row = int(infinite[0])
            marks = [text for text in self.settings.missing if text.upper() == "NA"]
            raise UserError(
                f"{self.table.where(row)}: column {self.name!r} is {quoted(self.cells[row])[1:-1]}, no finite float32; "
                "mend it or " + (f"write {marks[0]}" if marks else "leave it empty")
            )
        return numbers
