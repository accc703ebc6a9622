"""What a graph says its outputs hold: softmax, sigmoid or a linear layer, and along which axis."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, numpy_helper

from distill.outputs import Tail

from .graph import attribute, axes_of, initializers, lengths, opset_of, producers, tensor_types
from .stripping import constant_tensor

# The axis of an operator's output that its sums of products, or its classes, lie along.
_LINEAR = {
    **dict.fromkeys(("MatMul", "Gemm", "FusedMatMul", "FusedGemm", "MatMulInteger"), -1),
    **dict.fromkeys(("Conv", "FusedConv", "ConvTranspose"), 1),
}
# Operators whose output has the axes of their first input, with values that keep their order.
_KEEP = {
    *("Identity", "Cast", "CastLike", "Dropout", "Clip", "Relu", "LeakyRelu", "PRelu", "Slice", "Split", "Pad"),
    *("BatchNormalization", "GlobalAveragePool", "GlobalMaxPool", "AveragePool", "MaxPool", "LpPool", "Resize"),
    *("Upsample", "DepthToSpace", "QuantizeLinear", "DequantizeLinear", "Min", "Max"),
}
_REDUCE = {"ReduceMean", "ReduceMax", "ReduceSum", "ReduceLogSumExp"}
_SCALE = {"Add", "Sub", "Mul", "Div", "Neg"}
_LOST = {"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Gather", "Expand", "Tile", "SpaceToDepth"} | _REDUCE
_LARGE = 1024  # elements from which on a constant is no shape or list of axes, but a weight
Axes = tuple[int | None, ...]  # of each axis of the output, which axis of the tensor it is


def tail_of(model: ModelProto, name: str, rank: int) -> Tail:
    """Walk back from an output of ``rank`` axes to the operator that its values come from."""
    return _Walk(model).back(name, tuple(range(rank)), rank)


class _Walk:
    """Follows one output back through the top level of a graph."""

    def __init__(self, model: ModelProto) -> None:
        self.graph = model.graph
        self.opset = opset_of(model)
        self.makers = producers(model.graph)
        self.constants = initializers(model.graph)
        self.inputs = {value.name for value in model.graph.input}
        types = tensor_types(_without_weights(model), data_prop=True)
        self.shapes = {name: shape for name, tensor in types.items() if (shape := lengths(tensor)) is not None}

    def back(self, name: str, axes: Axes, rank: int) -> Tail:
        """Return where a tensor of `rank` axes comes from; `axes` says where those of the output lie in it."""
        scaled = False
        while (node := self.makers.get(name)) is not None:
            if node.op_type in ("Softmax", "LogSoftmax", "Sigmoid", "HardSigmoid") or self._is_logistic(node):
                return replace(self._activation(node, axes, rank), scaled=scaled)
            if node.op_type in _LINEAR:
                axis = _LINEAR[node.op_type] % rank
                return Tail(node.op_type, "linear", _place(axes, axis), scaled)
            if node.op_type == "Concat":
                return self._joined(node, axes, rank, scaled)
            computed = [source for source in node.input if source and not self._is_fixed(source)]
            if node.op_type in _SCALE and len(computed) > 1:
                return self._added(node, computed, axes, rank)
            moved = self._moved(node, axes, rank)
            if moved is None and node.op_type not in _LOST:
                return Tail(node.op_type, "other", scaled=scaled)
            scaled = scaled or node.op_type in _SCALE
            name = (computed or list(node.input))[0]
            if moved is None:  # what it is can still be found, where its axes are cannot
                moved = (None,) * len(axes), len(self.shapes.get(name) or axes) or 1
            axes, rank = moved
        return Tail("an input" if name in self.inputs else "a constant", "other", scaled=scaled)

    def _activation(self, node: NodeProto, axes: Axes, rank: int) -> Tail:
        if node.op_type not in ("Softmax", "LogSoftmax"):
            return Tail(node.op_type if "Sigmoid" in node.op_type else "Sigmoid", "sigmoid")
        default = -1 if self.opset >= 13 else 1
        axis = _int(node, "axis", default) % rank
        family = "softmax" if node.op_type == "Softmax" else "log_softmax"
        # Before opset 13 all axes from this one on are normalised together, as if they were one.
        following = [self._size(node.output[0], other) for other in range(axis + 1, rank)]
        together = self.opset < 13 and any(size != 1 for size in following)
        return Tail(node.op_type, family, None if together else _place(axes, axis))  # type: ignore[arg-type]

    def _size(self, name: str, axis: int) -> int | None:
        shape = self.shapes.get(name)
        return None if shape is None or axis >= len(shape) else shape[axis]

    def _joined(self, node: NodeProto, axes: Axes, rank: int, scaled: bool) -> Tail:
        """Return what all parts of a concatenation are, or say that they are of several kinds."""
        parts = [self.back(part, axes, rank) for part in node.input if not self._is_fixed(part)]
        kinds = {(part.family, part.axis) for part in parts}
        names = ", ".join(dict.fromkeys(part.operator for part in parts if part.operator))
        if len(kinds) == 1 and parts[0].family != "other":
            return replace(parts[0], scaled=scaled or any(part.scaled for part in parts))
        return Tail(f"Concat of {names}" if names else "Concat", "mixed" if len(kinds) > 1 else "other")

    def _added(self, node: NodeProto, computed: Sequence[str], axes: Axes, rank: int) -> Tail:
        """Return where sums of several linear layers come from; other mixtures are no longer what they are made of."""
        ranks = [self.shapes.get(part) for part in computed]
        if node.op_type not in ("Add", "Sub") or any(part is not None and len(part) != rank for part in ranks):
            return Tail(node.op_type, "other")
        parts = [self.back(part, axes, rank) for part in computed]
        if all(part.family == "linear" for part in parts) and len({part.axis for part in parts}) == 1:
            return replace(parts[0], operator=node.op_type, scaled=True)
        return Tail(node.op_type, "other")

    def _moved(self, node: NodeProto, axes: Axes, rank: int) -> tuple[Axes, int] | None:
        """Return where the output's axes lie before a node, and how many axes there are; None where it computes."""
        kind = node.op_type
        if kind in _KEEP or kind in _SCALE:
            return axes, rank
        steps: dict[str, Callable[[NodeProto, int], tuple[Axes, int] | None]] = {
            "Transpose": self._transpose,
            "Squeeze": self._squeeze,
            "Unsqueeze": self._unsqueeze,
            "Gather": self._gather,
            "Flatten": self._reshape,
            "Reshape": self._reshape,
            **dict.fromkeys(_REDUCE, self._reduce),
        }
        move = steps[kind](node, rank) if kind in steps else None
        if move is None:
            return None
        places, before = move
        return tuple(None if axis is None else places[axis] for axis in axes), before

    # Each of these returns, for each axis behind a node, the axis before it, and how many there are before it.

    def _transpose(self, node: NodeProto, rank: int) -> tuple[Axes, int]:
        order = attribute(node, "perm", list(range(rank))[::-1])
        assert isinstance(order, list)
        return tuple(order), rank

    def _squeeze(self, node: NodeProto, rank: int) -> tuple[Axes, int] | None:
        removed = self._axes(node)
        if removed is None:
            shape = self.shapes.get(node.input[0])
            removed = None if shape is None else [i for i, size in enumerate(shape) if size == 1]
        return _with_axes(removed, rank)

    def _unsqueeze(self, node: NodeProto, rank: int) -> tuple[Axes, int] | None:
        new = self._axes(node)
        if new is None:
            return None
        added = {axis % rank for axis in new}
        numbers = iter(range(rank - len(added)))
        return tuple(None if i in added else next(numbers) for i in range(rank)), rank - len(added)

    def _reduce(self, node: NodeProto, rank: int) -> tuple[Axes, int] | None:
        return (tuple(range(rank)), rank) if _int(node, "keepdims", 1) else _with_axes(self._axes(node), rank)

    def _gather(self, node: NodeProto, rank: int) -> tuple[Axes, int] | None:
        index = self._value(node.input[1])
        if index is None or index.ndim > 1:
            return None
        before = rank if index.ndim else rank + 1
        axis = _int(node, "axis", 0) % before
        return tuple(i for i in range(before) if index.ndim or i != axis), before

    def _reshape(self, node: NodeProto, rank: int) -> tuple[Axes, int] | None:
        """Follow axes where only those of size 1 come or go; what is merged or parted has no axis any more."""
        before, after = self.shapes.get(node.input[0]), self.shapes.get(node.output[0])
        if before is None or after is None or len(after) != rank:
            return None
        # Unknown sizes are the batch's: they fit where there is one of them on each side.
        old = [(i, size) for i, size in enumerate(before) if size != 1 or i == 0]
        new = [(i, size) for i, size in enumerate(after) if size != 1 or i == 0]
        places: list[int | None] = [None] * rank
        fits = len(old) == len(new) and [size for _, size in old[1:]] == [size for _, size in new[1:]]
        if fits and None not in [size for _, size in old[1:]]:
            for (i, _), (j, _) in zip(old, new, strict=True):
                places[j] = i
        return tuple(places), len(before)

    def _axes(self, node: NodeProto) -> list[int] | None:
        return axes_of(node, self._value)

    def _value(self, name: str) -> np.ndarray[tuple[int, ...], np.dtype[np.generic]] | None:
        """Return a constant's value, or None."""
        node = self.makers.get(name)
        tensor = self.constants.get(name) if node is None else constant_tensor(node)
        return None if tensor is None else np.asarray(numpy_helper.to_array(tensor))

    def _is_fixed(self, name: str) -> bool:
        """Whether a tensor is computed from constants alone."""
        waiting, seen = [name], set[str]()
        while waiting:
            tensor = waiting.pop()
            if tensor in seen or tensor in self.constants or not tensor:
                continue
            seen.add(tensor)
            node = self.makers.get(tensor)
            if (
                node is None
                or node.op_type in ("RandomNormal", "RandomUniform")
                or any(entry.g.node for entry in node.attribute)
            ):
                return False
            waiting += node.input
        return True

    def _is_logistic(self, node: NodeProto) -> bool:
        """Whether a node ends a sigmoid that is written out: 1 / (1 + exp(-x))."""
        if node.op_type == "Div":
            top = self._value(node.input[0])
            if top is None or not (top == 1).all():
                return False
        elif node.op_type != "Reciprocal":
            return False
        total = self.makers.get(node.input[-1])
        if total is None or total.op_type != "Add":
            return False
        values = [self._value(source) for source in total.input]
        ones = [value is not None and bool((value == 1).all()) for value in values]
        makers = [self.makers.get(source) for source in total.input]
        return any(ones) and any(maker is not None and maker.op_type == "Exp" for maker in makers)


