"""Rewrite what the exporter writes into the operators for which runtimes have fast, integer and fused kernels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper

from distill.export.canonical import canonical
from distill.export.graph import (
    STANDARD,
    add_constant,
    all_graphs,
    attribute,
    constant,
    consumers,
    copy_of,
    fresh_name,
    initializers,
    operator,
    output_names,
    producers,
    refill,
)
from distill.export.stripping import constants_to_initializers, drop_dead, drop_identities, drop_unread_outputs

_SPATIAL_RANKS = (4, 5)
_LENGTHS = (np.int64, np.int32)
_POOLED = frozenset({TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16})


def simplify(proto: ModelProto) -> ModelProto:
    """Return an equal graph in the form that onnxruntime runs best.

    A mean over all spatial axes becomes GlobalAveragePool, which has an integer kernel where ReduceMean has none. A
    Reshape whose target is assembled at run time from the batch size and constants gets a constant target with -1. The
    product of a GELU by erf is written in the order that is fused into one kernel. Model-local functions are inlined,
    and shapes that the file states of what lies between its inputs and outputs are left out: they may be out of date.

    Raises:
        UserError: some values lie in another file, which has not been read.
    """
    slim = canonical(proto)
    graph = slim.graph
    constants_to_initializers(graph)
    drop_identities(graph)
    drop_dead(graph)  # a reader that nobody reads would keep its neighbours as they are
    _drop_stated_shapes(graph)
    tensors = _tensors(slim)
    for node in list(graph.node):
        if operator(node) == "ReduceMean":
            _mean_to_pool(graph, node, tensors)
        elif operator(node) == "Reshape" and len(node.input) > 1:
            _constant_target(graph, node, tensors)
        elif operator(node) == "Erf":
            _half_last(graph, node)
    drop_dead(graph)
    drop_unread_outputs(slim)
    return slim


@dataclass(frozen=True)
class _Tensor:
    """What is known of a tensor: its TensorProto.DataType, and its shape, in which None is an axis of any length."""

    kind: int
    shape: list[int | None]


_Tensors = Mapping[str, _Tensor]  # those of unknown rank are absent


def _drop_stated_shapes(graph: GraphProto) -> None:
    """Forget what the file says of tensors inside, but for the types of what another domain's operators compute."""
    for part in all_graphs(graph):
        foreign = {name for node in part.node if node.domain not in STANDARD for name in node.output}
        refill(part.value_info, [value for value in part.value_info if value.name in foreign])
        for value in part.value_info:
            value.type.tensor_type.ClearField("shape") if value.type.HasField("tensor_type") else None


def _tensors(proto: ModelProto) -> _Tensors:
    """Infer types and shapes from the inputs on; what the file says of its outputs is not taken for granted."""
    twin = copy_of(proto)
    for value in twin.graph.output:
        if value.type.HasField("tensor_type"):
            value.type.tensor_type.ClearField("shape")
    try:
        inferred = onnx.shape_inference.infer_shapes(twin, data_prop=True).graph
    except (onnx.shape_inference.InferenceError, ValueError):  # ValueError: above 2 GB
        inferred = twin.graph
    tensors = {t.name: _Tensor(t.data_type, list(t.dims)) for t in initializers(inferred).values()}
    for value in (*inferred.input, *inferred.output, *inferred.value_info):
        tensor = value.type.tensor_type
        if tensor.HasField("shape"):
            shape = [d.dim_value if d.HasField("dim_value") else None for d in tensor.shape.dim]
            tensors[value.name] = _Tensor(tensor.elem_type, shape)
    return tensors


def _mean_to_pool(graph: GraphProto, node: NodeProto, tensors: _Tensors) -> None:
    """Turn a mean over every axis behind the channels into GlobalAveragePool, flattened where axes are dropped."""
    tensor = tensors.get(node.input[0])
    axes = _axes(graph, node)
    if tensor is None or tensor.kind not in _POOLED or len(tensor.shape) not in _SPATIAL_RANKS or axes is None:
        return
    rank = len(tensor.shape)
    if sorted(axis % rank for axis in axes) != list(range(2, rank)):
        return
    source, result = node.input[0], node.output[0]
    keep = bool(attribute(node, "keepdims", 1))
    pooled = result if keep else fresh_name(graph, f"{result}_pooled")
    _become(node, helper.make_node("GlobalAveragePool", [source], [pooled]))
    if not keep:
        place = next(index for index, other in enumerate(graph.node) if other is node)
        # Reshape, not Flatten: older runtimes let integers through it. 0 copies a length; -1 fails at no rows.
        flat = add_constant(graph, f"{result}_shape", np.asarray([0, 0], np.int64))
        graph.node.insert(place + 1, helper.make_node("Reshape", [pooled, flat], [result]))


