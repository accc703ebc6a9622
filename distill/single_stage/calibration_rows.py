"""Rows for a graph: checked against its inputs, and parted into those that calibrate and those that judge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from onnx import ModelProto

from distill.benchmarks.onnx_file.axes import batch_axes, take
from distill.benchmarks.onnx_file.signature import Signature, signature
from distill.errors import UserError
from distill.tasks.rows import count_rows, label_name, require_finite, require_type
from distill.types import Array, Feed

_BATCH = 32
_ENOUGH = 200  # rows from which on half of them can be kept from calibration, to judge by


@dataclass(frozen=True)
class GraphRows:
    """Samples: `calibration` to find ranges, `judged` to compare answers on, and the labels of the latter, if any.

    `source_name` is what messages call them. `batch` is the batch that the graph is fixed at, None where it takes any.
    `remarks` say what is odd about them, `axis` is that of the first input along which they lie.
    """

    source_name: str
    calibration: list[Feed]
    judged: list[Feed]
    labels: Array | None
    batch: int | None
    remarks: tuple[str, ...]
    axis: int = 0

    @property
    def count(self) -> int:
        """How many are judged."""
        return sum(next(iter(feed.values())).shape[self.axis] for feed in self.judged)


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

    Arrays are [n, …] by input name, with the samples along every axis of the batch, and labels, if there are any, by
    the name ``labels`` or a usual one. An input without such an axis, as a scalar, has one value for all, and so has
    one with a single row, as a state. At most ``samples`` rows calibrate, and ``seed`` decides which.

    Raises:
        UserError: names, types, shapes or numbers of rows that do not fit the graph, or values that are not finite.
    """
    names = [value.name for value in inputs]
    key = label_name(arrays, labels, names)
    rows = {name: value for name, value in arrays.items() if name != key}
    if set(rows) != set(names):
        raise UserError(f"{source_name}: has {', '.join(rows) or 'nothing'}; the model takes {', '.join(names)}")
    axes, batch = _sample_axes(inputs, rows)
    for value in inputs:
        _require_fitting(value, rows[value.name], axes[value.name], source_name)
    # Inputs whose rows come first stand first, since the first input tells how many there are.
    rows = {name: rows[name] for name in sorted(rows, key=lambda name: (axes[name] or (9,))[0])}
    rows, repeated = _repeated(rows, axes)
    lead = {name: np.moveaxis(rows[name], own[0], 0) for name, own in axes.items() if own}
    total = count_rows(lead | ({} if key is None else {key: arrays[key]}), source_name, fewest=1)
    order = np.random.default_rng(seed).permutation(total)
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
        calibration=_batches(rows, axes, calibrating, batch),
        judged=_batches(rows, axes, judging, batch),
        labels=None if key is None else arrays[key][judging],
        batch=batch,
        axis=next((axes[name][0] for name in rows if axes[name]), 0),
        remarks=(
            *(f"{source_name}: {name} is one row, which was taken for all {total}" for name in repeated),
            *_remarks({k: v for k, v in lead.items() if k not in repeated}, source_name, total, disjoint=disjoint),
        ),
    )


def _sample_axes(
    inputs: Sequence[Signature], rows: Mapping[str, Array]
) -> tuple[dict[str, tuple[int, ...]], int | None]:
    """Return along which axes of each input samples lie, and the batch that the graph is fixed at, if it is.

    Of a graph with a fixed batch that is the first axis, but of inputs that have one value for all.
    """
    axes = batch_axes(inputs)
    if any(axes.values()):
        return {value.name: axes[value.name] or ((0,) if value.shape is None else ()) for value in inputs}, None
    most = max((len(values) for values in rows.values() if values.ndim), default=0)
    constant = {
        value.name
        for value in inputs
        if value.shape == () or (value.shape == rows[value.name].shape and len(rows[value.name]) < most)
    }
    batch = next((value.shape[0] for value in inputs if value.shape and value.name not in constant), None)
    return {name: () if name in constant else (0,) for name in axes}, batch if isinstance(batch, int) else None


def _repeated(rows: Mapping[str, Array], axes: Mapping[str, Sequence[int]]) -> tuple[dict[str, Array], list[str]]:
    """Take a single row of an input, such as a state, for all rows that the others have; name such inputs."""
    most = max((rows[name].shape[own[0]] for name, own in axes.items() if own), default=1)
    single = [name for name, own in axes.items() if own and most > 1 and rows[name].shape[own[0]] == 1]
    index = np.zeros(most, np.int64)
    return {name: take(value, index, axes[name]) if name in single else value for name, value in rows.items()}, single


def _require_fitting(expected: Signature, values: Array, axes: Sequence[int], source_name: str) -> None:
    """Refuse an array that the graph does not take, or that holds a value that is not finite."""
    require_type(source_name, expected.name, values, expected.dtype.name, "the model takes")
    # An axis of samples holds all rows: how many of them make a batch is for the graph to say.
    sizes = (
        None if expected.shape is None else [None if axis in axes else size for axis, size in enumerate(expected.shape)]
    )
    fits = sizes is None or (
        values.ndim == len(sizes)
        and all(not isinstance(size, int) or size == have for size, have in zip(sizes, values.shape, strict=True))
    )
    if sizes is not None and not fits:
        names = ("rows" if axis in axes else "?" if size is None else str(size) for axis, size in enumerate(sizes))
        raise UserError(
            f"{source_name}: {expected.name} has the shape {list(values.shape)}, the model takes [{', '.join(names)}]; "
            "write the rows as those that it was trained on"
        )
    require_finite(source_name, expected.name, values)


def _batches(
    arrays: Mapping[str, Array], axes: Mapping[str, Sequence[int]], order: Array, batch: int | None
) -> list[Feed]:
    step = batch or _BATCH
    return [
        {name: take(value, order[start : start + step], axes[name]) for name, value in arrays.items()}
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
