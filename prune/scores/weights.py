"""The weights of a group as an importance sees them, added up by channel; and the scores of units that come of it."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from distill.prune.attention.heads import AttentionGroup
from distill.prune.graph.groups import ChannelGroup, Member, is_depthwise
from distill.prune.scores.importance import Importance

Of = Literal["all", "filters", "readers", "batch norms"]
_PARTS: dict[Of, tuple[tuple[str, ...], tuple[type[nn.Module], ...]]] = {
    "all": (("out", "in"), (nn.Module,)),
    "filters": (("out",), (_ConvNd, nn.Linear)),
    "readers": (("in",), (nn.Module,)),
    "batch norms": (("out", "in"), (_BatchNorm,)),
}
"""The sides and classes of the members that are summed over."""


@dataclass(frozen=True)
class Weights:
    """The weights of one group; after a backward pass their gradients lie in ``.grad``."""

    group: ChannelGroup
    seed: int = 0

    def total(self, measure: Callable[[Tensor], Tensor], of: Of = "all") -> Tensor | None:
        """Sum ``measure`` of weights for every root channel, float64 [channels]; None if there is no weight.

        Args:
            measure: of a weight, in its shape.
            of: all weights that go with a channel, the filters that make it, those that read it, or batch norms'.
        """
        sides, kinds = _PARTS[of]
        total = torch.zeros(self.group.width, dtype=torch.float64)
        has_weight = False
        for member in self.group.members:
            if member.side not in sides or not isinstance(member.module, kinds):
                continue
            rows = _channel_rows(member, measure)
            roots = [root for root in member.roots if root is not None]
            if rows is not None and len(roots) == len(member.roots):
                picked = rows[torch.tensor(member.indices, device=rows.device)]
                total.index_add_(0, torch.tensor(roots), picked.double().cpu())
                has_weight = True
        return total if has_weight else None

    def change(self, measure: Callable[[Tensor], Tensor] = lambda change: change, of: Of = "all") -> Tensor | None:
        """Sum ``measure`` of w · ∂L/∂w as ``total`` does; a parameter that the loss does not reach counts nothing."""

        def change(weight: Tensor) -> Tensor:
            return torch.zeros_like(weight) if weight.grad is None else measure(weight * weight.grad)

        return self.total(change, of)

    def change_of_readers(self) -> Tensor | None:
        """Sum w · ∂L/∂w over the weights that read each channel, float64 [channels].

        To first order that is what the loss changes by when nothing reads the channel. Weights that make it would tell
        the same again, but for biases and for norms in between. Where nothing with weights reads it, those that make it
        tell. A dimension of all heads speaks through the scores as well: of queries, keys, values and the projection
        that reads them, each pair tells its half twice.
        """
        if isinstance(self.group, AttentionGroup) and self.group.kind == "head_dim":
            twice = self.change()
            return None if twice is None else twice / 2
        change = self.change(of="readers")
        return self.change() if change is None else change

    def squared_by_unit(self, change: Tensor) -> Tensor:
        """Square the change of each unit as a whole, and share it among its channels: [channels], as ``change``."""
        owner = torch.zeros(self.group.width, dtype=torch.long)
        for index, unit in enumerate(self.group.units):
            owner[list(unit)] = index
        sizes = torch.tensor([len(unit) for unit in self.group.units], dtype=change.dtype)
        whole = torch.zeros_like(sizes).index_add_(0, owner, change)
        return (whole.square() / sizes)[owner]

    def chance(self) -> Tensor:
        """Draw a number in [0, 1) for each channel, from the seed and the group's name: float64 [channels]."""
        generator = torch.Generator().manual_seed(zlib.crc32(self.group.name.encode()) + self.seed)
        return torch.rand(self.group.width, generator=generator, dtype=torch.float64)


@dataclass(frozen=True)
class Scores:
    """One score a unit of a group, with mean 1, and the ``mean`` before that, where groups can be compared by it."""

    units: tuple[float, ...]
    mean: float | None


@torch.no_grad()
def unit_scores(
    group: ChannelGroup, importance: Importance, seed: int, evidence: Mapping[str, Tensor]
) -> Scores | None:
    """Return the scores of a group's units; None if this kind of importance says nothing about the group.

    Where nothing depends on a whole group, a comparable kind says so: all units score 1, and the mean is 0. Kinds that
    need data take what batches said about each group's channels from ``evidence``, by the group's name.
    """
    channels = evidence.get(group.name) if importance.needs_batches else importance.score(Weights(group, seed))
    units = [] if channels is None else [float(channels[list(unit)].sum()) for unit in group.units]
    mean = sum(units) / max(1, len(units))
    if importance.comparable and mean == 0 and units:
        return Scores((1.0,) * len(units), mean)
    if not 0 < mean < float("inf"):  # all zero, or not a number
        return None
    return Scores(tuple(score / mean for score in units), mean if importance.comparable else None)


def _channel_rows(member: Member, measure: Callable[[Tensor], Tensor]) -> Tensor | None:
    """Return ``measure`` of the weight that belongs to each channel of the member's side, summed: [channels]."""
    module: Any = member.module
    weight = getattr(module, "weight", None)
    if weight is None or isinstance(module, nn.PReLU):
        return None
    values: Tensor = measure(weight)
    if isinstance(module, nn.Linear):
        return values.sum(0 if member.side == "in" else 1)
    if isinstance(module, nn.Embedding):
        return values.sum(0)
    if not isinstance(module, _ConvNd) or is_depthwise(module):
        return values.flatten(1).sum(1) if values.ndim > 1 else values
    if module.transposed:
        return values.flatten(1).sum(1) if member.side == "in" else values.transpose(0, 1).flatten(1).sum(1)
    if member.side == "out":
        return values.flatten(1).sum(1)
    # A grouped layer's input channel is read by the filters of its own group only.
    return values.flatten(2).sum(2).reshape(module.groups, -1, values.shape[1]).sum(1).flatten()
