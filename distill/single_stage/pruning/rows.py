"""Rows of the verb `prune`: read by name, parted into those that are learnt from and those that judge."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from onnx import ModelProto
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from distill.errors import UserError
from distill.export.outputs import tail_of
from distill.intervals import Estimate
from distill.outputs import (
    UNKNOWN,
    Comparison,
    Evidence,
    Kind,
    Metric,
    Output,
    checked_labels,
    note,
    tell_or_numbers,
)
from distill.prune.examples import Example
from distill.single_stage.pruning.losses import Batch
from distill.single_stage.pruning.source import Inputs, Take, logits_of, named_inputs, parameters_of
from distill.single_stage.quantizing.rows import label_name, read_arrays

_ENOUGH = 200  # rows from which on a fifth is kept from learning, to judge by


@dataclass(frozen=True)
class Quality:
    """What became of the answers on rows: a measure before and after, or the share that changed.

    `measure` is what is measured with labels: accuracy, F1, R² or the user's own; `labelled` says whether it was.
    `drop` is absolute, with its interval; `apart` says whether these rows were kept from learning. `judged` says as
    what the outputs were judged, `remark` what makes the comparison prove little.
    """

    rows: int
    labelled: bool
    before: float | None
    after: float | None
    drop: Estimate
    apart: bool
    measure: str = "accuracy"
    judged: str = ""
    remark: str | None = None


@dataclass(frozen=True)
class Samples:
    """Samples by input name, the unpruned model's outputs for them, and labels where there are some.

    `learn` and `judge` are row numbers; they are the same rows where there are few. `where` is what messages call them.
    """

    where: str
    inputs: Inputs
    tensors: dict[str, Tensor]
    soft: Tensor
    labels: np.ndarray | None
    learn: Tensor
    judge: Tensor
    size: int

    @property
    def apart(self) -> bool:
        """Whether other rows judge than those that are learnt from."""
        return len(self.learn) < len(self.soft)

    def first(self, count: int) -> dict[str, np.ndarray]:
        """Return the first rows to learn from, as arrays by input name."""
        return {name: value[self.learn[:count]].numpy() for name, value in self.tensors.items()}

    def told(self, core: ModelProto, *, kind: Kind | None, axis: int | None, metric: Metric | None) -> Rows:
        """Find out what the model's output holds, and check the labels by it.

        Args:
            core: the unpruned model's graph.
            kind: what the user says that the output holds.
            axis: the axis of its classes, as the user says.
            metric: the user's own measure of outputs and labels.

        Raises:
            UserError: nothing tells what the output holds, or the labels can never equal an answer.
        """
        values, labels = self.soft.numpy(), None if metric is not None else self.labels
        shapes = {tuple(tensor.shape[1:]) for tensor in self.tensors.values()}
        name = core.graph.output[0].name if core.graph.output else "logits"
        tail = tail_of(core, name, values.ndim) if core.graph.output else UNKNOWN
        evidence = Evidence(name, values, tail, labels, shapes)
        output = tell_or_numbers(evidence, kind=kind, axis=axis, own=metric is not None)
        if labels is not None:
            labels = checked_labels(output, values, labels, self.where)
        judge = self.judge.numpy()
        right = self.labels if metric is not None else labels
        comparison = Comparison(output, values[judge], None if right is None else right[judge], metric)
        comparison.drop(comparison.before)  # finds at once what a metric refuses, or numbers that never vary
        target = _target(output, values, labels)
        said = kind is not None or axis is not None
        judged = note(evidence, output, stated=said, measure=comparison.measure, own=metric is not None)
        return Rows(self, output, target, labels is not None, comparison, judged)


@dataclass(frozen=True)
class Rows:
    """Samples, with what the model's output holds and what is right: the labels, or the model's own answers."""

    samples: Samples
    output: Output
    target: Tensor
    labelled: bool
    comparison: Comparison
    judged: str

    @property
    def learn(self) -> Tensor:
        """The numbers of the rows to learn from."""
        return self.samples.learn

    @property
    def size(self) -> int:
        """Rows in a batch."""
        return self.samples.size

    def batch(self, rows: Tensor, device: torch.device) -> Batch:
        """Return the rows of these numbers on a device."""
        samples = self.samples
        inputs = samples.inputs.call({name: value[rows] for name, value in samples.tensors.items()})
        return Batch(
            on(inputs, device),
            self.target[rows].to(device),
            samples.soft[rows].to(device),
            samples.inputs.take,
            self.output,
            _spread(samples.soft).to(device),
        )

    def batches(self, device: torch.device, seed: int) -> Iterator[Batch]:
        """Yield the rows to learn from, shuffled by a seed; a last batch of one row is left out."""
        order = self.learn[torch.randperm(len(self.learn), generator=torch.Generator().manual_seed(seed))]
        for part in torch.split(order, self.size):
            if len(part) > 1:
                yield self.batch(part, device)

    def weak_evidence(self) -> list[str]:
        """Say why the unpruned model's answers on the rows that judge prove little."""
        chance = self.comparison.chance_remark("the unpruned model")
        return [] if chance is None else [chance]

    def quality(self, model: nn.Module) -> Quality:
        """Compare a model's answers with the unpruned one's, on the rows that judge."""
        device, samples, comparison = device_of(model), self.samples, self.comparison
        parts = [self.batch(part, device) for part in torch.split(samples.judge, samples.size)]
        after = torch.cat([logits_of(model, part.inputs, part.take).cpu() for part in parts]).numpy()
        found = Quality(
            len(after),
            not comparison.counts_changes,
            None,
            None,
            comparison.drop(after),
            samples.apart,
            comparison.name,
            self.judged,
            comparison.remark(after, ("the unpruned model", "the pruned model")),
        )
        if comparison.counts_changes:
            return found
        return replace(found, before=comparison.value(comparison.before), after=comparison.value(after))


