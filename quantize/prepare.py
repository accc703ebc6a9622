"""Bring an exported graph into the form that quantises completely."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, TensorProto, helper, numpy_helper

from distill.errors import UserError
from distill.export.graph import (
    add_constant,
    attribute,
    constant,
    consumers,
    fresh_name,
    initializers,
    operator,
    output_names,
    producers,
    remove_nodes,
    use_counts,
)
from distill.quantize.select_nodes import COMPUTE, is_depthwise, output_axis

from .float_graph import float_graph
from .half.operands import element_types

_IMAGE_RANK = 4
# As onnxruntime's quantiser reads them, by a weight's name.
Overrides = dict[str, list[dict[str, np.float32 | int]]]


def prepare(core: ModelProto, *, fold_norms: bool) -> ModelProto:
    """Return an equal graph in which every node has a name and every product its own weights and bias.

    With ``fold_norms``, a batch normalisation that no convolution could take in becomes a 1×1 depthwise convolution,
    which has an integer kernel; its weights are one number a channel, so per-channel int8 keeps them exactly.

    Raises:
        UserError: the graph is quantised already, its opset cannot be converted, or a weight is NaN.
    """
    model = float_graph(core, newer=True)
    floats = (tensor for tensor in core.graph.initializer if tensor.data_type == TensorProto.FLOAT)
    if any(np.isnan(numpy_helper.to_array(tensor)).any() for tensor in floats):
        raise UserError("model: some of its weights are NaN; train again, or load another checkpoint")
    if fold_norms:
        _norms_to_convolutions(model)
    _unshare(model.graph)
    _state_types(model)
    return model


def _state_types(model: ModelProto) -> None:
    """Write down which tensors hold floats where the standard cannot tell: behind onnxruntime's own operators."""
    inferred = onnx.shape_inference.infer_shapes(model).graph
    typed = {value.name for value in (*inferred.value_info, *inferred.output)}
    unknown = [name for name in producers(model.graph) if name not in typed]
    types = element_types(model) if unknown else {}
    for name in unknown:
        if types[name] == TensorProto.FLOAT:
            model.graph.value_info.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))


def _norms_to_convolutions(model: ModelProto) -> None:
    inferred = onnx.shape_inference.infer_shapes(model).graph
    ranks = {v.name: len(v.type.tensor_type.shape.dim) for v in inferred.value_info}
    for node in model.graph.node:
        if operator(node) != "BatchNormalization" or ranks.get(node.input[0]) != _IMAGE_RANK or len(node.output) > 1:
            continue
        values = [constant(model.graph, name) for name in node.input[1:5]]
        if any(value is None or value.dtype != np.float32 for value in values):
            continue
        gain, shift, mean, variance = (np.asarray(value, np.float64) for value in values)
        factor = gain / np.sqrt(variance + float(attribute(node, "epsilon", 1e-5)))  # type: ignore[arg-type]
        weight = factor.astype(np.float32).reshape(-1, 1, 1, 1)
        bias = (shift - mean * factor).astype(np.float32)
        names = [add_constant(model.graph, f"{node.output[0]}_{part}", v) for part, v in (("w", weight), ("b", bias))]
        inputs, outputs = [node.input[0], *names], list(node.output)
        twin = helper.make_node("Conv", inputs, outputs, node.name, group=len(weight), kernel_shape=[1, 1])
        node.CopyFrom(twin)


