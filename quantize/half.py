"""fp16 for GPUs: float32 at the borders and where 16 bits are too few."""

from __future__ import annotations

import warnings as python_warnings
from collections.abc import Collection
from typing import Any

import numpy as np
from onnx import ModelProto, TensorProto, numpy_helper

from distill.errors import UserError
from distill.export.graph import copy_of, initializers
from distill.export.simplify import simplify
from distill.export.strip import strip, to_bytes

from .record import QuantizeRecord
from .select import count_float, is_compute, why_not_quantizable

# Sums of squares and exponentials leave the range of 16 bits, or lose what they are for.
FLOAT32_OPERATORS = frozenset(
    {
        "LayerNormalization",
        "RMSNormalization",
        "InstanceNormalization",
        "GroupNormalization",
        "LpNormalization",
        "Softmax",
    }
    | {"LogSoftmax", "ReduceSumSquare", "ReduceL2", "ReduceLogSumExp", "ReduceSum", "Exp", "Pow", "CumSum", "Erf"}
)
_LARGEST = float(np.finfo(np.float16).max)
_SMALLEST = float(np.finfo(np.float16).smallest_normal)


def to_half(core: ModelProto, *, keep_float: Collection[str] = ()) -> tuple[ModelProto, QuantizeRecord]:
    """Turn a float32 graph into fp16 with float32 inputs, outputs and islands; the graph given is not changed.

    Normalisations, softmax and the like stay float32, and so does every node whose constants do not fit into 16 bits.

    Args:
        core: an exported graph.
        keep_float: outputs, by name in ``core``, of nodes that stay float32.

    Raises:
        UserError: the graph is quantised or fp16 already, or holds no float32 constants.
    """
    from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16

    reason = why_not_quantizable(core)
    if reason is not None:
        raise UserError(f"model: {reason}; convert the float32 export instead")
    model = simplify(core)
    if not any(tensor.data_type == TensorProto.FLOAT for tensor in model.graph.initializer):
        raise UserError("model: it has no float32 constants, so there is nothing to convert to fp16")
    for number, node in enumerate(model.graph.node):
        node.name = f"n{number}"
    too_large = _out_of_range(model)
    blocked = {*DEFAULT_OP_BLOCK_LIST, *FLOAT32_OPERATORS} - {"Resize"}  # ORT's list is for its oldest runtimes
    kept = {node.name for node in model.graph.node if node.op_type in blocked}
    kept |= {
        node.name for node in model.graph.node if set(node.input) & too_large or set(node.output) & set(keep_float)
    }
    with python_warnings.catch_warnings():
        python_warnings.simplefilter("ignore")  # about tiny values, which we count ourselves
        half: Any = convert_float_to_float16(
            copy_of(model), keep_io_types=True, op_block_list=[], node_block_list=sorted(kept)
        )
    slim = strip(half)
    constants = initializers(model.graph)
    halves = {node.name for node in model.graph.node} - kept
    floats = count_float(model.graph, halves)
    record = QuantizeRecord(
        precision="fp16",
        scheme="none",
        per_channel=False,
        reduce_range=False,
        calibration="none",
        samples=0,
        nodes_quantized=sum(is_compute(node, constants) and node.name in halves for node in model.graph.node),
        nodes_float=sum(floats.values()),
        saturation_risk=0.0,
        file_bytes=len(to_bytes(slim)),
        float_operators=dict(sorted(floats.items())),
        warnings=_warnings(model, too_large),
    )
    return slim, record


def _out_of_range(model: ModelProto) -> set[str]:
    """Name the float constants that hold a number above the largest of fp16; -inf, as masks have it, is fine."""
    found = set()
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            values = np.abs(numpy_helper.to_array(tensor))
            if np.any((values > _LARGEST) & np.isfinite(values)):
                found.add(tensor.name)
    return found


def _warnings(model: ModelProto, too_large: set[str]) -> tuple[str, ...]:
    found = []
    if too_large:
        found.append(f"{len(too_large)} constants exceed fp16's {_LARGEST:.0f}: the nodes that read them stay float32")
    weights = [numpy_helper.to_array(t) for t in model.graph.initializer if t.data_type == TensorProto.FLOAT]
    total = sum(weight.size for weight in weights)
    tiny = sum(int(((weight != 0) & (np.abs(weight) < _SMALLEST)).sum()) for weight in weights)
    if tiny > total // 100:
        found.append(
            f"{tiny} of {total} weights are below fp16's smallest normal number {_SMALLEST:.1e} and lose digits"
        )
    return tuple(found)