def read_rows(path: Path, labels: str | None, model: nn.Module, *, take: Take, size: int, seed: int) -> Samples:
    """Read samples and labels, and run the model on all of them.

    Args:
        path: an .npz with arrays by the names of forward's parameters, in whose order others are passed.
        labels: the array that holds class numbers; found by a usual name when None.
        model: the unpruned one.
        take: takes the logits out of what it returns.
        size: rows in a batch.
        seed: of which rows judge.

    Raises:
        UserError: names, types, shapes or values that do not fit the model.
    """
    where = f"--data {path}"
    arrays = read_arrays(path)
    known = parameters_of(model)
    key = label_name(arrays, labels, known if labels is None else ())
    if key is None and "labels" in arrays:
        key = "labels"  # the forward of transformers takes them, too, to compute its own loss
    total = _length(arrays, where)
    tensors = {name: _tensor(name, value, where) for name, value in arrays.items() if name != key}
    inputs = named_inputs(model, [*tensors], take)
    tensors = {name: tensors[name] for name in inputs.names}
    parts = torch.split(torch.arange(total), size)
    soft = torch.cat([logits_of(model, inputs.call({n: v[p] for n, v in tensors.items()}), take) for p in parts])
    broken = int((~soft.reshape(total, -1).isfinite().all(1)).sum())
    if broken:
        raise UserError(
            f"{where}: the model's own answers are NaN or infinite for {broken} of {total} rows; check its weights, "
            "and that the rows are scaled as those that it was trained on"
        )
    order = torch.randperm(total, generator=torch.Generator().manual_seed(seed))
    held = total // 5 if total >= _ENOUGH else 0
    learn, judge = order[held:], order[:held] if held else order
    labelled = None if key is None else arrays[key]
    return Samples(where, inputs, tensors, soft, labelled, learn, judge, size)


def _length(arrays: Mapping[str, np.ndarray], where: str) -> int:
    lengths = {name: len(value) if value.ndim else 0 for name, value in arrays.items()}
    total = next(iter(lengths.values()), 0)
    if len(set(lengths.values())) != 1 or total < 2:
        raise UserError(f"{where}: has rows {lengths}; every array needs the same number, two at least")
    return total


def _tensor(name: str, values: np.ndarray, where: str) -> Tensor:
    """Refuse what models do not take, or values that are not finite."""
    if values.dtype == np.float64:
        raise UserError(f"{where}: {name} is float64, models take float32; write it with .astype('float32')")
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        row = int(np.argmin(np.isfinite(values).reshape(len(values), -1).all(axis=1)))
        raise UserError(f"{where}: {name} holds NaN or infinite values, first in row {row}; clean or drop such rows")
    try:
        return torch.from_numpy(np.ascontiguousarray(values))
    except TypeError as error:
        raise UserError(f"{where}: {name} is {values.dtype.name}, which no tensor can hold") from error


def _target(output: Output, values: np.ndarray, labels: np.ndarray | None) -> Tensor:
    """Return what is right for each row: the labels, or what the unpruned model answers.

    Numbers of its own are moved by a standard deviation up or down: at the very numbers no loss has a gradient.
    """
    if output.kind != "numbers":
        return torch.from_numpy(np.asarray(output.answers(values) if labels is None else labels, np.int64))
    if labels is not None:
        return torch.from_numpy(labels.astype(np.float32))
    soft = torch.from_numpy(values).float()
    signs = torch.randint(2, soft.shape, generator=torch.Generator().manual_seed(0)).mul_(2).sub_(1)
    return soft + signs * _spread(soft).sqrt()


def _spread(soft: Tensor) -> Tensor:
    """Return the variance of each column [columns], or of all values where there are further axes."""
    wide = soft.float()
    found = wide.var(0) if wide.ndim == 2 else wide.var()
    return torch.where(found > 0, found, torch.ones_like(found))


def device_of(model: nn.Module) -> torch.device:
    """Return where a model's parameters lie."""
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))


def on(example: Example, device: torch.device) -> Example:
    """Return the arguments on a device."""
    args, kwargs = tree_map(lambda leaf: leaf.to(device) if isinstance(leaf, Tensor) else leaf, example)
    return tuple(args), dict(kwargs)


def inputs_of(batches: Iterator[Batch]) -> Iterator[Example]:
    """Yield the arguments alone, as batch-norm recalibration takes them."""
    return (batch.inputs for batch in batches)
