"""Rows by input name, to learn from without a whole task: an `.npz`, arrays, a Dataset or a DataLoader."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_map
from torch.utils.data import DataLoader, Dataset

from distill.benchmarks.parse import read_npz
from distill.errors import UserError
from distill.outputs import Output
from distill.tasks.arrays import as_array
from distill.tasks.base import Inputs
from distill.types import Array

LABELS = "labels"
_LABEL_NAMES = (LABELS, "label", "targets", "y")
_COLLATED = 256  # samples of a Dataset that are fetched at once

Moved = TypeVar("Moved")
Source: TypeAlias = Path | Mapping[str, Any] | tuple[Any, ...] | Dataset[Any] | DataLoader[Any]
"""An `.npz`; arrays by input name; (inputs, labels); or what yields samples of one of these two forms."""


def read_rows(source: Source, first_input: str) -> dict[str, Array]:
    """Return arrays by name, labels among them.

    Args:
        source: where the rows are; a sample of a Dataset that is neither a mapping nor a tuple is one input.
        first_input: the name of an input that has none, as in (inputs, labels).

    Raises:
        UserError: it is no .npz, holds pickled objects, or no rows.
    """
    if isinstance(source, str | Path):
        return _read_npz(Path(source))
    if isinstance(source, Dataset):
        source = DataLoader(source, batch_size=_COLLATED)
    if isinstance(source, DataLoader):
        batches = [_by_name(batch, first_input) for batch in source]
        if not batches:
            raise UserError("--data: the Dataset has no samples; give one that has some")
        return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
    return _by_name(source, first_input)


def _read_npz(path: Path) -> dict[str, Array]:
    try:
        return read_npz(path)
    except UserError as error:  # its words are those of `bench`
        raise UserError(str(error).replace("--inputs", "--data", 1)) from error


def _by_name(rows: Any, first_input: str) -> dict[str, Array]:
    """Return the arrays of a mapping, of (inputs, labels), or of inputs alone."""
    if isinstance(rows, Mapping):
        return {str(name): _array(str(name), value) for name, value in rows.items()}
    if isinstance(rows, tuple | list) and len(rows) == 2:
        inputs, labels = rows
        return _by_name(inputs, first_input) | {LABELS: _array(LABELS, labels)}
    if isinstance(rows, tuple | list):
        raise UserError(
            f"--data: rows are a {type(rows).__name__} of {len(rows)}; give (inputs, labels), or arrays by input name"
        )
    return {first_input: _array(first_input, rows)}


def _array(name: str, values: Any) -> Array:
    return as_array(f"--data: {name}", values)


def label_name(arrays: Collection[str], name: str | None, inputs: Collection[str]) -> str | None:
    """Return which array holds the labels: the one that is named, or one of a usual name that is no input.

    Raises:
        UserError: there is no array of that name, or it is an input.
    """
    if name is None:
        return next((usual for usual in _LABEL_NAMES if usual in arrays and usual not in inputs), None)
    if name not in arrays:
        raise UserError(f"--labels {name}: is not in the data, which have {', '.join(arrays) or 'nothing'}")
    if name in inputs:
        raise UserError(f"--labels {name}: is an input of the model; give the labels another name")
    return name


def count_rows(arrays: Mapping[str, Array], source_name: str, *, fewest: int) -> int:
    """Return how many rows every array has. Raises UserError where that differs, or is too few."""
    lengths = {name: len(value) if value.ndim else 0 for name, value in arrays.items()}
    total = next(iter(lengths.values()), 0)
    if len(set(lengths.values())) != 1 or total < fewest:
        least = {1: "one", 2: "two"}[fewest]
        raise UserError(f"{source_name}: has rows {lengths}; every array needs the same number, {least} at least")
    return total


def require_type(source_name: str, name: str, values: Array, expected: str, taken_by: str) -> None:
    """Refuse an array of another element type. Raises UserError with what converts it."""
    if values.dtype.name != expected:
        raise UserError(
            f"{source_name}: {name} is {values.dtype.name}, {taken_by} {expected}; write it with .astype({expected!r})"
        )


def require_finite(source_name: str, name: str, values: Array) -> None:
    """Refuse floats that are NaN or infinite. Raises UserError that names the first row."""
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        row = int(np.argmin(np.isfinite(values).reshape(len(values), -1).all(axis=1)))
        raise UserError(
            f"{source_name}: {name} holds NaN or infinite values, first in row {row}; clean or drop such rows"
        )


def tensor_of(source_name: str, name: str, values: Array) -> Tensor:
    """Return an array as a tensor. Raises UserError for what models do not take, or values that are not finite."""
    if values.dtype == np.float64:
        require_type(source_name, name, values, "float32", "models take")
    require_finite(source_name, name, values)
    try:
        return torch.from_numpy(np.ascontiguousarray(values))
    except TypeError as error:
        raise UserError(f"{source_name}: {name} is {values.dtype.name}, which no tensor can hold") from error


class RowBatch(NamedTuple):
    """A few rows: the model's arguments, what is right for them, and another model's outputs [rows, …]."""

    inputs: Inputs
    target: Tensor
    reference: Tensor


@dataclass(frozen=True)
class _Split:
    task: RowsTask
    rows: Tensor

    def __len__(self) -> int:
        return len(self.rows)

    def fetch(self, index: Tensor, view: int | None) -> RowBatch:
        """Collate samples; rows have no augmentation, so every view is the same."""
        return self.task.batch(self.rows[index])


@dataclass(frozen=True, eq=False)
class RowsTask:
    """Rows by input name for the training loop: learn what is right for them, or what another model answers.

    Of scores, `logits` and targets are those of each answer, [rows · positions, classes] and [rows · positions]; of
    numbers they are [rows, …].

    Args:
        tensors: all rows by input name.
        call: makes the model's arguments of some of them.
        take: takes the outputs out of what the model returns.
        reference: the other model's outputs [rows, …], float.
        output: what the outputs hold.
        truth: labels in the shape of the answers, where there are some.
        train_rows: numbers of the rows to learn from.
        test_rows: numbers of the rows that judge.
    """

    tensors: dict[str, Tensor]
    call: Callable[[Mapping[str, Tensor]], Inputs]
    take: Callable[[Any], Tensor]
    reference: Tensor
    output: Output
    truth: Array | None
    train_rows: Tensor
    test_rows: Tensor

    labels: tuple[str, ...] = ()
    metric: str = "agreement"
    module_preprocess: nn.Module | None = None

    @cached_property
    def data(self) -> dict[str, _Split]:
        """The rows to learn from, and those that judge, which choose nothing."""
        return {"train": _Split(self, self.train_rows), "validation": _Split(self, self.test_rows)}

    @cached_property
    def _spread(self) -> Tensor:
        """The variance of each column [columns], or of all values where there are further axes: errors' unit."""
        values = self.reference.float()
        variance = values.var(0) if values.ndim == 2 else values.var()
        return torch.where(variance > 0, variance, torch.ones_like(variance))

    @cached_property
    def _targets(self) -> Tensor:
        """What is right for each row: the labels, or what the other model answers.

        Numbers of its own are moved by a standard deviation up or down: at the very numbers no loss has a gradient.
        """
        if self.output.kind != "numbers":
            answers = self.output.answers(self.reference.numpy()) if self.truth is None else self.truth
            return torch.from_numpy(np.asarray(answers, np.int64))
        if self.truth is not None:
            return torch.from_numpy(self.truth.astype(np.float32))
        values = self.reference.float()
        signs = torch.randint(2, values.shape, generator=torch.Generator().manual_seed(0)).mul_(2).sub_(1)
        return values + signs * self._spread.sqrt()

    def batch(self, rows: Tensor) -> RowBatch:
        """Return the rows of these numbers."""
        inputs = self.call({name: value[rows] for name, value in self.tensors.items()})
        return RowBatch(inputs, self._targets[rows], self.reference[rows])

    def batches(self, size: int, seed: int) -> Iterator[RowBatch]:
        """Yield the rows to learn from, shuffled by a seed; a last batch of one row is left out."""
        order = self.train_rows[torch.randperm(len(self.train_rows), generator=torch.Generator().manual_seed(seed))]
        yield from (self.batch(rows) for rows in torch.split(order, size) if len(rows) > 1)

    def inputs(self, batch: RowBatch) -> Inputs:
        """Return the model's arguments."""
        return batch.inputs

    def target(self, batch: RowBatch) -> Tensor:
        """Return what is right: a class number for each answer, or numbers [rows, …]."""
        return batch.target if self.output.kind == "numbers" else batch.target.reshape(-1)

    def logits(self, output: Any) -> Tensor:
        """Return the logits of each answer, or the numbers, out of what the model returned."""
        return self._scores(self.take(output).float())

    def reference_logits(self, batch: RowBatch) -> Tensor:
        """Return the other model's answers for a batch, in the form of ``logits``."""
        return self._scores(batch.reference.float())

    def _scores(self, values: Tensor) -> Tensor:
        if self.output.kind == "numbers":
            return values
        logits: Tensor = self.output.class_logits(values, torch)
        return logits.movedim(1, -1).reshape(-1, logits.shape[1])

    def loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the cross-entropy of each answer, or the squared error of numbers in units of their variance."""
        if self.output.kind == "numbers":
            return ((logits - target).square() / self._spread.to(logits.device)).mean()
        return F.cross_entropy(logits, target)

    def loss_of(self, model: nn.Module, batch: RowBatch) -> Tensor:
        """Return the loss of a model on a batch, by which the importance of its parts is told.

        The divergence from the other model's outputs would not do: of the model from itself it is 0, and so is its
        gradient.
        """
        args, kwargs = batch.inputs
        return self.loss(self.logits(model(*args, **kwargs)), self.target(batch))

    def metrics(self, logits: Array, target: Array) -> dict[str, float]:
        """Return the share of answers that are right, or of the variance of numbers that is explained."""
        if self.output.kind != "numbers":
            return {"agreement": float((logits.argmax(1) == target).mean())}
        errors = np.square(logits - target, dtype=np.float64) / self._spread.numpy()
        return {"agreement": 1 - float(errors.mean())}


def moved(inputs: Moved, device: torch.device) -> Moved:
    """Return arguments, or a batch, on a device."""
    on_device: Moved = tree_map(lambda leaf: leaf.to(device) if isinstance(leaf, Tensor) else leaf, inputs)
    return on_device
