"""Tables in the graph: one input a column, numbers with NaN and text with "" where a value is missing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import ClassVar

import numpy as np
from onnx import ModelProto, TensorProto

from distill.errors import UserError
from distill.types import Array

from .preprocess import BATCH, Front, InputSpec

_ML = "ai.onnx.ml"


@dataclass(frozen=True)
class NumericColumn:
    """A column of numbers: float32 [N, 1] -> [N, 1]; NaN becomes ``fill``, then ``(x − mean) · scale``."""

    name: str
    fill: float
    mean: float
    scale: float
    width: ClassVar[int] = 1


@dataclass(frozen=True)
class CategoryColumn:
    """A column of names: text [N, 1] -> one-hot [N, len(categories) + 1]; the last slot is "missing or never seen"."""

    name: str
    categories: tuple[str, ...]

    @property
    def width(self) -> int:
        """How many features the column becomes."""
        return len(self.categories) + 1


Column = NumericColumn | CategoryColumn


@dataclass(frozen=True)
class ColumnsPreprocess:
    """One input a column -> float32 [N, F], the columns' features side by side in order.

    Raises:
        UserError: no columns, a name twice or empty, a number that is not finite, a category twice or empty.
    """

    columns: tuple[Column, ...]

    def __post_init__(self) -> None:
        names = [column.name for column in self.columns]
        if not names or len(set(names)) != len(names) or "" in names:
            raise UserError(f"columns={names}: at least one, each with a name of its own")
        for column in self.columns:
            if isinstance(column, NumericColumn):
                if not np.all(np.isfinite([column.fill, column.mean, column.scale])):
                    raise UserError(f"column {column.name!r}: fill, mean and scale must be finite")
            elif len(set(column.categories)) != len(column.categories) or "" in column.categories:
                raise UserError(f'column {column.name!r}: each category once, and none empty ("" means missing)')

    @property
    def width(self) -> int:
        """F, the number of features that the core graph takes."""
        return sum(column.width for column in self.columns)

    def input_spec(self) -> tuple[InputSpec, ...]:
        """Describe one input a column, [N, 1]."""
        return tuple(
            InputSpec(column.name, "float32" if isinstance(column, NumericColumn) else "str", (BATCH, 1))
            for column in self.columns
        )

    def apply(self, raw: Mapping[str, Array]) -> Array:
        """Map one array [N, 1] a column to float32 [N, F]."""
        parts: list[Array] = []
        for column in self.columns:
            values = np.asarray(raw[column.name])
            if isinstance(column, NumericColumn):
                fill, mean, scale = (np.float32(number) for number in (column.fill, column.mean, column.scale))
                numbers = values.astype(np.float32)
                parts.append((np.where(np.isnan(numbers), fill, numbers) - mean) * scale)
            else:
                numbers_of = {name: place for place, name in enumerate(column.categories)}
                places = [[numbers_of.get(str(value), len(numbers_of))] for value in values.reshape(-1)]
                parts.append((np.asarray(places) == np.arange(column.width)).astype(np.float32))
        return np.concatenate(parts, axis=1)

    def prepend(self, proto: ModelProto, *, input_name: str) -> ModelProto:
        """Return a model with one input a column in place of ``input_name``; the one given is not changed.

        Raises:
            UserError: the model has no such input, it does not take [N, F], or a column has the name of its output.
        """
        front = Front(proto, input_name, (self.width,), self.input_spec())
        parts = []
        for numeric, run in groupby(self.columns, key=lambda column: isinstance(column, NumericColumn)):
            if numeric:  # neighbours are standardised together: three small nodes instead of three a column
                parts.append(_numbers(front, [column for column in run if isinstance(column, NumericColumn)]))
            else:
                parts += [_one_hot(front, column) for column in run if isinstance(column, CategoryColumn)]
        front.add("Concat", parts, front.target, axis=1)
        return front.finish()


def _numbers(front: Front, columns: list[NumericColumn]) -> str:
    names = [column.name for column in columns]
    joined = front.add("Concat", names, axis=1) if len(names) > 1 else names[0]
    fill, mean, scale = (tuple(getattr(c, name) for c in columns) for name in ("fill", "mean", "scale"))
    return front.standardise(joined, fill, mean, scale)


def _one_hot(front: Front, column: CategoryColumn) -> str:
    """Compare the category's number with 0…K: two nodes, where OneHot would need a Reshape as well."""
    keys = column.categories or ("",)  # where nothing was seen in training every value is unknown
    number = front.add(
        "LabelEncoder",
        [column.name],
        domain=_ML,
        keys_strings=list(keys),
        values_int64s=list(range(len(keys))),
        default_int64=len(column.categories),
    )
    slots = front.constant("slots", np.arange(column.width, dtype=np.int64).reshape(1, -1))
    return front.add("Cast", [front.add("Equal", [number, slots])], to=TensorProto.FLOAT)