def _axes(graph: GraphProto, node: NodeProto) -> Sequence[int] | None:
    """Read the axes of a reduction from its input (opset 18) or attribute (before); None where not constant."""
    if len(node.input) > 1 and node.input[1]:
        value = constant(graph, node.input[1])
        return None if value is None else [int(axis) for axis in value.reshape(-1)]
    listed = attribute(node, "axes")
    return [int(axis) for axis in listed] if isinstance(listed, Sequence) else None


def _constant_target(graph: GraphProto, node: NodeProto, tensors: _Tensors) -> None:
    """Replace Concat(batch, 3, 4) as the target of a Reshape by the constant [-1, 3, 4]."""
    if constant(graph, node.input[1]) is not None:
        return
    target = _lengths(graph, node.input[1], producers(graph), tensors)
    if target is None or target.count(-1) > 1 or min([n for n in target if n != -1], default=1) < 1:
        return
    node.input[1] = add_constant(graph, f"{node.output[0]}_shape", np.asarray(target, np.int64))


def _half_last(graph: GraphProto, erf: NodeProto) -> None:
    """Turn x · (0.5 · (1 + erf(x / √2))) into (x · (1 + erf(x / √2))) · 0.5; halving is exact, so nothing is rounded.

    PyTorch's exporter writes the first at opsets without Gelu; onnxruntime fuses the second.
    """
    readers = consumers(graph)
    above = _only(readers, erf.output[0], "Add")
    halved = _only(readers, above.output[0], "Mul") if above is not None else None
    product = _only(readers, halved.output[0], "Mul") if halved is not None else None
    if above is None or halved is None or product is None or halved.output[0] in output_names(graph):
        return
    half = next((name for name in halved.input if name != above.output[0]), "")
    x = next((name for name in product.input if name != halved.output[0]), "")
    value = constant(graph, half)
    if not x or value is None or value.size != 1 or float(value.item()) != 0.5:
        return
    # What erf is taken of is made of x, so x is there before any of these nodes.
    if x not in _sources(graph, erf):
        return
    halved.input[:] = [x, above.output[0]]
    product.input[:] = [halved.output[0], half]


def _sources(graph: GraphProto, erf: NodeProto) -> Sequence[str]:
    """Name what the argument of an erf is a multiple of."""
    scaled = producers(graph).get(erf.input[0])
    return scaled.input if scaled is not None and operator(scaled) in ("Div", "Mul") else ()


def _only(readers: dict[str, list[NodeProto]], name: str, kind: str) -> NodeProto | None:
    """Return the one node that reads a tensor, if it is of this operator."""
    nodes = readers.get(name, [])
    return nodes[0] if len(nodes) == 1 and operator(nodes[0]) == kind else None


def _lengths(graph: GraphProto, name: str, makers: dict[str, NodeProto], tensors: _Tensors) -> list[int] | None:
    """Read a list of lengths that the graph assembles, -1 for one that it learns at run time; None if not a list."""
    value = constant(graph, name)
    if value is not None:
        return [int(length) for length in value.reshape(-1)] if value.dtype in _LENGTHS else None
    node = makers.get(name)
    kind = operator(node) if node is not None else ""
    if node is None:
        return None
    if kind == "Shape" and node.input[0] in tensors:
        lengths = [-1 if length is None else length for length in tensors[node.input[0]].shape]
        return lengths[cast("int", attribute(node, "start", 0)) : cast("int | None", attribute(node, "end"))]
    if kind == "Concat":
        parts = [_lengths(graph, part, makers, tensors) for part in node.input]
        return None if any(part is None for part in parts) else [n for part in parts if part for n in part]
    if kind == "Slice" and len(node.input) in (3, 4):
        inner = _lengths(graph, node.input[0], makers, tensors)
        bounds = [constant(graph, bound) for bound in node.input[1:3]]
        ends = [int(bound.item()) for bound in bounds if bound is not None and bound.size == 1]
        return None if inner is None or len(ends) < len(bounds) else inner[ends[0] : ends[1]]
    if kind in ("Unsqueeze", "Squeeze") or (kind == "Cast" and attribute(node, "to") == TensorProto.INT64):
        return _lengths(graph, node.input[0], makers, tensors)
    return [-1] if name in tensors and tensors[name].shape == [1] else None


def _become(node: NodeProto, other: NodeProto) -> None:
    """Overwrite a node in place, so that it keeps its position in the graph."""
    name = node.name
    node.CopyFrom(other)
    node.name = name