def _place(axes: Axes, axis: int) -> int | None:
    """Return the axis of the output that lies on this axis of a tensor."""
    return axes.index(axis) if axis in axes else None


def _with_axes(removed: Sequence[int] | None, rank: int) -> tuple[Axes, int] | None:
    """Say where the axes that are left lay among those that a node removed; None where these are not known."""
    if removed is None:
        return None
    before = rank + len(removed)
    hidden = {axis % before for axis in removed}
    return tuple(i for i in range(before) if i not in hidden), before


def _int(node: NodeProto, name: str, default: int) -> int:
    value = attribute(node, name, default)
    return value if isinstance(value, int) else default


def _without_weights(model: ModelProto) -> ModelProto:
    """Return a graph of which large weights are inputs: their sizes are all that shapes follow from."""
    light = ModelProto()
    light.opset_import.extend(model.opset_import)
    light.functions.extend(model.functions)
    light.ir_version = model.ir_version
    graph = light.graph
    graph.name = model.graph.name or "graph"
    for field in ("node", "input", "output", "value_info"):
        getattr(graph, field).extend(getattr(model.graph, field))
    named = {value.name for value in graph.input}
    for tensor in model.graph.initializer:
        if np.prod(tensor.dims, dtype=np.int64) < _LARGE:
            graph.initializer.append(tensor)
        elif tensor.name not in named:
            graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
    return light
