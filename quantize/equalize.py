"""Cross-layer equalisation: let neighbouring layers share their range channel by channel, so that one scale fits all.

A channel that is scaled down in one layer and up in the next leaves the network's function as it was, as long as what
lies between is positively homogeneous. It matters for weights with one scale a layer, and for depthwise convolutions
above all. Source: Nagel et al., "Data-Free Quantization through Weight Equalization and Bias Correction", 2019.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, numpy_helper

from distill.export.graph import attribute, consumers, copy_of, initializers, operator, output_names
from distill.types import Array

# f(s·x) = s·f(x) for s > 0, channel by channel.
_HOMOGENEOUS = frozenset({"Relu", "LeakyRelu", "PRelu", "MaxPool", "AveragePool", "GlobalAveragePool", "Identity"})
_ROUNDS, _SETTLED = 40, 1e-3
_DEAD = 1e-8  # a channel of smaller weights has no range to share


@dataclass
class _Layer:
    """A convolution or a Gemm: its weights as [out, in / groups, ...], changed in place, and its bias."""

    node: NodeProto
    weight: Array
    bias: Array | None
    groups: int
    transposed: bool

    def out_range(self) -> Array:
        """Return the largest weight of each output channel."""
        return np.asarray(np.abs(self.weight).reshape(len(self.weight), -1).max(axis=1))

    def in_range(self) -> Array:
        """Return the largest weight that reads each input channel."""
        flat = np.abs(self.weight).reshape(self.groups, len(self.weight) // self.groups, self.weight.shape[1], -1)
        return np.asarray(flat.max(axis=(1, 3)).reshape(-1))

    def divide_outputs(self, scale: Array) -> None:
        """Make each output channel smaller by its factor."""
        self.weight /= scale.reshape(-1, *[1] * (self.weight.ndim - 1))
        if self.bias is not None:
            self.bias /= scale

    def multiply_inputs(self, scale: Array) -> None:
        """Read each input channel larger by its factor."""
        by_group = scale.reshape(self.groups, 1, self.weight.shape[1])
        by_output = np.repeat(by_group, len(self.weight) // self.groups, axis=1).reshape(self.weight.shape[:2])
        self.weight *= by_output.reshape(*by_output.shape, *[1] * (self.weight.ndim - 2))


def equalize(model: ModelProto) -> tuple[ModelProto, int]:
    """Return an equal graph whose neighbouring layers have the same range in every channel, and the number of pairs.

    Layers are neighbours where nothing but rectifiers and pools lies between them, and nothing else reads on the way.
    The graph that is given is not changed; every layer in it must have weights and bias of its own (`prepare`).
    """
    result = copy_of(model)
    layers = {node.output[0]: layer for node in result.graph.node if (layer := _layer(result.graph, node))}
    by_input = {id(layer.node): layer for layer in layers.values()}
    pairs = [
        (layer, by_input[id(follower)])
        for layer in layers.values()
        if (follower := _follower(result.graph, layer.node)) is not None and id(follower) in by_input
    ]
    pairs = [(first, second) for first, second in pairs if len(first.weight) == len(second.in_range())]
    for _ in range(_ROUNDS):
        moved = 0.0
        for first, second in pairs:
            out, into = first.out_range(), second.in_range()
            alive = (out > _DEAD) & (into > _DEAD)
            scale = np.where(alive, np.sqrt(np.where(alive, out, 1) / np.where(alive, into, 1)), 1.0)
            first.divide_outputs(scale)
            second.multiply_inputs(scale)
            moved = max(moved, float(np.abs(np.log(scale)).max(initial=0.0)))
        if moved < _SETTLED:
            break
    for layer in {id(layer): layer for pair in pairs for layer in pair}.values():
        _write(result.graph, layer)
    return result, len(pairs)


def _layer(graph: GraphProto, node: NodeProto) -> _Layer | None:
    """Read a layer with constant weights in float64, or None for any other node."""
    constants = initializers(graph)
    if operator(node) not in ("Conv", "Gemm") or node.input[1] not in constants:
        return None
    bias = node.input[2] if len(node.input) > 2 else ""
    if bias and (bias not in constants or len(constants[bias].dims) != 1):
        return None
    weight = numpy_helper.to_array(constants[node.input[1]]).astype(np.float64)
    transposed = operator(node) == "Gemm" and not attribute(node, "transB", 0)
    return _Layer(
        node=node,
        weight=weight.T.copy() if transposed else weight,
        bias=numpy_helper.to_array(constants[bias]).astype(np.float64) if bias else None,
        groups=int(attribute(node, "group", 1)) if operator(node) == "Conv" else 1,  # type: ignore[call-overload]
        transposed=transposed,
    )


def _follower(graph: GraphProto, node: NodeProto) -> NodeProto | None:
    """Find the layer that alone reads a layer's output, across what is homogeneous."""
    readers = consumers(graph)
    outputs = output_names(graph)
    name = node.output[0]
    while name not in outputs:
        following = readers.get(name, [])
        if len(following) != 1 or following[0].input[0] != name:
            return None
        follower = following[0]
        if operator(follower) in ("Conv", "Gemm"):
            return follower
        if operator(follower) not in _HOMOGENEOUS or len(follower.output) != 1:
            return None
        name = follower.output[0]
    return None


def _write(graph: GraphProto, layer: _Layer) -> None:
    constants = initializers(graph)
    weight = layer.weight.T if layer.transposed else layer.weight
    for index, value in ((1, weight), (2, layer.bias)):
        if value is not None:
            name = layer.node.input[index]
            constants[name].CopyFrom(numpy_helper.from_array(np.ascontiguousarray(value, np.float32), name))
