"""The ``data`` sections of tables: the built-in set, and the user's own CSV files. Imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import BeforeValidator, Field
from pydantic.dataclasses import dataclass

from distill.tasks.settings import STRICT, DataSettings, PositiveLabel, TestShare

MISSING = ("NA", "N/A", "NaN", "null", "none", "?", "-")


def _as_texts(cells: object) -> object:
    """Take -999 and null, which YAML reads as a number and as nothing, for the texts that they are in a table."""
    if not isinstance(cells, list | tuple):
        return cells
    return tuple("null" if cell is None else str(cell) if type(cell) in (int, float) else cell for cell in cells)


@dataclass(frozen=True, kw_only=True, config=STRICT)
class BreastCancerSettings(DataSettings):
    """scikit-learn's embedded Breast Cancer Wisconsin data."""

    loader: ClassVar[str] = "tabular:load_breast_cancer"

    source: Literal["breast-cancer"] = Field(default="breast-cancer", description="scikit-learn's embedded tumours.")
    test: TestShare = None
    positive: PositiveLabel = None


@dataclass(frozen=True, kw_only=True, config=STRICT)
class CsvSettings(DataSettings):
    """The user's own table."""

    loader: ClassVar[str] = "tabular:load_csv"

    source: Literal["csv"] = Field(default="csv", description="A table of your own.")
    path: Path = Field(
        description="The CSV file, or a folder with train.csv. A relative path starts at the config's folder."
    )
    target: str = Field(description="The column that holds the class.")
    test: TestShare = None
    positive: PositiveLabel = None
    group: str | None = Field(
        default=None, description="A column (patient, user, site) whose rows all stay in one split."
    )
    split: str | None = Field(default=None, description="A column that holds train, validation or test for each row.")
    categorical: tuple[str, ...] = Field(
        default=(), description="Columns to read as categories although they hold numbers (or many values)."
    )
    numeric: tuple[str, ...] = Field(
        default=(), description="Columns to read as numbers although their texts look like codes (0123, 1e3)."
    )
    missing: Annotated[tuple[str, ...], BeforeValidator(_as_texts)] = Field(
        default=MISSING,
        description="What means a missing value in a column of numbers, in any case, beside the empty cell.",
    )
    decimal: Literal[".", ","] | None = Field(
        default=None, description="The decimal mark. Default: for each column the one that its cells have."
    )
    drop: tuple[str, ...] = Field(default=(), description="Columns that are no input, such as an identifier.")

    def conflicts(self) -> list[str]:
        """Say which fields do not go together."""
        problems = super().conflicts()
        if self.group is not None and self.split is not None:
            problems.append("group and split: give one; a split column already says where each row belongs")
        problems += [
            f"numeric and categorical both name {name!r}; remove it from one"
            for name in self.numeric
            if name in self.categorical
        ]
        problems += [
            f"target={self.target!r} is also in {field}; remove it there"
            for field in ("drop", "categorical", "numeric")
            if self.target in getattr(self, field)
        ]
        return problems
