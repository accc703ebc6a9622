"""How much of an int8 file relies on a processor that adds the products of 8-bit numbers in 32 bits.

An x86 processor without VNNI multiplies unsigned activations by signed weights in pairs and adds each pair in 16 bits
(VPMADDUBSW): a sum beyond 32,767 saturates, and the answer is wrong without a word. VNNI, AMX and ARM's dot products
add in 32 bits.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import onnx
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, numpy_helper

from distill.benchmarks.onnx_file.drawn_values import whole_attribute
from distill.benchmarks.onnx_file.external_data import unknown_entries_ignored
from distill.types import Array

_LARGEST_ACTIVATION = 255  # of an unsigned byte: values beyond the calibrated range end there, whatever it is
# Operator -> places of (activation, its zero point, weights); None where activations are always unsigned.
_INTEGER: dict[str, tuple[int, int | None, int]] = {
    "QLinearConv": (0, 2, 3),
    "QLinearMatMul": (0, 2, 3),
    "QGemm": (0, 2, 3),
    "ConvInteger": (0, 2, 1),
    "MatMulInteger": (0, 2, 1),
    "MatMulIntegerToFloat": (0, 4, 1),
    "DynamicQuantizeMatMul": (0, None, 1),
    "QAttention": (0, 6, 1),
}
_PAIRED = ("Conv", "Gemm", "MatMul")  # between QuantizeLinear and DequantizeLinear


@unknown_entries_ignored()
def saturating_share(proto: ModelProto, folder: str | Path = "") -> float:
    """Return the share of neighbouring weight pairs whose products can leave 16 bits, 0 to 1.

    The worst case of a pair is the sum of its positive or of its negative weights times the largest activation, 255.
    Only weights of 8 signed bits that meet unsigned activations count: other pairs of types are multiplied in wider
    numbers, and so are depthwise convolutions. External data are looked for in ``folder``; weights that cannot be read
    are left out.
    """
    risky = total = 0
    for rows in _weights(proto.graph, {}, str(folder)):
        pairs = rows[:, : rows.shape[1] // 2 * 2].reshape(len(rows), -1, 2).astype(np.int32)
        worst = np.maximum(pairs.clip(min=0).sum(-1), -pairs.clip(max=0).sum(-1)) * _LARGEST_ACTIVATION
        risky += int((worst > np.iinfo(np.int16).max).sum())
        total += worst.size
    return risky / total if total else 0.0


def _weights(graph: GraphProto, outer: Mapping[str, TensorProto], folder: str) -> Iterator[Array]:
    """Yield the weights of each product with unsigned activations as rows [outputs, inputs], as kernels read them."""
    constants = {**outer, **{tensor.name: tensor for tensor in graph.initializer}}
    makers = {name: node for node in graph.node for name in node.output if name}
    unsigned = {value.name for value in graph.input if value.type.tensor_type.elem_type == TensorProto.UINT8}
    for node in graph.node:
        for entry in node.attribute:
            inner = [entry.g] if entry.type == AttributeProto.GRAPH else entry.graphs
            for part in inner:
                yield from _weights(part, constants, folder)
        if node.op_type in ("QuantizeLinear", "DynamicQuantizeLinear"):  # whose default is unsigned
            point = constants.get(_input(node, 2))
            unsigned |= set(node.output) if point is None or point.data_type == TensorProto.UINT8 else set()
            continue
        activation, zero, weight = _factors(node, makers)
        tensor = constants.get(weight)
        if tensor is None or tensor.data_type != TensorProto.INT8 or len(tensor.dims) < 2:
            continue
        # An activation is made of unsigned bytes where its zero point says so, or else what made it.
        point = constants.get(zero or "")
        by_zero = activation in unsigned if point is None else point.data_type == TensorProto.UINT8
        if zero is None or by_zero:
            with contextlib.suppress(OSError, ValueError, onnx.checker.ValidationError):
                rows = _rows(node, numpy_helper.to_array(tensor, folder))
                if rows is not None:
                    yield rows


def _factors(node: NodeProto, makers: Mapping[str, NodeProto]) -> tuple[str, str | None, str]:
    """Name what a product multiplies: activation, its zero point (None: always unsigned), weights; else nothing."""
    if node.op_type in _INTEGER:
        activation, zero, weight = _INTEGER[node.op_type]
        return _input(node, activation), None if zero is None else _input(node, zero), _input(node, weight)
    left, right = (makers.get(_input(node, place)) for place in (0, 1))
    if node.op_type not in _PAIRED or left is None or right is None:
        return "", "", ""
    if {left.op_type, right.op_type} != {"DequantizeLinear"}:
        return "", "", ""
    return left.input[0], _input(left, 2), right.input[0]


def _rows(node: NodeProto, weight: Array) -> Array | None:
    """Lay weights out as the integer kernels read them: a row for each output, inputs by tap and then by channel."""
    if "Conv" in node.op_type:
        if weight.shape[1] == 1 and whole_attribute(node, "group", 1) == len(weight):
            return None  # a depthwise kernel of its own, which adds in 32 bits
        return np.moveaxis(weight, 1, -1).reshape(len(weight), -1)
    if node.op_type in ("Gemm", "QGemm") and whole_attribute(node, "transB"):
        return weight
    return np.moveaxis(weight, -2, -1).reshape(-1, weight.shape[-2])


def _input(node: NodeProto, place: int) -> str:
    return node.input[place] if place < len(node.input) else ""
