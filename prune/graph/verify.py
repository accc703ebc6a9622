"""Is a cut model what it should be? Checked by running it, since a dependency graph can be wrong without an error."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.utils._pytree import tree_map

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
_NUDGES = 4  # roundings of all weights whose largest effect is a model's noise
_NOISES = 16  # times that a sum in another order may be off: it rounds at every term

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

    Both compute in float64, so that neither the number of threads nor the order of a sum decides; where forward makes
    tensors of another type, they compute in their own.
    """
    try:
        shapes = output_shapes(pruned, checks.example, checks.logits)
    except UserError as error:
        return f"with fewer of its channels {error}"
    for (name, before), (_, after) in zip(checks.shapes, shapes, strict=True):
        if before != after:
            return f"the shape of {name} changes from {before} to {after}"
    trial, lifted = _Trial(checks, norms, torch.float64), _lifted(pruned, lifts)
    try:
        got, wanted = trial.of_pruned(lifted), trial.of_masked(masked)
    except Exception:  # whatever forward raises where its own tensors meet those in float64, or no memory for both
        trial = _Trial(checks, norms)
        got, wanted = trial.of_pruned(lifted), trial.of_masked(masked)
    if not any(differs(want, got[name]) for name, want in wanted.items()):
        return None
    noise = trial.noise(masked, wanted)
    for name, want in wanted.items():
        if differs(want, got[name], noise[name]):
            return f"{name} does not follow from its remaining channels (it reads the removed ones in another way)"
    return None


@dataclass(frozen=True)
class _Trial:
    """A way to compare a cut model with a masked one: in ``dtype`` or in their own, with ``norms`` as they are or not.

    ``recorded`` are the statistics of the cut one, which is asked first.
    """

    checks: Checks
    norms: bool
    dtype: torch.dtype | None = None
    recorded: Recorded = field(default_factory=Recorded)

    def of_pruned(self, model: nn.Module) -> dict[str, Tensor]:
        """Return the floating-point outputs of the cut model at batch 2, by name."""
        return self._answers(model, self.recorded)

    def of_masked(self, model: nn.Module) -> dict[str, Tensor]:
        """Return those of the masked one, with the statistics of the cut one."""
        return self._answers(model, nullcontext() if self.norms else Repeated(self.recorded.calls))

    @torch.no_grad()
    def _answers(self, model: nn.Module, watch: AbstractContextManager[Any]) -> dict[str, Tensor]:
        model, example = twin(model), at_batch(self.checks.example, 2)
        if self.dtype is not None:
            model, example = model.to(self.dtype), tree_map(self._converted, example)
        with _bypassed(model, () if self.norms else _MIXING), watch:
            outputs = compared(run_alike(model, example), self.checks.logits)
        return {name: tensor for name, tensor in outputs if tensor.is_floating_point()}

    def _converted(self, leaf: Any) -> Any:
        return leaf.to(self.dtype) if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf

    def noise(self, masked: nn.Module, answers: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return how far answers move where every weight is off by a rounding: nobody can tell a cut by less."""
        moved = {name: torch.zeros_like(answer) for name, answer in answers.items()}
        for seed in range(_NUDGES):
            for name, answer in self.of_masked(_nudged(masked, seed)).items():
                moved[name] = torch.maximum(moved[name], (answer - answers[name]).abs().nan_to_num())
        return moved


@torch.no_grad()
def _nudged(model: nn.Module, seed: int) -> nn.Module:
    """Return a copy in which every weight is larger or smaller by the rounding of its own type."""
    result, generator = twin(model), torch.Generator().manual_seed(seed)
    for value in result.parameters():
        if value.is_floating_point():
            up = torch.randint(2, value.shape, generator=generator).to(value)
            value.mul_(1 + (2 * up - 1) * torch.finfo(value.dtype).eps)
    return result


def differs(want: Tensor, have: Tensor, noise: Tensor | None = None) -> bool:
    """Tell whether values are equal up to rounding, each in its own measure: a box in pixels hides no probability.

    The measure of a place is the largest value of its row of the last axis or of the second, the smaller of both, as
    either may be what the values differ by in kind; below a thousandth of what is usual it is rounding that differs,
    and so it is below some ``noise``, which is measured alike. What is not finite must be the same.
    """
    finite = want.isfinite() & have.isfinite()
    same = (want == have) | (want.isnan() & have.isnan())
    if bool((~finite & ~same).any()):
        return True
    if not finite.any():
        return False
    size = torch.where(finite, want.abs(), 0.0).to(torch.float64)
    scale = _measure(size)
    usual = scale[finite].median()
    eps = max(torch.finfo(want.dtype).eps, torch.finfo(torch.float32).eps)  # modules may round to float32 inside
    tolerance = max(_TOLERANCE, 16 * eps) * scale.clamp_min(1e-6)
    tolerance = tolerance + 64 * eps * torch.minimum(size.amax(), 1e3 * usual)
    if noise is not None:
        tolerance = tolerance + _NOISES * _measure(noise.to(torch.float64))
    return bool(((want - have).abs().to(torch.float64) > tolerance)[finite].any())


def _measure(size: Tensor) -> Tensor:
    """Return the largest value of each place's row of the last axis or of the second, the smaller of both."""
    scale = size.amax().expand_as(size)
    for axis in {1, size.ndim - 1} & set(range(1, size.ndim)):
        others = [other for other in range(size.ndim) if other != axis]
        scale = torch.minimum(scale, size.amax(others, keepdim=True))
    return scale


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
