"""Integer weights without calibration: dynamic int8, products of 4 or 8 bits in blocks, embedding tables of 8 bits.

Tables are most of the bytes of a small transformer, and take none of its time.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from distill import scratch
from distill.benchmarks.target import Target
from distill.errors import UserError
from distill.export.graph import (
    add_constant,
    attribute,
    consumers,
    fresh_name,
    initializers,
    operator,
    output_names,
    refill,
    remove_nodes,
    sort_nodes,
)
from distill.export.plain_names import PlainNames
from distill.export.stripping import strip

from .float_graph import float_graph, name_nodes, silent
from .record import QuantizeRecord

_LEAST_BYTES = 1 << 16  # below which a table is not worth the three nodes
_INT8_MAX = 127
_INT8_COMPUTE = 4  # MatMulNBits' accuracy_level: activations are rounded to int8 blocks, which is what makes it fast


def to_dynamic(
    core: ModelProto, *, target: Target, keep_float: Collection[str] = ()
) -> tuple[ModelProto, QuantizeRecord]:
    """Turn matrix products into int8 ones whose activation ranges are taken anew in every call.

    Needs no samples, and suits activations whose range differs from call to call, as in transformers. Embedding tables
    are kept in 8 bits, too. Convolutions stay float: their dynamic kernel is slower than the float one; so do nodes of
    the outputs in ``keep_float``. The target says whether weights keep to 7 bits, as CPUs without VNNI need them. The
    graph that is given is not changed.

    Raises:
        UserError: the graph is quantised already, of an opset that cannot be converted, or without a product of
            constant weights.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    model, chosen = _with_products(core, keep_float)
    plain = PlainNames.of(model.graph)
    with scratch.folder("dynamic") as folder, silent():
        written = folder / "dynamic.onnx"
        quantize_dynamic(
            plain.hide(model),
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
    plain.reveal(dynamic.graph)
    narrow_tables(dynamic.graph, keep_float)
    result = strip(dynamic)
    choices = {"precision": "dynamic int8", "per_channel": True, "reduce_range": target.reduce_range}
    return result, QuantizeRecord.of(model, chosen, result, **choices)


def to_blocks(
    core: ModelProto, *, bits: Literal[4, 8] = 4, block: int = 32, keep_float: Collection[str] = ()
) -> tuple[ModelProto, QuantizeRecord]:
    """Store the weights of matrix products in 4 or 8 bits, with a scale for each block of them.

    A quarter or an eighth of the bytes have to be read, which is what large products of few rows wait for; with many
    rows static int8 is faster. Embedding tables are kept in 8 bits; nodes of the outputs in ``keep_float`` stay float.
    ``block`` weights, a power of two from 16 on, share a scale. The graph that is given is not changed.

    Raises:
        UserError: the graph is quantised already, of an opset that cannot be converted, or without a product of
            constant weights.
    """
    from onnxruntime.quantization.matmul_nbits_quantizer import DefaultWeightOnlyQuantConfig, MatMulNBitsQuantizer

    model, chosen = _with_products(core, keep_float)
    plain = PlainNames.of(model.graph)
    with silent():
        quantizer: Any = MatMulNBitsQuantizer(
            plain.hide(model),
            nodes_to_exclude=[node.name for node in model.graph.node if node.name not in chosen],
            algo_config=DefaultWeightOnlyQuantConfig(
                block_size=block, is_symmetric=True, accuracy_level=_INT8_COMPUTE, bits=bits
            ),
        )
        quantizer.process()
    blocks = quantizer.model.model
    plain.reveal(blocks.graph)
    narrow_tables(blocks.graph, keep_float)
    result = strip(blocks)
    return result, QuantizeRecord.of(model, chosen, result, precision=f"int{bits} weights", per_channel=True)


def _with_products(core: ModelProto, keep_float: Collection[str]) -> tuple[ModelProto, list[str]]:
    """Return an equal graph in which every Gemm is a MatMul and a sum, and the names of the products to convert."""
    model = float_graph(core, newer=True)
    # Shapes that name constants trip onnxruntime's dynamic quantiser.
    del model.graph.value_info[:]
    split = [(node.output[0], _as_product(model.graph, node)) for node in model.graph.node if node.output]
    excluded = {parts[0].output[0] for output, parts in split if output in keep_float} | set(keep_float)
    refill(model.graph.node, [part for _, parts in split for part in parts])
    name_nodes(model)
    chosen = _products(model.graph, excluded)
    if not chosen:
        raise UserError(
            "model: it has no MatMul or Gemm with constant float32 weights, so there is nothing to quantise"
        )
    return model, chosen


def _as_product(graph: GraphProto, node: NodeProto) -> list[NodeProto]:
    """Split a plain Gemm with constant weights; any other node stays."""
    constants = initializers(graph)
    plain = (
        operator(node) == "Gemm"
        and _is_float(constants.get(node.input[1]))
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
    product = fresh_name(graph, f"{node.output[0]}/product")
    return [
        helper.make_node("MatMul", [node.input[0], name], [product]),
        helper.make_node("Add", [product, node.input[2]], list(node.output)),
    ]


def _is_float(tensor: TensorProto | None) -> bool:
    return tensor is not None and tensor.data_type == TensorProto.FLOAT


def _products(graph: GraphProto, excluded: Collection[str]) -> list[str]:
    """Name the nodes that multiply an activation by a constant matrix, but for those that write ``excluded``."""
    constants = initializers(graph)
    return [
        node.name
        for node in graph.node
        if operator(node) == "MatMul"
        and _is_float(constants.get(node.input[1]))
        and len(constants[node.input[1]].dims) == 2
        and min(constants[node.input[1]].dims) > 0
        and not set(node.output) & set(excluded)
    ]


def tables_of(graph: GraphProto, keep_float: Collection[str] = ()) -> dict[str, list[NodeProto]]:
    """Find the float32 tables [rows, width] that nothing but lookups of rows reads, each with these lookups.

    A table is left out where one of its lookups writes a tensor in ``keep_float``.
    """
    readers = consumers(graph)
    outputs = output_names(graph)
    return {
        name: readers[name]
        for name, value in initializers(graph).items()
        if name not in outputs
        and value.data_type == TensorProto.FLOAT
        and len(value.dims) == 2
        and 4 * value.dims[0] * value.dims[1] >= _LEAST_BYTES
        and readers.get(name)
        and all(_looks_up(node, name, keep_float) for node in readers[name])
    }


def _looks_up(node: NodeProto, table: str, keep_float: Collection[str]) -> bool:
    return (
        operator(node) == "Gather"
        and node.input[0] == table
        and node.input[1] != table
        and attribute(node, "axis", 0) in (0, -2)
        and not set(node.output) & set(keep_float)
    )


def round_rows(table: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Round each row of a table [rows, width] to multiples of its own scale [rows, 1], its largest value over 127.

    No value is moved by more than half a scale; a row of zeros stays one.
    """
    largest = np.abs(table).max(axis=1, keepdims=True)
    scale = np.where(largest > 0, largest / _INT8_MAX, 1).astype(np.float32)
    # A row of subnormals has a scale of too few digits, or none.
    scale = np.where(scale < np.finfo(np.float32).tiny, 1, scale).astype(np.float32)
    return np.clip(np.rint(table / scale), -_INT8_MAX, _INT8_MAX).astype(np.int8), scale


def narrow_tables(graph: GraphProto, keep_float: Collection[str] = ()) -> list[str]:
    """Store embedding tables in 8 bits with a scale for each row, in place; returns the names of those that were.

    What a lookup returns is made float at once, so nothing behind it changes. Rows have scales of their own since some
    words have much larger vectors than others, and a lookup of a scale costs nothing.
    """
    tables = tables_of(graph, keep_float)
    for name, lookups in tables.items():
        rows, scales = round_rows(numpy_helper.to_array(initializers(graph)[name]))
        narrow, scale = add_constant(graph, f"{name}/rows", rows), add_constant(graph, f"{name}/scales", scales)
        for node in lookups:
            out, ids = node.output[0], node.input[1]
            parts = [fresh_name(graph, f"{out}/{part}") for part in ("rows", "scales", "float")]
            graph.node.extend(
                [
                    helper.make_node("Gather", [narrow, ids], [parts[0]], name=parts[0]),
                    helper.make_node("Gather", [scale, ids], [parts[1]], name=parts[1]),
                    helper.make_node("Cast", [parts[0]], [parts[2]], name=parts[2], to=TensorProto.FLOAT),
                    helper.make_node("Mul", [parts[2], parts[1]], [out], name=f"{out}/scaled"),
                ]
            )
        graph.initializer.remove(initializers(graph)[name])
    if tables:
        # At once: what is removed makes the nodes of the graph other objects.
        remove_nodes(graph, [node for lookups in tables.values() for node in lookups])
        sort_nodes(graph)
    return list(tables)