def products_to_gemm(model: ModelProto, keep_float: Collection[str] = ()) -> None:
    """Turn MatMul and Add [m] into Gemm, in place: of [n, k] · [k, m], and between two reshapes of [n, l, k] · [k, m].

    The integer Gemm adds its bias in 32 bits, where a sum of its own would round it to 8; and onnxruntime makes such a
    Gemm itself before it looks for integer kernels, with a bias in float, which fits none. ``l`` has to be known. Nodes
    keep their names; those that write a tensor in ``keep_float`` stay as they are.
    """
    graph = model.graph
    constants, readers, ends = initializers(graph), consumers(graph), output_names(graph)
    inferred = onnx.shape_inference.infer_shapes(model).graph
    shapes = {v.name: v.type.tensor_type.shape.dim for v in (*inferred.input, *inferred.value_info)}
    sums = []
    for node in list(graph.node):
        following = readers.get(node.output[0], [])
        if operator(node) != "MatMul" or node.input[1] not in constants or len(following) != 1:
            continue
        total, weight = following[0], constants[node.input[1]]
        bias = next((name for name in total.input if name in constants), "")
        left = [dim.dim_value for dim in shapes.get(node.input[0], [])]
        floats = weight.data_type == TensorProto.FLOAT and node.output[0] not in ends
        fits = floats and len(weight.dims) == 2 and (len(left) == 2 or (len(left) == 3 and left[1] > 0))
        if not fits or operator(total) != "Add" or not bias or list(constants[bias].dims) != [weight.dims[1]]:
            continue
        result, (inner, outer) = total.output[0], weight.dims
        if {node.output[0], result} & set(keep_float):
            continue
        # A bias of its own: equal floats get unequal scales.
        own = add_constant(graph, f"{result}/bias", numpy_helper.to_array(constants[bias]))
        if len(left) == 2:
            node.CopyFrom(helper.make_node("Gemm", [*node.input, own], [result], name=node.name))
            sums.append(total)
            continue
        rows = add_constant(graph, f"{result}/rows", np.array([-1, inner], np.int64))
        back = add_constant(graph, f"{result}/back", np.array([-1, left[1], outer], np.int64))
        place = next(number for number, other in enumerate(graph.node) if other is node)
        flat, product = fresh_name(graph, f"{result}/in"), fresh_name(graph, f"{result}/out")
        before = helper.make_node("Reshape", [node.input[0], rows], [flat], name=f"{node.name}/in")
        node.CopyFrom(helper.make_node("Gemm", [flat, node.input[1], own], [product], name=node.name))
        total.CopyFrom(helper.make_node("Reshape", [product, back], [result], name=total.name))
        graph.node.insert(place, before)
    remove_nodes(graph, sums)


def _unshare(graph: GraphProto) -> None:
    """Give each product weights and a bias that nothing else reads: it may be scaled."""
    constants, used = initializers(graph), use_counts(graph)
    for node in [node for node in graph.node if operator(node) in COMPUTE]:
        for index in range(1, len(node.input)):
            name = node.input[index]
            if name in constants and used[name] > 1:
                node.input[index] = add_constant(graph, name, numpy_helper.to_array(constants[name]))
                used[name] -= 1


def weight_overrides(graph: GraphProto, names: Collection[str], *, per_channel: bool, reduce_range: bool) -> Overrides:
    """Say by the name of a weight where the quantiser's own choice of scales is not the right one.

    Output channels without any weight get the scale of their layer: the quantiser would take 1, and their bias, which
    is all that they have, would be rounded to multiples of the input's scale. Depthwise convolutions keep 8 bits where
    other weights are reduced to 7: their kernel adds in 32 bits on every processor. ``names`` are those of the nodes
    that become integer kernels.
    """
    constants = initializers(graph)
    overrides: Overrides = {}
    for node in graph.node:
        if node.name not in names or operator(node) not in ("Conv", "Gemm") or node.input[1] not in constants:
            continue
        wide: dict[str, np.float32 | int] = {}
        if reduce_range and is_depthwise(node, constants):
            wide["reduce_range"] = False
        axis = output_axis(node)
        weight = numpy_helper.to_array(constants[node.input[1]])
        limits = _limits_of_dead_channels(weight, axis) if per_channel else None
        if limits is not None:
            overrides[node.input[1]] = [
                {"axis": axis, "rmin": np.float32(-limit), "rmax": np.float32(limit), **wide} for limit in limits
            ]
        elif wide:
            overrides[node.input[1]] = [{"axis": axis, **wide} if per_channel else wide]
    return overrides


def _limits_of_dead_channels(weight: NDArray[Any], axis: int) -> list[float] | None:
    """Return the largest weight of each channel, in dead ones that of the median channel; None where none is dead."""
    largest = np.abs(weight).max(axis=tuple(i for i in range(weight.ndim) if i != axis))
    if largest.all() or not largest.any():
        return None
    fill = float(np.median(largest[largest > 0]))
    return [float(value) if value > 0 else fill for value in largest]
