"""A model's outputs with random signs, added up: the square of its gradient tells how far they all move.

For signs s of ±1, E_s (s · Jv)² = ‖Jv‖² (Hutchinson 1989): one backward pass instead of one for each logit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from distill.errors import UserError
from distill.prune.examples import tensors_in
from distill.prune.modules import hooked, reason

_BLIND = 0.01  # a gradient that adds up to less, of its own size, is blind to what all classes gain alike
_INSTEAD = "prune.importance='taylor' goes by the loss alone"


@contextmanager
def outputs_of(model: nn.Module) -> Iterator[list[Any]]:
    """Collect what the model returns each time it is called."""
    outputs: list[Any] = []
    with hooked([model.register_forward_hook(lambda module, args, output: outputs.append(output))]):
        yield outputs


def differentiable(outputs: Sequence[Any], logits: Callable[[Any], Tensor]) -> list[tuple[Tensor, list[Tensor]]]:
    """Return the logits of each call that autograd follows, and the other tensors [rows, …] of the same output.

    Raises:
        UserError: the model was not called, its logits cannot be found, or autograd follows none of them.
    """
    if not outputs:
        raise UserError(f"loss(model, batch) did not call the model, whose logits are needed; {_INSTEAD}")
    pairs = []
    for output in outputs:
        try:
            values = logits(output)
        except Exception as error:
            raise UserError(f"what the model says in the loss has no logits: {reason(error)}; {_INSTEAD}") from error
        if isinstance(values, Tensor) and values.grad_fn is not None and values.ndim and values.is_floating_point():
            mine = values.untyped_storage().data_ptr()
            others = [
                tensor
                for _, tensor in tensors_in(output)
                if tensor.grad_fn is not None and tensor.ndim and tensor.untyped_storage().data_ptr() != mine
            ]
            pairs.append((values, others))
    if not pairs:
        raise UserError(f"the logits in the loss do not depend on the model's parameters; {_INSTEAD}")
    return pairs


def class_axis(loss: Tensor, logits: Tensor) -> int | None:
    """Return the axis along which a constant may be added to the logits without changing the loss; None without one.

    A softmax has one, at its classes; sigmoids and distances have none. The loss's gradient tells: it adds up to 0.
    """
    (gradient,) = torch.autograd.grad(loss, logits, retain_graph=True, allow_unused=True)
    if gradient is None:
        return None
    gradient = gradient.float()
    size = float(gradient.abs().sum())
    axes: list[int] = [1 % max(1, logits.ndim), logits.ndim - 1, *range(2, logits.ndim - 1)]
    for axis in dict.fromkeys(axes):
        if axis and logits.shape[axis] > 1 and size > 0 and float(gradient.sum(axis).abs().sum()) <= _BLIND * size:
            return axis
    return None


def signed_sum(logits: Tensor, others: Sequence[Tensor], axis: int | None, generator: torch.Generator) -> Tensor:
    """Return Σ ±z / √rows, a scalar: over the signs, its gradient's square is what a row's outputs move by, squared.

    Args:
        logits: [rows, …]; infinite ones, as masks leave them, do not count.
        others: further outputs, which count as much as the logits do, each in units of its own spread.
        axis: what is added alike along it does not count.
        generator: draws the signs, on the CPU.
    """
    values = logits.float()
    finite = values.isfinite()
    signs = _signs(values, generator) * finite
    if axis is not None:
        signs -= finite * signs.sum(axis, keepdim=True) / finite.sum(axis, keepdim=True).clamp(min=1)
    total = (torch.where(finite, values, 0) * signs).sum() / math.sqrt(len(values))
    spread = _spread(values)
    for other in others:
        own = _spread(other.float())
        if own > 0:
            finite = other.isfinite()
            part = (torch.where(finite, other, 0).float() * _signs(other, generator)).sum()
            total = total + part * (spread or 1.0) / own / math.sqrt(len(other))
    return total


def _signs(like: Tensor, generator: torch.Generator) -> Tensor:
    drawn = torch.randint(2, like.shape, dtype=torch.int8, generator=generator)
    return drawn.to(device=like.device, dtype=torch.float32).mul_(2).sub_(1)


def _spread(values: Tensor) -> float:
    finite = values.detach()[values.detach().isfinite()]
    return float(finite.std()) if finite.numel() > 1 else 0.0
