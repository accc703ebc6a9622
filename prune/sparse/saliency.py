"""What a single weight is worth. One plain function a kind; each gives scores in the weights' own shapes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from itertools import islice
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from distill.errors import UserError
from distill.prune.modules import reason

SaliencyName = Literal["magnitude", "wanda", "taylor"]
Loss = Callable[[nn.Module, Any], Tensor]
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

    def observe(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
            x = args[0].detach().float()
            # A convolution's channels lie behind the batch, unless there is none; a linear layer's lie last.
            axis = x.ndim - 1 - len(module.kernel_size) if isinstance(module, _ConvNd) else x.ndim - 1
            found = x.movedim(axis, 0).flatten(1).square().sum(1)
            squares[name] = squares.get(name, torch.zeros_like(found)) + found

        return hook

    with ExitStack() as stack, torch.no_grad():
        for prefix, module in model.named_modules():
            name = f"{prefix}.weight" if prefix else "weight"
            if name in weights and isinstance(module, _ConvNd | nn.Linear) and not isinstance(module, _ConvTransposeNd):
                stack.callback(module.register_forward_pre_hook(observe(name)).remove)
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
    found: dict[str, Tensor] = {}
    for weight in weights.values():
        weight.requires_grad_(True)
    for batch in batches:
        with torch.enable_grad():
            value = loss(model, batch)
        if not isinstance(value, Tensor) or value.numel() != 1 or value.grad_fn is None:
            raise UserError("loss(model, batch) must return a scalar tensor that depends on the model's parameters")
        gradients = torch.autograd.grad(value.reshape(()), [*weights.values()], allow_unused=True)
        for (name, weight), gradient in zip(weights.items(), gradients, strict=True):
            if gradient is not None:
                change = (weight.detach() * gradient).square()
                found[name] = found[name] + change if name in found else change
    return found


SALIENCIES: dict[str, Callable[[nn.Module, Weights, list[Any], Loss | None], dict[str, Tensor]]] = {
    "magnitude": magnitude,
    "wanda": wanda,
    "taylor": taylor,
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
    modes = [(module, module.training) for module in model.modules()]
    trained = [(weight, weight.requires_grad) for weight in weights.values()]
    gpus = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()  # type: ignore[no-untyped-call]
    try:
        with torch.inference_mode(False), torch.random.fork_rng(devices=list(gpus)):
            torch.manual_seed(0)
            model.eval()
            found = SALIENCIES[kind](model, weights, data, loss)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"importance={kind!r}: the model does not run on its batches: {reason(error)}") from error
    finally:
        for module, training in modes:
            module.training = training
        for weight, requires in trained:
            weight.requires_grad_(requires)
    broken = [name for name, score in found.items() if not torch.isfinite(score).all()]
    if broken:
        raise UserError(f"importance={kind!r} of {broken[0]} is not finite; the model or a batch is broken")
    return found


def _spread(norms: Tensor, weight: nn.Parameter) -> Tensor:
    """Bring the norms of a layer's inputs [in] to the axes of its weight [out, in/groups, …]."""
    outputs, inputs = weight.shape[:2]
    parts = len(norms) // inputs
    # Each group of outputs reads inputs of its own.
    rows = norms.reshape(parts, inputs).repeat_interleave(outputs // parts, 0)
    return rows.reshape(outputs, inputs, *[1] * (weight.ndim - 2)).to(weight.dtype)
