"""Rows for a graph: checked against its inputs, and parted into those that calibrate and those that judge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from onnx import ModelProto

from distill.benchmarks.onnx_file.inputs import Signature, signature
from distill.errors import UserError
from distill.tasks.rows import count_rows, label_name, require_finite, require_type
from distill.types import Array, Feed

_BATCH = 32
_ENOUGH = 200  # rows from which on half of them can be kept from calibration, to judge by


@dataclass(frozen=True)
class GraphRows:
    """Samples: `calibration` to find ranges, `judged` to compare answers on, and the labels of the latter, if any.

    `source_name` is what messages call them. `batch` is the batch that the graph is fixed at, None where it takes any.
    `remarks` say what is odd about them.
    """

    source_name: str

    calibration: list[Feed]
    judged: list[Feed]
    labels: Array | None
    batch: int | None
    remarks: tuple[str, ...]

    @property
    def count(self) -> int:
        """How many are judged."""
        return sum(len(next(iter(feed.values()))) for feed in self.judged)


def inputs_of(core: ModelProto) -> list[Signature]:
    """Return what a graph takes. Raises UserError where that is nothing, or no numbers."""
    inputs = signature(core)
    if not inputs:
        raise UserError("it takes no inputs, so its answers cannot change; there is nothing to quantise")
    strings = [value.name for value in inputs if value.dtype == object]
    if strings:
        raise UserError(f"its input {strings[0]!r} takes strings; quantise the part behind them by itself")
    return inputs


def part_rows(
    arrays: Mapping[str, Array],
    inputs: Sequence[Signature],
    *,
    source_name: str,
    labels: str | None,
    samples: int,
    seed: int,
) -> GraphRows:
    """Part samples into those that calibrate and those that judge; from 200 rows on they are not the same.

    Arrays are [n, …] by input name, and labels, if there are any; without a name these may have a usual one.
    ``samples`` rows calibrate, at most, and ``seed`` decides which.

    Raises:
        UserError: names, types, shapes or numbers of rows that do not fit the graph, or values that are not finite.
    """
    names = [value.name for value in inputs]
    key = label_name(arrays, labels, names)
    rows = {name: value for name, value in arrays.items() if name != key}
    if set(rows) != set(names):
        raise UserError(f"{source_name}: has {', '.join(rows) or 'nothing'}; the model takes {', '.join(names)}")
    total = count_rows(arrays, source_name, fewest=1)
    for value in inputs:
        _require_fitting(value, rows[value.name], source_name)
    order = np.random.default_rng(seed).permutation(total)
    batch = next((value.shape[0] for value in inputs if value.shape and isinstance(value.shape[0], int)), None)
    if batch is not None and total < batch:
        raise UserError(
            f"{source_name}: has {total} rows, fewer than the batch of {batch} that the model is fixed at; give more "
            "rows, or export it with a dynamic batch"
        )
    half = min(samples, total // 2)
    disjoint = total >= _ENOUGH and min(half, total - half) >= (batch or 1)
    calibrating, judging = (order[:half], order[half:]) if disjoint else (order, order)
    if batch:  # rows that do not fill a batch of a fixed size are left out
        calibrating, judging = (part[: len(part) // batch * batch] for part in (calibrating, judging))
    return GraphRows(
        source_name=source_name,
        calibration=_batches(rows, calibrating, batch),
        judged=_batches(rows, judging, batch),
        labels=None if key is None else arrays[key][judging],
        batch=batch,
        remarks=_remarks(rows, source_name, total, disjoint=disjoint),
    )


def _require_fitting(expected: Signature, values: Array, source_name: str) -> None:
    """Refuse an array that the graph does not take, or that holds a value that is not finite."""
    require_type(source_name, expected.name, values, expected.dtype.name, "the model takes")
    # The first axis holds all rows: how many of them make a batch is for the graph to say.
    sizes = None if expected.shape is None else expected.shape[1:]
    fits = sizes is None or (
        values.ndim == len(sizes) + 1
        and all(not isinstance(size, int) or size == have for size, have in zip(sizes, values.shape[1:], strict=True))
    )
    if sizes is not None and not fits:
        shape = ", ".join(["rows", *("?" if size is None else str(size) for size in sizes)])
        raise UserError(
            f"{source_name}: {expected.name} has the shape {list(values.shape)}, the model takes [{shape}]; write the "
            "rows as those that it was trained on"
        )
    require_finite(source_name, expected.name, values)


def _batches(arrays: Mapping[str, Array], order: Array, batch: int | None) -> list[Feed]:
    step = batch or _BATCH
    return [
        {name: value[order[start : start + step]] for name, value in arrays.items()}
        for start in range(0, len(order), step)
    ]


def _remarks(arrays: Mapping[str, Array], source_name: str, total: int, *, disjoint: bool) -> tuple[str, ...]:
    """Say what makes samples a poor judge: all alike, empty, or those that calibrate as well."""
    remarks = [
        f"{source_name}: {name} is zero in every row; the ranges and the drop say nothing about real samples"
        for name, value in arrays.items()
        if value.dtype.kind == "f" and not value.any()
    ]
    if not remarks and total > 1 and all((value == value[:1]).all() for value in arrays.values()):
        remarks.append(f"{source_name}: all {total} rows are equal; the ranges and the drop rest on one sample")
    if not disjoint:
        remarks.append(f"the rows that found the ranges also judge; {_ENOUGH} rows or more are kept apart")
    return tuple(remarks)
