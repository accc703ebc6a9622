"""What a reshape does to channels: told by the shapes on both sides of it, and as a mapping of their indices."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch_pruning._helpers import _HybridIndex
from torch_pruning.dependency import shape_infer

from distill.prune.graph.axes import input_shape, output_shape


@dataclass(frozen=True)
class Flattened:
    """Maps channels to the features that flattening makes of them, or back.

    Args:
        positions: how many features each channel becomes.
        channels: how many there are, if they lie on the last axis; None if on the second.
        back: from features to channels.
    """

    positions: int
    channels: int | None
    back: bool

    def __call__(self, indices: Sequence[Any]) -> list[Any]:
        """Map torch-pruning's pairs of an index and the index of the root that it comes from."""
        roots: dict[int, Any] = {}
        for index in indices:
            for other in self._others(index.idx):
                # Of the features that make up a channel the first stands for all: they go together.
                roots.setdefault(other, index.root_idx)
        return [_HybridIndex(idx=index, root_idx=root) for index, root in roots.items()]

    def _others(self, index: int) -> Sequence[int]:
        if self.back:
            return (index // self.positions if self.channels is None else index % self.channels,)
        if self.channels is None:
            return range(index * self.positions, (index + 1) * self.positions)
        return range(index, self.channels * self.positions, self.channels)


@dataclass(frozen=True)
class Reshape:
    """What a reshape does: ``positions`` is 1 where channels stay what they are, ``undone`` if it unflattens."""

    positions: int = 1
    channels: int = 0
    last: bool = False
    undone: bool = False
    shuffles: bool = False


def read_reshape(graph: Any, node: Any, axis: int | None) -> Reshape:
    """Read what a reshape does; one that neither flattens nor undoes that keeps the channels where they are.

    Args:
        graph: torch-pruning's, in which widths of layers are looked up.
        node: the reshape.
        axis: of the channels in its input, where that is known.
    """
    before, after = input_shape(node), output_shape(node)
    if before is None or after is None:
        return Reshape()
    # [N, g * C, H, W] becomes [N, g, C, H, W]: groups of as many channels each, or the first step of a shuffle.
    if axis == 1 and len(before) == 4 and len(after) > 4 and after[-2:] == before[-2:]:
        if len(after) > 5 or any(map(_moves_axes, node.outputs)):
            return Reshape(shuffles=True)
        return Reshape(after[1], after[2], last=True, undone=True)
    undone = len(after) > len(before)
    wide, flat = (after, before) if undone else (before, after)
    if len(flat) != 2 or len(wide) < 3 or wide[0] != flat[0]:
        return Reshape()
    if undone:
        # Of what follows nothing is known yet but the layers: one that reads as many channels says where they are.
        read = (shape_infer.infer_in_channels_recursively(graph, other, [0]) for other in node.outputs)
        axis = 1 if wide[1] in read else None
    elif axis is None and len(wide) > 3:
        axis = 1
    if axis not in (1, len(wide) - 1):
        return Reshape()
    return Reshape(math.prod(wide[1:]) // wide[axis], wide[axis], last=axis > 1, undone=undone)


def _moves_axes(node: Any) -> bool:
    """Tell a transposition, also behind a copy."""
    if node.grad_fn.name().startswith("CloneBackward"):
        return any(map(_moves_axes, node.outputs))
    return bool(node.grad_fn.name().startswith(("TransposeBackward", "PermuteBackward")))
