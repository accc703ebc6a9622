"""Rows of the verb `prune`: read by name, parted into those that are learnt from and those that judge."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_map

from distill.errors import UserError
from distill.intervals import Estimate, paired_drop, wilson
from distill.losses import soft_targets
from distill.outputs import degenerate
from distill.prune.examples import Example
from distill.quantize.verb.rows import label_name, read_arrays

from .source import Inputs, Take, logits_of, named_inputs, parameters_of

_ENOUGH = 200  # rows from which on a fifth is kept from learning, to judge by
_TEMPERATURE = 2.0
_WEIGHT = 0.9  # of the unpruned model's answers beside labels


@dataclass(frozen=True)
class Batch:
    """A few rows as the model's arguments, the answers they are to have, and the unpruned model's logits."""

    inputs: Example
    target: Tensor
    soft: Tensor
    take: Take

    def logits(self, model: nn.Module) -> Tensor:
        """Return a model's logits [rows, classes, …] in float32, with their gradients."""
        args, kwargs = self.inputs
        return as_classes(self.take(model(*args, **kwargs))).float()


@dataclass(frozen=True)
class Quality:
    """What became of the answers on rows: accuracies with labels, else the share that changed.

    `drop` is absolute, with its interval; `apart` says whether these rows were kept from learning.
    """

    rows: int
    labelled: bool
    before: float | None
    after: float | None
    drop: Estimate
    apart: bool


@dataclass(frozen=True)
class Rows:
    """Samples by input name, what the unpruned model answers, and what is right where labels say so.

    `learn` and `judge` are row numbers; they are the same rows where there are few.
    """

    inputs: Inputs
    tensors: dict[str, Tensor]
    soft: Tensor
    target: Tensor
    labelled: bool
    learn: Tensor
    judge: Tensor
    size: int

    @property
    def apart(self) -> bool:
        """Whether other rows judge than those that are learnt from."""
        return len(self.learn) < len(self.target)

    def batch(self, rows: Tensor, device: torch.device) -> Batch:
        """Return the rows of these numbers on a device."""
        inputs = self.inputs.call({name: value[rows] for name, value in self.tensors.items()})
        return Batch(on(inputs, device), self.target[rows].to(device), self.soft[rows].to(device), self.inputs.take)

    def batches(self, device: torch.device, seed: int) -> Iterator[Batch]:
        """Yield the rows to learn from, shuffled by a seed; a last batch of one row is left out."""
        order = self.learn[torch.randperm(len(self.learn), generator=torch.Generator().manual_seed(seed))]
        for part in torch.split(order, self.size):
            if len(part) > 1:
                yield self.batch(part, device)

    def first(self, count: int) -> dict[str, np.ndarray]:
        """Return the first rows to learn from, as arrays by input name."""
        return {name: value[self.learn[:count]].numpy() for name, value in self.tensors.items()}

    def weak_evidence(self) -> list[str]:
        """Say why the unpruned model's answers on the rows that judge prove little."""
        answers, right = answers_of(self.soft[self.judge]).numpy(), self.target[self.judge].numpy()
        alike = degenerate(answers, labels=right if self.labelled else None, names=("the unpruned model", "the pruned"))
        found = [] if alike is None else [alike]
        most, hits = int(np.bincount(right.reshape(-1)).max()), int((answers == right).sum())
        if self.labelled and hits <= most < right.size:
            found.append(
                f"the unpruned model is right in {100 * hits / right.size:.1f} % of the answers that judge, no more "
                f"than whoever always names the most frequent class ({100 * most / right.size:.1f} %): its weights may "
                "not be trained, the labels numbered otherwise, or the rows scaled otherwise"
            )
        return found

    def quality(self, model: nn.Module) -> Quality:
        """Compare a model's answers with the unpruned one's, on the rows that judge."""
        device = device_of(model)
        parts = [self.batch(part, device) for part in torch.split(self.judge, self.size)]
        now = torch.cat([answers_of(logits_of(model, part.inputs, part.take)).cpu() for part in parts])
        before, right = answers_of(self.soft[self.judge]), self.target[self.judge]
        count = len(now)
        if not self.labelled:
            return Quality(count, False, None, None, wilson(_total(now != before), count), self.apart)
        was, still = before == right, now == right
        drop = paired_drop(_total(was & ~still), _total(~was & still), count)
        return Quality(count, True, _total(was) / count, _total(still) / count, drop, self.apart)


