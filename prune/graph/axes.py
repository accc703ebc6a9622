"""On which axis of a traced tensor the channels lie: followed from the layer that made them, by autograd's nodes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import prod
from operator import mul
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.instancenorm import _InstanceNorm
from torch_pruning._helpers import _HybridIndex
from torch_pruning.dependency import shape_infer

_SECOND = (_ConvNd, _BatchNorm, _InstanceNorm, nn.GroupNorm, nn.PReLU)
_LAST = (nn.Linear, nn.LayerNorm, nn.RMSNorm, nn.Embedding, nn.RNNBase)
_NO_ENDS = ("select", "unbind", "view", "reshape", "index", "bmm", "matmul", "attention")  # of an axis
_NEGATIVE = 2**63  # from here on autograd's unsigned integers stand for negative axes


class Axes:
    """Finds the axis of the channels at nodes of torch-pruning's graph, each once.

    ``at(node)`` is the axis in the node's output, None where it is not known: after products of two activations, after
    reshapes that split or merge channels, in tensors that no layer has made.
    """

    def __init__(self) -> None:
        self._axes: dict[Any, int | None] = {}

    def at(self, node: Any) -> int | None:
        """Return the axis of the channels in a node's output."""
        stack, opened = [node], set()  # deep networks are deeper than Python's stack
        while stack:
            top = stack[-1]
            missing = [] if top in opened or _fixed(top) else [other for other in top.inputs if other not in self._axes]
            opened.add(top)
            if missing:
                stack.extend(missing)
                continue
            self._axes.setdefault(stack.pop(), self._of(top))
        return self._axes[node]

    def into(self, node: Any) -> int | None:
        """Return the axis of the channels in a node's input."""
        for other in node.inputs:
            if (axis := self.at(other)) is not None:
                return axis
        return None

    def is_single(self, node: Any) -> bool:
        """Tell a node whose output holds one channel: a map that gates all others, or a statistic over them."""
        axis, shape = self.at(node), output_shape(node)
        return axis is not None and shape is not None and shape[axis] == 1

    def is_end(self, node: Any) -> bool:
        """Tell a node that takes the axis of the channels away, and so their number: a mean over them, say."""
        before = self._before(node)
        after = output_shape(node)
        if before is None or after is None or _fixed(node):
            return False
        (axis, shape), kind = before, node.grad_fn.name().lower()
        if "topk" in kind:
            return axis_of(node, len(shape)) == axis
        removed = None if any(name in kind for name in _NO_ENDS) else _removed(node.grad_fn, len(shape), shape, after)
        return removed is not None and axis in removed

    def _before(self, node: Any) -> tuple[int, tuple[int, ...]] | None:
        for other in node.inputs:
            axis, shape = self.at(other), input_shape(node) or output_shape(other)
            if axis is not None and shape is not None and axis < len(shape):
                return axis, shape
        return None

    def _of(self, node: Any) -> int | None:
        shape = output_shape(node)
        if shape is None:
            return None
        if _fixed(node):
            return _axis_made(node.module, shape)
        for other in node.inputs:
            before, axis = input_shape(node) or output_shape(other), self._axes.get(other)
            if before is not None and axis is not None and axis < len(before):
                return _through(node.grad_fn, axis, before, shape)
        return None


def output_shape(node: Any) -> tuple[int, ...] | None:
    """Return the shape of a node's output: that of the gradient which comes in."""
    metadata = getattr(node.grad_fn, "_input_metadata", None)
    return tuple(map(int, metadata[0].shape)) if metadata else None


def input_shape(node: Any) -> tuple[int, ...] | None:
    """Return the shape of a node's input, where autograd keeps it."""
    function = node.grad_fn
    sizes = getattr(function, "_saved_self_sym_sizes", None) or getattr(function, "_saved_self_sizes", None)
    return None if sizes is None else tuple(map(int, sizes))


def axis_of(node: Any, rank: int) -> int | None:
    """Return the axis that a node splits, slices, selects or adds."""
    axis = getattr(node.grad_fn, "_saved_dim", None)
    return None if axis is None else _positive(axis, rank)


def _fixed(node: Any) -> bool:
    return isinstance(node.module, (*_SECOND, *_LAST))


def _axis_made(module: nn.Module, shape: Sequence[int]) -> int:
    """Return the axis on which a layer makes channels; some layer norms are made for images, [N, C, H, W]."""
    second, last = min(1, len(shape) - 1), len(shape) - 1
    if isinstance(module, _SECOND):
        return second
    if isinstance(module, nn.LayerNorm) and type(module) is not nn.LayerNorm:
        width = module.normalized_shape[-1]
        if shape[second] == width and (shape[last] != width or type(module).__name__.endswith("2d")):
            return second
    return last


