"""What a channel is worth. One plain function a kind; all see the same group and give one score a unit.

A score is meaningful within its group up to a factor: ``unit_scores`` divides by the group's mean, so that layers of
one pattern can be ranked together. The scores of kinds in ``COMPARABLE`` mean the same in every group: ``mean_score``.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from distill.prune.attention.heads import AttentionGroup
from distill.prune.graph.groups import ChannelGroup, Member, is_depthwise

Evidence = Mapping[str, Tensor]
"""What batches of data said about each group, by its name: one number a channel."""
Importance = Callable[[ChannelGroup, int, Evidence], Tensor | None]


def magnitude(group: ChannelGroup, seed: int, evidence: Evidence) -> Tensor | None:
    """L1 norm of the filters that make the channel (Li et al. 2017, arXiv 1608.08710)."""
    return _total(group, lambda weight: weight.abs(), sides=("out",), kinds=(_ConvNd, nn.Linear))


def l2(group: ChannelGroup, seed: int, evidence: Evidence) -> Tensor | None:
    """L2 norm of the filters that make the channel (He et al. 2018, arXiv 1808.06866)."""
    squares = _total(group, torch.square, sides=("out",), kinds=(_ConvNd, nn.Linear))
    return None if squares is None else squares.sqrt()


def group_norm(group: ChannelGroup, seed: int, evidence: Evidence) -> Tensor | None:
    """Squared L2 norm of all weights that go with the channel (Fang et al. 2023, arXiv 2301.12900)."""
    return _total(group, lambda weight: weight.square())


def taylor(group: ChannelGroup, seed: int, evidence: Evidence) -> Tensor | None:
    """First-order change of the loss when the channel goes, squared: Σ_b (Σ_w w · ∂L_b/∂w)² over batches b.

    Source: Molchanov et al. 2019 (arXiv 1906.10771). Squared for each batch, before they are added: at the end of a
    training the gradients of batches cancel, and their sum says little. ``first_order`` is the term of one batch.
    """
    return evidence.get(group.name)


def hessian(group: ChannelGroup, seed: int, evidence: Evidence) -> Tensor | None:
    """Second-order change of the loss when the channel goes: Σ_b Σ_w w² · (∂L_b/∂w)² over batches b.

    Source: LeCun et al. 1990 (Optimal Brain Damage), with the squared gradients of batches for the Hessian's diagonal
    (the empirical Fisher information), as it is usual for networks. ``second_order`` is the term of one batch.
    """
    return evidence.get(group.name)


def gauss_newton(group: ChannelGroup, seed: int, evidence: Evidence) -> Tensor | None:
    """Squared change of the logits when the channel goes: Σ_b E_x ‖Σ_w w · ∂z/∂w‖², to first order.

    Where a model is distilled from itself the loss is least, and its gradient says nothing about what a cut does: the
    curvature does. This is its Gauss-Newton form along the direction of the removal, for a squared error of the logits
    z, which the distillation loss is at high temperature (Hinton et al. 2015, arXiv 1503.02531). Further outputs count
    as much as the logits; what a softmax does not see does not count.
    Source: Nonnenmacher et al. 2022 (SOSP, arXiv 2110.11395), the terms of single structures; the norm over logits is
    estimated by random signs (Hutchinson 1989). ``reading`` is what one batch says, squared by ``of_units``.
    """
    return evidence.get(group.name)


def first_order(group: ChannelGroup) -> Tensor | None:
    """Return Σ w · ∂L/∂w over all weights that go with each channel, float64 [channels]; gradients lie in ``.grad``.

    A parameter that the loss does not reach counts nothing.
    """

    def change(weight: Tensor) -> Tensor:
        return torch.zeros_like(weight) if weight.grad is None else weight * weight.grad

    return _total(group, change)


def reading(group: ChannelGroup) -> Tensor | None:
    """Return Σ w · ∂L/∂w over the weights that read each channel, float64 [channels]; else as `first_order`.

    To first order that is what the loss changes by when nothing reads the channel. Weights that make it would tell the
    same again, but for biases and for norms in between. Where nothing with weights reads it, those that make it tell.
    A dimension of all heads speaks through the scores as well: of queries, keys, values and the projection that reads
    them, each pair tells its half twice.
    """

    def change(weight: Tensor) -> Tensor:
        return torch.zeros_like(weight) if weight.grad is None else weight * weight.grad

    if isinstance(group, AttentionGroup) and group.kind == "head_dim":
        both = first_order(group)
        return None if both is None else both / 2
    found = _total(group, change, sides=("in",))
    return first_order(group) if found is None else found


def of_units(group: ChannelGroup, change: Tensor) -> Tensor:
    """Square the change of each unit as a whole, and share it among its channels: [channels], as ``change``."""
    owner = torch.zeros(group.width, dtype=torch.long)
    for index, unit in enumerate(group.units):
        owner[list(unit)] = index
    sizes = torch.tensor([len(unit) for unit in group.units], dtype=change.dtype)
    whole = torch.zeros_like(sizes).index_add_(0, owner, change)
    return (whole.square() / sizes)[owner]


def second_order(group: ChannelGroup) -> Tensor | None:
    """Return Σ w² · (∂L/∂w)² over all weights that go with each channel, float64 [channels]; else as `first_order`."""

    def change(weight: Tensor) -> Tensor:
        return torch.zeros_like(weight) if weight.grad is None else (weight * weight.grad).square()

    return _total(group, change)


def bn_scale(group: ChannelGroup, seed: int, evidence: Evidence) -> Tensor | None:
    """Size of the batch-norm factors (Liu et al. 2017, arXiv 1708.06519); None where no batch norm follows."""
    return _total(group, lambda weight: weight.abs(), kinds=(_BatchNorm,))


def random(group: ChannelGroup, seed: int, evidence: Evidence) -> Tensor | None:
    """Chance, from the seed and the layer's name: what any other kind has to beat."""
    generator = torch.Generator().manual_seed(zlib.crc32(group.name.encode()) + seed)
    return torch.rand(group.width, generator=generator, dtype=torch.float64)


