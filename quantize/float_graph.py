"""What every quantisation begins with: a float32 graph that can be quantised, and quantisers that keep silent."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

from onnx import ModelProto, TensorProto

from distill.errors import UserError
from distill.export.canonical import freeze_defaults
from distill.export.graph import opset_of
from distill.export.simplification import simplify

_MIN_OPSET = 13  # the first with per-channel DequantizeLinear, and with sums and products of bfloat16
_INTEGER_OPERATORS = frozenset({"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"})


def float_graph(core: ModelProto, *, needs: str | None, verb: str = "quantise") -> ModelProto:
    """Return an equal graph without functions in which every node has a name and no constant is an input.

    Args:
        core: an exported float32 graph; it is not changed.
        needs: what needs opset 13, as the error says it; None where any opset will do.
        verb: what is done to the graph.

    Raises:
        UserError: the graph is quantised or 16 bits already, or too old.
    """
    reason = why_not_quantizable(core)
    if reason is not None:
        raise UserError(f"model: {reason}; {verb} the float32 export instead")
    if needs is not None and opset_of(core) < _MIN_OPSET:
        raise UserError(f"model: opset {opset_of(core)}, {needs}; export again")
    model = simplify(core)
    freeze_defaults(model)
    name_nodes(model)
    return model


def name_nodes(model: ModelProto) -> None:
    """Give each node its number as its name, in place."""
    for number, node in enumerate(model.graph.node):
        node.name = f"n{number}"


def why_not_quantizable(proto: ModelProto) -> str | None:
    """Say why a graph cannot be the start of a quantisation: it is quantised already, or partly fp16; else None."""
    operators = {node.op_type for node in proto.graph.node}
    integer = sorted(
        o for o in operators if o in _INTEGER_OPERATORS or o.startswith("QLinear") or o.endswith("Integer")
    )
    if integer:
        return f"it is quantised already, or has preprocessing in front (it has {', '.join(integer)})"
    types = {tensor.data_type for tensor in proto.graph.initializer}
    if types & {TensorProto.FLOAT16, TensorProto.BFLOAT16}:
        return "its weights are 16-bit floats already"
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