def _positive(axis: int, rank: int) -> int:
    return int(axis - 2 * _NEGATIVE if axis >= _NEGATIVE else axis) % rank


def _through(function: Any, axis: int, before: Sequence[int], after: Sequence[int]) -> int | None:
    """Follow an axis through an operation from one shape to another."""
    kind, rank = function.name().lower(), len(before)
    if "permute" in kind:
        return [_positive(dim, rank) for dim in function._saved_dims].index(axis)
    if "transpose" in kind:
        first, second = (_positive(dim, rank) for dim in (function._saved_dim0, function._saved_dim1))
        return {first: second, second: first}.get(axis, axis)
    if kind.startswith("tback"):
        return 1 - axis
    if "view" in kind or "reshape" in kind:
        return _reshaped(axis, before, after)
    if "bmm" in kind or "matmul" in kind or "attention" in kind or "index" in kind:
        return None
    if len(after) == rank:
        return axis
    removed = _removed(function, rank, before, after)
    if removed is not None:
        return None if axis in removed else axis - sum(other < axis for other in removed)
    if len(after) > rank:
        # A new axis, or shapes that are aligned at their ends.
        new = _positive(function._saved_dim, len(after)) if "unsqueeze" in kind else 0
        return axis + (len(after) - rank) * (new <= axis)
    return None


def _reshaped(axis: int, before: Sequence[int], after: Sequence[int]) -> int | None:
    """Find the axis that begins after as many elements and is as long."""
    starts = [1, *accumulate(after, mul)]
    for place, (start, size) in enumerate(zip(starts, after, strict=False)):
        if (start, size) == (prod(before[:axis]), before[axis]):
            return place
    return None


def _removed(function: Any, rank: int, before: Sequence[int], after: Sequence[int]) -> set[int] | None:
    """Return the axes that a reduction, a selection or a squeeze takes away."""
    named = getattr(function, "_saved_dim", None)
    if len(after) >= rank:
        return None
    if named is None:
        ones = {place for place, size in enumerate(before) if size == 1}
        return ones if rank - len(ones) == len(after) else None
    several = named if isinstance(named, tuple | list) else (named,)
    removed = {_positive(dim, rank) for dim in several}
    return removed if rank - len(removed) == len(after) else None


class _Moved:
    """Maps torch-pruning's pairs of an index and the index of the root that it comes from."""

    def __call__(self, indices: Sequence[Any]) -> list[Any]:
        """Return the pairs there; of the features that make up a channel the first stands for all: they go together."""
        roots: dict[int, Any] = {}
        for index in indices:
            for other in self._others(index.idx):
                roots.setdefault(other, index.root_idx)
        return [_HybridIndex(idx=index, root_idx=root) for index, root in roots.items()]

    def _others(self, index: int) -> Sequence[int]:
        raise NotImplementedError


@dataclass(frozen=True)
class Flattened(_Moved):
    """Maps channels to the features that flattening makes of them, or back.

    Args:
        positions: how many features each channel becomes.
        channels: how many there are, if they lie on the last axis; None if on the second.
        back: from features to channels.
    """

    positions: int
    channels: int | None
    back: bool

    def _others(self, index: int) -> Sequence[int]:
        if self.back:
            return (index // self.positions if self.channels is None else index % self.channels,)
        if self.channels is None:
            return range(index * self.positions, (index + 1) * self.positions)
        return range(index, self.channels * self.positions, self.channels)


@dataclass(frozen=True)
class Halved(_Moved):
    """Maps channels to those of a gated linear unit, of which each is made of two, or back.

    Args:
        half: how many the unit has.
        back: from its channels to those of both halves.
    """

    half: int
    back: bool

    def _others(self, index: int) -> Sequence[int]:
        return (index, index + self.half) if self.back else (index % self.half,)


@dataclass(frozen=True)
class Reshape:
    """What a reshape does: ``positions`` is 1 where channels stay what they are, ``undone`` if it unflattens."""

    positions: int = 1
    channels: int = 0
    last: bool = False
    undone: bool = False
    shuffles: bool = False


def read_reshape(graph: Any, node: Any, axis: int | None) -> Reshape:
    """Read what a reshape does, to channels on an axis of its input, where that is known.

    One that neither flattens nor undoes that keeps the channels where they are. Widths of layers come from the graph.
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
