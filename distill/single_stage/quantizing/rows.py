"""Samples of the verb `quantize`: read by name, checked against the graph, parted to calibrate and to judge."""

from __future__ import annotations

import zlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from onnx import ModelProto

from distill.benchmarks.onnx_file.inputs import Signature, signature
from distill.benchmarks.parse import read_npz
from distill.errors import UserError
from distill.types import Array, Feed

_BATCH = 32
_ENOUGH = 200  # rows from which on half of them can be kept from calibration, to judge by
_LABELS = ("labels", "label", "targets", "y")


@dataclass(frozen=True)
class Rows:
    """Samples: `calibration` to find ranges, `judged` to compare answers on, and the labels of the latter, if any.

    `where` is what messages call them. `batch` is the batch that the graph is fixed at, None where it takes any.
    `remarks` say what is odd about them.
    """

    where: str

    calibration: list[Feed]
    judged: list[Feed]
    labels: Array | None
    batch: int | None
    remarks: tuple[str, ...]

    @property
    def count(self) -> int:
        """How many are judged."""
        return sum(len(next(iter(feed.values()))) for feed in self.judged)


def read_arrays(path: Path) -> dict[str, Array]:
    """Read the samples and labels by name. Raises UserError for what is no .npz, or holds pickled objects."""
    try:
        return read_npz(path)
    except UserError as error:  # its words are those of `bench`
        raise UserError(str(error).replace("--inputs", "--data", 1)) from error
    except (zlib.error, NotImplementedError) as error:
        raise UserError(f"--data {path}: is damaged ({error}); write it again with np.savez") from error


def label_name(arrays: Collection[str], said: str | None, inputs: Collection[str]) -> str | None:
    """Return which array holds the labels: the one that was said, or one of a usual name that is no input.

    Raises:
        UserError: there is no array of the name that was said, or it is an input.
    """
    if said is None:
        return next((name for name in _LABELS if name in arrays and name not in inputs), None)
    if said not in arrays:
        raise UserError(f"--labels {said}: is not in the data, which have {', '.join(arrays) or 'nothing'}")
    if said in inputs:
        raise UserError(f"--labels {said}: is an input of the model; give the labels another name")
    return said


def inputs_of(core: ModelProto) -> list[Signature]:
    """Return what a graph takes. Raises UserError where that is nothing, or no numbers."""
    inputs = signature(core)
    if not inputs:
        raise UserError("it takes no inputs, so its answers cannot change; there is nothing to quantise")
    for one in inputs:
        if one.dtype == object:
            raise UserError(f"its input {one.name!r} takes strings; quantise the part behind them by itself")
    return inputs


def part_rows(
    arrays: Mapping[str, Array], inputs: Sequence[Signature], *, where: str, labels: str | None, samples: int, seed: int
) -> Rows:
    """Part samples into those that calibrate and those that judge; from 200 rows on they are not the same.

    Args:
        arrays: samples by input name [n, …], and labels, if there are any.
        inputs: what the graph takes.
        where: what messages call the arrays.
        labels: the name of the labels; None where they may have a usual one.
        samples: rows to calibrate on, at most.
        seed: of which rows do what.

    Raises:
        UserError: names, types, shapes or numbers of rows that do not fit the graph, or values that are not finite.
    """
    names = [one.name for one in inputs]
    key = label_name(arrays, labels, names)
    given = {name: value for name, value in arrays.items() if name != key}
    if set(given) != set(names):
        raise UserError(f"{where}: has {', '.join(given) or 'nothing'}; the model takes {', '.join(names)}")
    total = _same_length(arrays, where)
    for one in inputs:
        _check(one, given[one.name], where)
    order = np.random.default_rng(seed).permutation(total)
    batch = next((one.shape[0] for one in inputs if one.shape and isinstance(one.shape[0], int)), None)
    if batch is not None and total < batch:
        raise UserError(
            f"{where}: has {total} rows, fewer than the batch of {batch} that the model is fixed at; give more rows, "
            "or export it with a dynamic batch"
        )
    half = min(samples, total // 2)
    apart = total >= _ENOUGH and min(half, total - half) >= (batch or 1)
    first, rest = (order[:half], order[half:]) if apart else (order, order)
    first, rest = _whole(first, batch), _whole(rest, batch)
    return Rows(
        where=where,
        calibration=_batches(given, first, batch),
        judged=_batches(given, rest, batch),
        labels=None if key is None else arrays[key][rest],
        batch=batch,
        remarks=_remarks(given, where, total, apart=apart),
    )


def _same_length(arrays: Mapping[str, Array], where: str) -> int:
    lengths = {name: len(value) if value.ndim else 0 for name, value in arrays.items()}
    total = next(iter(lengths.values()), 0)
    if len(set(lengths.values())) != 1 or total == 0:
        raise UserError(f"{where}: has rows {lengths}; every array needs the same number, one at least")
    return total


def _check(one: Signature, values: Array, where: str) -> None:
    """Refuse an array that the graph does not take, or that holds a value that is not finite."""
    if values.dtype != one.dtype:
        raise UserError(
            f"{where}: {one.name} is {values.dtype.name}, the model takes {one.dtype.name}; write it with "
            f".astype({one.dtype.name!r})"
        )
    # The first axis holds all rows: how many of them make a batch is for the graph to say.
    wanted = None if one.shape is None else one.shape[1:]
    fits = wanted is None or (
        values.ndim == len(wanted) + 1
        and all(not isinstance(size, int) or size == have for size, have in zip(wanted, values.shape[1:], strict=True))
    )
    if wanted is not None and not fits:
        raise UserError(
            f"{where}: {one.name} has the shape {list(values.shape)}, the model takes {_shown(wanted)}; write "
            "the rows as those that it was trained on"
        )
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        row = int(np.argmin(np.isfinite(values).reshape(len(values), -1).all(axis=1)))
        raise UserError(
            f"{where}: {one.name} holds NaN or infinite values, first in row {row}; clean or drop such rows"
        )


def _shown(shape: Sequence[int | str | None]) -> str:
    return "[" + ", ".join(["rows", *("?" if size is None else str(size) for size in shape)]) + "]"


def _whole(chosen: Array, batch: int | None) -> Array:
    """Leave out the rows that do not fill a batch of a fixed size."""
    return chosen[: len(chosen) // batch * batch] if batch else chosen


def _batches(arrays: Mapping[str, Array], chosen: Array, batch: int | None) -> list[Feed]:
    step = batch or _BATCH
    return [
        {name: value[chosen[start : start + step]] for name, value in arrays.items()}
        for start in range(0, len(chosen), step)
    ]


def _remarks(arrays: Mapping[str, Array], where: str, total: int, *, apart: bool) -> tuple[str, ...]:
    """Say what makes samples a poor judge: all alike, empty, or those that calibrate as well."""
    found = [
        f"{where}: {name} is zero in every row; the ranges and the drop say nothing about real samples"
        for name, value in arrays.items()
        if value.dtype.kind == "f" and not value.any()
    ]
    if not found and total > 1 and all((value == value[:1]).all() for value in arrays.values()):
        found.append(f"{where}: all {total} rows are equal; the ranges and the drop rest on one sample")
    if not apart:
        found.append(f"the rows that found the ranges also judge; {_ENOUGH} rows or more are kept apart")
    return tuple(found)
