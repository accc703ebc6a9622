"""Integer weights without calibration: dynamic int8, and weights of 4 or 8 bits in blocks, for matrix products."""

from __future__ import annotations

import tempfile
from collections.abc import Collection
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from distill.benchmarks.target import Target
from distill.errors import UserError
from distill.export.graph import add_constant, attribute, copy_of, initializers, operator, refill
from distill.export.stripping import strip

from .float_graph import float_graph, name_nodes, silent
from .record import QuantizeRecord
from .tables import narrow_tables

_INT8_COMPUTE = 4  # MatMulNBits' accuracy_level: activations are rounded to int8 blocks, which is what makes it fast


def to_dynamic(
    core: ModelProto, *, target: Target, keep_float: Collection[str] = ()
) -> tuple[ModelProto, QuantizeRecord]:
    """Turn matrix products into int8 ones whose activation ranges are taken anew in every call.

    Needs no samples, and suits activations whose range differs from call to call, as in transformers. Embedding tables
    are kept in 8 bits, too. Convolutions stay float: their dynamic kernel is slower than the float one. The graph that
    is given is not changed.

    Args:
        core: an exported float32 graph.
        target: what the file ships to; it says whether weights keep to 7 bits, as CPUs without VNNI need them.
        keep_float: outputs, by name in ``core``, of nodes that stay float.

    Raises:
        UserError: the graph is quantised already, too old, or without a product of constant weights.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    model, chosen = _with_products(core, keep_float)
    with tempfile.TemporaryDirectory(prefix="distill-dynamic-") as folder, silent():
        written = Path(folder, "dynamic.onnx")
        quantize_dynamic(
            model,
            written,
            op_types_to_quantize=["MatMul"],
            nodes_to_quantize=chosen,
            per_channel=True,
            reduce_range=target.reduce_range,
            weight_type=QuantType.QInt8,
            extra_options={
                "DefaultTensorType": TensorProto.FLOAT,  # where no type can be inferred
                "MatMulConstBOnly": True,
                "WeightSymmetric": True,
            },
        )
        dynamic = onnx.load(str(written))
    narrow_tables(dynamic.graph, keep_float)
    result = strip(dynamic)
    choices = {"precision": "dynamic int8", "per_channel": True, "reduce_range": target.reduce_range}
    return result, QuantizeRecord.of(model, chosen, result, **choices)


def to_blocks(
    core: ModelProto, *, bits: Literal[4, 8] = 4, block: int = 32, keep_float: Collection[str] = ()
) -> tuple[ModelProto, QuantizeRecord]:
    """Store the weights of matrix products in 4 or 8 bits, with a scale for each block of them.

    A quarter or an eighth of the bytes have to be read, which is what large products of few rows wait for; with many
    rows static int8 is faster. Embedding tables are kept in 8 bits. The graph that is given is not changed.

    Args:
        core: an exported float32 graph.
        bits: 4 or 8.
        block: weights that share a scale, a power of two from 16 on.
        keep_float: outputs, by name in ``core``, of nodes that stay float.

    Raises:
        UserError: the graph is quantised already, too old, or without a product of constant weights.
    """
    from onnxruntime.quantization.matmul_nbits_quantizer import DefaultWeightOnlyQuantConfig, MatMulNBitsQuantizer

    model, chosen = _with_products(core, keep_float)
    with silent():
        quantizer: Any = MatMulNBitsQuantizer(
            copy_of(model),
            nodes_to_exclude=[node.name for node in model.graph.node if node.name not in chosen],
            algo_config=DefaultWeightOnlyQuantConfig(
                block_size=block, is_symmetric=True, accuracy_level=_INT8_COMPUTE, bits=bits
            ),
        )
        quantizer.process()
    narrow_tables(quantizer.model.model.graph, keep_float)
    result = strip(quantizer.model.model)
    return result, QuantizeRecord.of(model, chosen, result, precision=f"int{bits} weights", per_channel=True)


def _with_products(core: ModelProto, keep_float: Collection[str]) -> tuple[ModelProto, list[str]]:
    """Return an equal graph in which every Gemm is a MatMul and a sum, and the names of the products to convert."""
    model = float_graph(core, needs="13 or newer is needed")
    # Shapes that name constants trip onnxruntime's dynamic quantiser.
    del model.graph.value_info[:]
    refill(model.graph.node, [part for node in model.graph.node for part in _as_product(model.graph, node)])
    name_nodes(model)
    chosen = _products(model.graph, keep_float)
    if not chosen:
        raise UserError("model: it has no MatMul or Gemm with constant weights, so there is nothing to quantise")
    return model, chosen


def _as_product(graph: GraphProto, node: NodeProto) -> list[NodeProto]:
    """Split a plain Gemm with constant weights; any other node stays."""
    constants = initializers(graph)
    plain = (
        operator(node) == "Gemm"
        and node.input[1] in constants
        and not attribute(node, "transA", 0)
        and attribute(node, "alpha", 1.0) == attribute(node, "beta", 1.0) == 1.0
    )
    if not plain:
        return [node]
    weight = numpy_helper.to_array(constants[node.input[1]])
    if attribute(node, "transB", 0):
        weight = weight.T
    name = add_constant(graph, f"{node.output[0]}/w", np.ascontiguousarray(weight))
    if len(node.input) < 3 or not node.input[2]:
        return [helper.make_node("MatMul", [node.input[0], name], list(node.output))]
    product = f"{node.output[0]}/product"
    return [
        helper.make_node("MatMul", [node.input[0], name], [product]),
        helper.make_node("Add", [product, node.input[2]], list(node.output)),
    ]


def _products(graph: GraphProto, keep_float: Collection[str]) -> list[str]:
    """Name the products of an activation with a constant matrix."""
    constants = initializers(graph)
    excluded = {f"{name}/product" for name in keep_float} | set(keep_float)
    return [
        node.name
        for node in graph.node
        if operator(node) == "MatMul"
        and node.input[1] in constants
        and len(constants[node.input[1]].dims) == 2
        and not set(node.output) & excluded
    ]
