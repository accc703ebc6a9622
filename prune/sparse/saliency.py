"""What a single weight is worth. One plain function a kind; each gives scores in the weights' own shapes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from itertools import islice
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from distill.errors import UserError
from distill.prune.modules import Loss, eval_mode, explained, frozen, hooked, require_scalar, seeded
from distill.prune.sparse.zeros import sparse_weights

SaliencyName = Literal["magnitude", "wanda", "taylor"]
Weights = Mapping[str, nn.Parameter]


def magnitude(model: nn.Module, weights: Weights, batches: list[Any], loss: Loss | None) -> dict[str, Tensor]:
    """Return |w|."""
    return {name: weight.detach().abs() for name, weight in weights.items()}


def wanda(model: nn.Module, weights: Weights, batches: list[Any], loss: Loss | None) -> dict[str, Tensor]:
    """Return |w|·‖x‖₂ with the norm of the input (channel) that the weight reads (Sun et al. 2023, arXiv 2306.11695).

    Transposed convolutions, and layers whose weights others read without calling them (as ``nn.MultiheadAttention``
    does with its output layer), have no scores.
    """
    squares: dict[str, Tensor] = {}

    def observe(name: str, module: nn.Module, args: tuple[Any, ...]) -> None:
        x = args[0].detach().float()
        # A convolution's channels lie behind the batch, unless there is none; a linear layer's lie last.
        axis = x.ndim - 1 - len(module.kernel_size) if isinstance(module, _ConvNd) else x.ndim - 1
        total = x.movedim(axis, 0).flatten(1).square().sum(1)
        squares[name] = squares.get(name, torch.zeros_like(total)) + total

    handles = (
        module.register_forward_pre_hook(partial(observe, name))
        for name, module, _ in sparse_weights(model)
        if name in weights and isinstance(module, _ConvNd | nn.Linear) and not isinstance(module, _ConvTransposeNd)
    )
    with hooked(handles), torch.no_grad():
        for args, kwargs in batches:
            model(*args, **kwargs)
    return {
        name: weight.detach().abs() * _spread(squares[name].sqrt(), weight)
        for name, weight in weights.items()
        if name in squares
    }


def taylor(model: nn.Module, weights: Weights, batches: list[Any], loss: Loss | None) -> dict[str, Tensor]:
    """Return Σ_b (w·∂L_b/∂w)²: the loss change when the weight goes, first order (arXiv 1906.10771)."""
    assert loss is not None
    scores: dict[str, Tensor] = {}
    for weight in weights.values():
        weight.requires_grad_(True)
    for batch in batches:
        with torch.enable_grad():
            value = require_scalar(loss(model, batch))
        gradients = torch.autograd.grad(value.reshape(()), [*weights.values()], allow_unused=True)
        for (name, weight), gradient in zip(weights.items(), gradients, strict=True):
            if gradient is not None:
                change = (weight.detach() * gradient).square()
                scores[name] = scores[name] + change if name in scores else change
    return scores


SALIENCIES: dict[str, Callable[[nn.Module, Weights, list[Any], Loss | None], dict[str, Tensor]]] = {
    kind.__name__: kind for kind in (magnitude, wanda, taylor)
}


def saliency(
    model: nn.Module, kind: str, weights: Weights, batches: Iterable[Any] | None, loss: Loss | None, limit: int
) -> dict[str, Tensor]:
    """Return one score a weight, of the weights that this kind says something about; eval mode, seeded.

    Raises:
        UserError: data are missing, or the model does not run on them, or a score is not finite.
    """
    data: list[Any] = []
    if kind != "magnitude":
        data = list(islice(batches or (), limit))
        if not data:
            raise UserError(f"importance={kind!r} needs batches; give at least one, or choose 'magnitude'")
        if kind == "taylor" and loss is None:
            raise UserError("importance='taylor' needs a loss")
    fails = explained(f"importance={kind!r}: the model does not run on its batches")
    with fails, torch.inference_mode(False), seeded(0), eval_mode(model), frozen(weights.values()):
        scores = SALIENCIES[kind](model, weights, data, loss)
    broken = [name for name, score in scores.items() if not torch.isfinite(score).all()]
    if broken:
        raise UserError(f"importance={kind!r} of {broken[0]} is not finite; the model or a batch is broken")
    return scores


def _spread(norms: Tensor, weight: nn.Parameter) -> Tensor:
    """Bring the norms of a layer's inputs [in] to the axes of its weight [out, in/groups, …]."""
    outputs, inputs = weight.shape[:2]
    parts = len(norms) // inputs
    # Each group of outputs reads inputs of its own.
    rows = norms.reshape(parts, inputs).repeat_interleave(outputs // parts, 0)
    return rows.reshape(outputs, inputs, *[1] * (weight.ndim - 2)).to(weight.dtype)
