"""Is a cut model what it should be? Checked by running it, since a dependency graph can be wrong without an error."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from distill.errors import UserError
from distill.prune.graph.groups import Member
from distill.prune.graph.own_pruners import ignore_inputs
from distill.prune.graph.statistics import Recorded, Repeated
from distill.prune.modules import Example, at_batch, explained, hooked, run_alike, tensors_in
from distill.state_dicts import twin

# Norms that mix channels. Without the removed channels their statistics are others, which is no mistake.
_MIXING = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.LocalResponseNorm)
_TOLERANCE = 1e-3
_NOTHING = 1e-3  # weights below are next to nothing

Shapes = list[tuple[str, tuple[int, ...]]]


@dataclass(frozen=True)
class Checks:
    """What a cut model has to live up to: the example that it runs on, and the shapes of the outputs there."""

    example: Example
    logits: Callable[[Any], Tensor]
    shapes: Shapes


@torch.no_grad()
def output_shapes(model: nn.Module, example: Example, logits: Callable[[Any], Tensor]) -> Shapes:
    """Return the shapes of the logits and of every tensor in the output, at batch 1 and at batch 2.

    Raises:
        UserError: the model does not run at one of them.
    """
    shapes: Shapes = []
    for batch in (1, 2):
        with explained(f"the model does not run on its example input at batch {batch}"):
            outputs = compared(run_alike(model, at_batch(example, batch)), logits)
        shapes += [(name, tuple(tensor.shape)) for name, tensor in outputs]
    return shapes


def compared(output: Any, logits: Callable[[Any], Tensor]) -> list[tuple[str, Tensor]]:
    """Return the logits and every tensor that can be seen in an output, by name.

    Raises:
        UserError: ``logits`` gives no tensor.
    """
    named = logits(output)
    if not isinstance(named, Tensor):
        raise UserError(f"logits(output) gave a {type(named).__name__}, not a tensor")
    return [("logits", named), *tensors_in(output)]


def problem_with(
    pruned: nn.Module, masked: nn.Module, checks: Checks, lifts: Mapping[str, float], *, norms: bool = False
) -> str | None:
    """Return what is wrong with a cut model, or None.

    It must run at batch 1 and 2, keep every output's shape, and compute what ``masked`` does: the model before the
    cut, in which nothing reads the channels that went. Norms that mix channels are bypassed in both for the last, and
    other statistics over channels are of those that remain (`statistics`), unless ``norms`` says that they see as many
    as before; ``pruned`` is lifted as ``masked`` has been (`lifts_of`).
    """
    try:
        shapes = output_shapes(pruned, checks.example, checks.logits)
    except UserError as error:
        return f"with fewer of its channels {error}"
    for (name, before), (_, after) in zip(checks.shapes, shapes, strict=True):
        if before != after:
            return f"the shape of {name} changes from {before} to {after}"
    mixing = () if norms else _MIXING
    outputs = []
    recorded = Recorded()
    for model, watch in (
        (_lifted(pruned, lifts), recorded),
        (masked, nullcontext() if norms else Repeated(recorded.calls)),
    ):
        with torch.no_grad(), _bypassed(model, mixing), watch:
            outputs.append(compared(run_alike(model, at_batch(checks.example, 2)), checks.logits))
    got, wanted = outputs
    for (name, want), (_, have) in zip(wanted, got, strict=True):
        if want.is_floating_point() and differs(want, have):
            return f"{name} does not follow from its remaining channels (it reads the removed ones in another way)"
    return None


def differs(want: Tensor, have: Tensor) -> bool:
    """Tell whether values are equal up to rounding, each in its own measure: a box in pixels hides no probability.

    The measure of a place is the largest value of its row of the last axis or of the second, the smaller of both, as
    either may be what the values differ by in kind; below a thousandth of what is usual it is rounding that differs.
    What is not finite must be the same.
    """
    finite = want.isfinite() & have.isfinite()
    same = (want == have) | (want.isnan() & have.isnan())
    if bool((~finite & ~same).any()):
        return True
    if not finite.any():
        return False
    size = torch.where(finite, want.abs(), 0.0).to(torch.float64)
    scale = size.amax().expand_as(size)
    for axis in {1, want.ndim - 1} & set(range(1, want.ndim)):
        others = [other for other in range(want.ndim) if other != axis]
        scale = torch.minimum(scale, size.amax(others, keepdim=True))
    usual = scale[finite].median()
    eps = torch.finfo(want.dtype).eps
    tolerance = max(_TOLERANCE, 16 * eps) * scale.clamp_min(1e-6)
    rounding = 64 * eps * torch.minimum(size.amax(), 1e3 * usual)
    return bool(((want - have).abs().to(torch.float64) > tolerance + rounding)[finite].any())


def lifts_of(model: nn.Module) -> dict[str, float]:
    """Return what to add to weights that are next to nothing, by name: behind them a wrong cut would not show.

    Such are scales of layers that begin at 1e-6, norms of residual branches and heads that begin at zero. Added to all
    of a tensor, and so to what a cut leaves of it, it stays small against the sum over inputs.
    """
    return {
        name: 1.0 if value.ndim < 2 else value.shape[0] / value.numel()
        for name, value in model.named_parameters()
        if value.is_floating_point() and value.numel() and not name.endswith("bias") and value.abs().max() < _NOTHING
    }


@torch.no_grad()
def _lifted(model: nn.Module, lifts: Mapping[str, float]) -> nn.Module:
    """Return a copy to whose weights is added what `lifts_of` says."""
    result = twin(model)
    for name, value in result.named_parameters():
        value.add_(lifts.get(name, 0))
    return result


@torch.no_grad()
def masked_copy(model: nn.Module, consumers: Sequence[Member], lifts: Mapping[str, float]) -> nn.Module:
    """Return a lifted copy in which the consumers' weights for what goes are zero; same shapes as the model."""
    result = _lifted(model, lifts)
    for member in consumers:
        layer, indices = result.get_submodule(member.name), list(member.indices)
        if isinstance(layer, nn.Linear):
            layer.weight[:, indices] = 0
        elif isinstance(layer, nn.RNNBase):
            ignore_inputs(layer, indices)
        elif isinstance(layer, _ConvNd) and layer.transposed:
            layer.weight[indices] = 0
        elif isinstance(layer, _ConvNd):
            layer.weight[:, [index for index in indices if index < layer.in_channels // layer.groups]] = 0
    return result


def _bypassed(model: nn.Module, kinds: tuple[type[nn.Module], ...]) -> AbstractContextManager[None]:
    """Let modules of these classes hand on what they read."""
    return hooked(
        module.register_forward_hook(lambda _module, inputs, _output: inputs[0])
        for module in model.modules()
        if isinstance(module, kinds)
    )