IMPORTANCES: dict[str, Importance] = {
    "magnitude": magnitude,
    "l2": l2,
    "group_norm": group_norm,
    "taylor": taylor,
    "hessian": hessian,
    "gauss_newton": gauss_newton,
    "bn_scale": bn_scale,
    "random": random,
}

FROM_BATCHES: dict[str, Callable[[ChannelGroup], Tensor | None]] = {
    "taylor": lambda group: None if (change := first_order(group)) is None else change.square(),
    "hessian": second_order,
    "gauss_newton": lambda group: None if (change := reading(group)) is None else of_units(group, change),
}
"""What a batch says about each channel of a group, after its backward pass; the batches are added up."""

OF_LOGITS = frozenset({"gauss_newton"})
"""The kinds whose backward pass starts at the logits, not at the loss."""

COMPARABLE = OF_LOGITS
"""The kinds whose scores are in one unit for all groups, so that any layers can be weighed against each other."""


@torch.no_grad()
def unit_scores(group: ChannelGroup, kind: str, seed: int, evidence: Evidence) -> list[float] | None:
    """Return one score a unit of the group with mean 1; None if this kind says nothing about the group.

    Where nothing depends on a whole group, a kind in ``COMPARABLE`` says so: all units score 1, and the mean is 0.
    """
    units = _units(group, kind, seed, evidence)
    mean = sum(units) / max(1, len(units))
    if kind in COMPARABLE and mean == 0 and units:
        return [1.0] * len(units)
    if not 0 < mean < float("inf"):  # all zero, or not a number
        return None
    return [score / mean for score in units]


@torch.no_grad()
def mean_score(group: ChannelGroup, kind: str, evidence: Evidence) -> float | None:
    """Return what ``unit_scores`` divided by, where that can be compared between groups; else None."""
    if kind not in COMPARABLE:
        return None
    units = _units(group, kind, 0, evidence)
    return sum(units) / max(1, len(units))


def _units(group: ChannelGroup, kind: str, seed: int, evidence: Evidence) -> list[float]:
    scores = IMPORTANCES[kind](group, seed, evidence)
    return [] if scores is None else [float(scores[list(unit)].sum()) for unit in group.units]


def _total(
    group: ChannelGroup,
    measure: Callable[[Tensor], Tensor],
    *,
    sides: tuple[str, ...] = ("out", "in"),
    kinds: tuple[type[nn.Module], ...] = (nn.Module,),
) -> Tensor | None:
    """Sum ``measure`` of the weights over the group's layers, for every root channel; None if there is no weight."""
    total = torch.zeros(group.width, dtype=torch.float64)
    found = False
    for member in group.members:
        if member.side not in sides or not isinstance(member.module, kinds):
            continue
        for rows in _channel_rows(member, measure):
            roots = [root for root in member.roots if root is not None]
            if len(roots) == len(member.roots):
                picked = rows[torch.tensor(member.indices, device=rows.device)]
                total.index_add_(0, torch.tensor(roots), picked.double().cpu())
                found = True
    return total if found else None


def _channel_rows(member: Member, measure: Callable[[Tensor], Tensor]) -> Iterator[Tensor]:
    """Yield ``measure`` of the weight that belongs to each channel of the member's side, summed: [channels]."""
    module: Any = member.module
    weight = getattr(module, "weight", None)
    if weight is None or isinstance(module, nn.PReLU):
        return
    values = measure(weight)
    if isinstance(module, _ConvNd) and not is_depthwise(module):
        if module.transposed:
            yield values.flatten(1).sum(1) if member.side == "in" else values.transpose(0, 1).flatten(1).sum(1)
        elif member.side == "out":
            yield values.flatten(1).sum(1)
        else:
            parts = module.groups
            # A grouped layer's input channel is read by the filters of its own group only.
            yield values.flatten(2).sum(2).reshape(parts, -1, values.shape[1]).sum(1).flatten()
    elif isinstance(module, nn.Linear):
        yield values.sum(0 if member.side == "in" else 1)
    elif isinstance(module, nn.Embedding):
        yield values.sum(0)
    else:
        yield values.flatten(1).sum(1) if values.ndim > 1 else values
