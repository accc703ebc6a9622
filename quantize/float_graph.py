"""What every quantisation begins with: a float32 graph that can be quantised, and quantisers that keep silent."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

from onnx import ModelProto, TensorProto

from distill.errors import UserError
from distill.export.canonical import freeze_defaults
from distill.export.graph import all_graphs, all_nodes, opset_of
from distill.export.newer_opset import with_opset
from distill.export.simplification import simplify
from distill.export.stripping import constant_tensor

MIN_OPSET = 13  # the first with per-channel DequantizeLinear, and with sums and products of bfloat16
_INTEGER_OPERATORS = frozenset(
    {"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "DynamicQuantizeMatMul", "DynamicQuantizeLSTM"}
)
# Operators of onnxruntime's own that hold quantised weights, whatever their inputs are.
_PACKED = {
    *("MatMulNBits", "MatMulBnb4", "MatMulFpQ4", "GatherBlockQuantized", "QMoE", "QAttention"),
    *("QEmbedLayerNormalization", "QOrderedMatMul", "QOrderedAttention"),
}


def float_graph(core: ModelProto, *, newer: bool, verb: str = "quantise") -> ModelProto:
    """Return an equal graph without functions in which every node has a name and no constant is an input.

    Args:
        core: an exported float32 graph; it is not changed.
        newer: whether an older opset than 13 is converted to that.
        verb: what is done to the graph.

    Raises:
        UserError: the graph is quantised or 16 bits already, or its opset cannot be converted.
    """
    reason = why_not_quantizable(core)
    if reason is not None:
        raise UserError(f"model: {reason}; {verb} the float32 export instead")
    model = simplify(with_opset(core, MIN_OPSET) if newer and opset_of(core) < MIN_OPSET else core)
    freeze_defaults(model)
    name_nodes(model)
    return model


def name_nodes(model: ModelProto) -> None:
    """Give each node its number as its name, in place."""
    for number, node in enumerate(model.graph.node):
        node.name = f"n{number}"


def why_not_quantizable(proto: ModelProto) -> str | None:
    """Say why a graph cannot be the start of a quantisation: it is quantised already, or partly fp16; else None."""
    nodes = [*all_nodes(proto.graph), *(node for function in proto.functions for node in function.node)]
    operators = {node.op_type for node in nodes}
    packed = sorted(operators & _PACKED)
    if packed:
        return f"it is quantised already (it has {', '.join(packed)})"
    integer = sorted(
        o for o in operators if o in _INTEGER_OPERATORS or o.startswith("QLinear") or o.endswith("Integer")
    )
    if integer:
        return f"it is quantised already, or has preprocessing in front (it has {', '.join(integer)})"
    tensors = [*(tensor for graph in all_graphs(proto.graph) for tensor in graph.initializer)]
    tensors += [tensor for node in nodes if (tensor := constant_tensor(node)) is not None]
    types = {tensor.data_type for tensor in tensors if len(tensor.dims) > 1}
    if types & {TensorProto.FLOAT16, TensorProto.BFLOAT16}:
        return "its weights are 16-bit floats already"
    if TensorProto.DOUBLE in types and TensorProto.FLOAT not in types:
        return "its weights are 64-bit floats (double)"
    return None


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """Silence onnxruntime's quantisers: they log what they do, and advice that we have followed already."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