def read_rows(path: Path, labels: str | None, model: nn.Module, *, take: Take, size: int, seed: int) -> Rows:
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
    target = answers_of(soft) if key is None else _labels(arrays[key], key, soft, where)
    order = torch.randperm(total, generator=torch.Generator().manual_seed(seed))
    held = total // 5 if total >= _ENOUGH else 0
    learn, judge = order[held:], order[:held] if held else order
    return Rows(inputs, tensors, soft, target, key is not None, learn, judge, size)


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


def _labels(values: np.ndarray, name: str, logits: Tensor, where: str) -> Tensor:
    """Refuse labels that can never equal an answer: no class numbers, of another shape, or of classes that are not."""
    answers = answers_of(logits)
    if values.dtype.kind not in "iub" or values.shape != tuple(answers.shape):
        raise UserError(
            f"{where}: the labels {name!r} are {values.dtype.name} {list(values.shape)}; they must be class numbers of "
            f"the shape {list(answers.shape)}"
        )
    found = torch.from_numpy(values.astype(np.int64))
    classes = as_classes(logits).shape[1]
    low, high = int(found.min()), int(found.max())
    if low < 0 or high >= classes:
        raise UserError(
            f"{where}: the labels {name!r} go from {low} to {high}, the model has the classes 0 to {classes - 1}; "
            "number them like its outputs"
        )
    return found


def as_classes(logits: Tensor) -> Tensor:
    """Return logits [n, classes, …]; one logit a row stands against a second class of logit 0."""
    flat = logits.unsqueeze(1) if logits.ndim == 1 else logits
    return torch.cat([torch.zeros_like(flat), flat], 1) if flat.shape[1] == 1 else flat


def answers_of(logits: Tensor) -> Tensor:
    """Return the strongest class of each row [n], of dense logits [n, classes, …] that of each position [n, …]."""
    return as_classes(logits).argmax(1)


def answer_loss(model: nn.Module, batch: Batch) -> Tensor:
    """Return the cross-entropy against labels, or against the unpruned model's own answers where there are none.

    The divergence from that model's soft logits would not do: of the model from itself it is 0, and so is its gradient.
    """
    return F.cross_entropy(batch.logits(model), batch.target)


def soft_loss(model: nn.Module, batch: Batch, labelled: bool) -> Tensor:
    """Return what training after pruning lowers: the divergence from the unpruned model, and a little of the labels."""
    logits = batch.logits(model)
    positions = max(1, logits[0, 0].numel())
    soft = soft_targets(logits, as_classes(batch.soft), _TEMPERATURE) / positions
    return soft if not labelled else _WEIGHT * soft + (1 - _WEIGHT) * F.cross_entropy(logits, batch.target)


def device_of(model: nn.Module) -> torch.device:
    """Return where a model's parameters lie."""
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))


def on(example: Example, device: torch.device) -> Example:
    """Return the arguments on a device."""
    args, kwargs = tree_map(lambda leaf: leaf.to(device) if isinstance(leaf, Tensor) else leaf, example)
    return tuple(args), dict(kwargs)


def _total(hits: Tensor) -> float:
    """Add up each row's share of hits."""
    return float(hits.reshape(len(hits), -1).float().mean(1).sum())


def inputs_of(batches: Iterator[Batch]) -> Iterator[Example]:
    """Yield the arguments alone, as batch-norm recalibration takes them."""
    return (batch.inputs for batch in batches)
