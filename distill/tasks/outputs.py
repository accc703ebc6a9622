"""From what a model returns to checked logits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from distill.errors import UserError

_SUM = 1e-4  # how far probabilities of 32 bits may add up beside 1


def plain_logits(output: Any) -> Any:
    """Return a tensor as it is, and of a mapping or an object its ``logits``.

    Raises:
        UserError: there are none.
    """
    if isinstance(output, Tensor):
        return output
    if isinstance(output, Mapping) and "logits" in output:
        return output["logits"]
    if not isinstance(output, Mapping) and hasattr(output, "logits"):
        return output.logits
    keys = f" with the keys {', '.join(map(str, output))}" if isinstance(output, Mapping) else ""
    raise UserError(
        f"the model returned a {type(output).__name__}{keys}; expected a tensor [batch, classes], or a mapping or an "
        "object with `logits`. A custom task can define logits(output)"
    )


def checked_logits(logits: Any, classes: int) -> Tensor:
    """Return ``logits`` if they are a floating tensor [batch, classes].

    Raises:
        UserError: they are not; the message names both shapes.
    """
    if not isinstance(logits, Tensor):
        raise UserError(f"logits are a {type(logits).__name__}; expected a tensor [batch, {classes}]")
    if logits.ndim != 2 or logits.shape[1] != classes:
        shape = "x".join(str(int(size)) for size in logits.shape) or "a scalar"
        raise UserError(
            f"the model returned logits of shape {shape}; expected [batch, {classes}], one logit a class. "
            "Set the number of outputs of the model's last layer"
        )
    if not logits.is_floating_point():
        raise UserError(f"the model returned logits of type {logits.dtype}; expected floating point, not class numbers")
    return logits


def refuse_probabilities(logits: Tensor, name: str) -> None:
    """Refuse rows [B, classes] that are probabilities: a loss takes their softmax again, and a teacher's says little.

    ``name`` opens the message.

    Raises:
        UserError: each of several different rows adds up to 1, with nothing below 0.
    """
    rows = logits.detach().double()
    differ = len(rows) > 1 and bool((rows != rows[:1]).any())
    if differ and bool((rows >= 0).all()) and bool(((rows.sum(1) - 1).abs() < _SUM).all()):
        raise UserError(
            f"{name}: the model returned probabilities, whose rows add up to 1; expected logits. Leave out its "
            "last softmax, or let a custom task's logits(output) return output.clamp(min=1e-7).log()"
        )


def cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Return the mean of -log softmax(logits)[target], in float32; logits [B, classes], target int64 [B]."""
    return F.cross_entropy(logits.float(), target)
