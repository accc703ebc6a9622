"""What the verb `prune` lowers on rows: the distance from what is right, and from the unpruned model's outputs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distill.distillation.losses import soft_targets
from distill.outputs import Output
from distill.prune.examples import Example
from distill.single_stage.pruning.source import Take

_TEMPERATURE = 2.0
_WEIGHT = 0.9  # of the unpruned model's outputs beside labels


@dataclass(frozen=True)
class Batch:
    """A few rows as the model's arguments, what is right for them, and the unpruned model's outputs.

    `output` is what the outputs hold; of numbers `spread` is the variance that errors are measured in.
    """

    inputs: Example
    target: Tensor
    soft: Tensor
    take: Take
    output: Output
    spread: Tensor

    def values(self, model: nn.Module) -> Tensor:
        """Return a model's outputs [rows, …] in float32, with their gradients."""
        args, kwargs = self.inputs
        return self.take(model(*args, **kwargs)).float()


def answer_loss(model: nn.Module, batch: Batch) -> Tensor:
    """Return the loss against labels, or against the unpruned model's own answers where there are none.

    That is the cross-entropy of classes, of one yes or no and of each label, and the squared error of numbers. The
    divergence from the unpruned outputs would not do: of the model from itself it is 0, and so is its gradient.
    """
    return _hard(batch.values(model), batch)


def soft_loss(model: nn.Module, batch: Batch, labelled: bool) -> Tensor:
    """Return what training after pruning lowers: the distance from the unpruned model, and a little of the labels."""
    values = batch.values(model)
    if batch.output.kind == "numbers":
        soft = _squared(values, batch.soft.float(), batch.spread)
    else:
        logits = batch.output.class_logits(values, torch)
        positions = max(1, logits[0, 0].numel())
        teacher = batch.output.class_logits(batch.soft.float(), torch)
        soft = soft_targets(logits, teacher, _TEMPERATURE) / positions
    return soft if not labelled else _WEIGHT * soft + (1 - _WEIGHT) * _hard(values, batch)


def _hard(values: Tensor, batch: Batch) -> Tensor:
    if batch.output.kind == "numbers":
        return _squared(values, batch.target, batch.spread)
    logits = batch.output.class_logits(values, torch)
    return F.cross_entropy(logits, batch.target.reshape(len(logits), *logits.shape[2:]))


def _squared(values: Tensor, target: Tensor, spread: Tensor) -> Tensor:
    return ((values - target).square() / spread).mean()
