"""Rewrite what the exporter writes into the operators for which runtimes have fast, integer and fused kernels."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import cast

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, TypeProto, helper

from distill.export.canonical import canonical
from distill.export.graph import (
    STANDARD,
    add_constant,
    all_graphs,
    attribute,
    axes_of,
    constant,
    consumers,
    copy_of,
    fresh_name,
    lengths,
    operator,
    output_names,
    producers,
    refill,
    tensor_types,
)
from distill.export.stripping import constants_to_initializers, drop_dead, drop_identities, drop_unread_outputs

_SPATIAL_RANKS = (4, 5)
_LENGTHS = (np.int64, np.int32)
_Types = Mapping[str, TypeProto.Tensor]
_READERS_OF_PADDING = frozenset({"MaxPool", "AveragePool", "Cast"})  # a pool may follow behind a Cast
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
    types = _inferred(slim)
    for node in list(graph.node):
        if operator(node) == "ReduceMean":
            _mean_to_pool(graph, node, types)
        elif operator(node) == "Reshape" and len(node.input) > 1:
            _constant_target(graph, node, types)
        elif operator(node) == "Erf":
            _half_last(graph, node)
    drop_dead(graph)
    drop_unread_outputs(slim)
    return slim


def keep_padding(proto: ModelProto) -> None:
    """Have a pool read the zeros that a Pad in front of it writes: write them as -0.0, in place.

    onnxruntime drops a Pad of +0.0 and enlarges the pool's own padding instead. That is -infinity for MaxPool, and no
    kernel takes one that is as wide as its window.
    """
    graph, readers, types = proto.graph, consumers(proto.graph), tensor_types(proto)
    for node in list(graph.node):
        if operator(node) != "Pad" or attribute(node, "mode", b"constant") != b"constant":
            continue
        read_by = {operator(reader) for reader in readers.get(node.output[0], [])}
        padding = constant(graph, node.input[2]) if "".join(node.input[2:3]) else np.zeros(())
        tensor = types.get(node.input[0])
        if padding == 0 and tensor is not None and tensor.elem_type in _POOLED and read_by & _READERS_OF_PADDING:
            zero = np.asarray(-0.0, helper.tensor_dtype_to_np_dtype(tensor.elem_type))
            node.input[2:3] = [add_constant(graph, f"{node.output[0]}_zero", zero)]


def _drop_stated_shapes(graph: GraphProto) -> None:
    """Forget what the file says of tensors inside, but for the types of what another domain's operators compute."""
    for part in all_graphs(graph):
        foreign = {name for node in part.node if node.domain not in STANDARD for name in node.output}
        refill(part.value_info, [value for value in part.value_info if value.name in foreign])
        for value in part.value_info:
            value.type.tensor_type.ClearField("shape") if value.type.HasField("tensor_type") else None


def _inferred(proto: ModelProto) -> _Types:
    """Infer types and shapes from the inputs on; what the file says of its outputs is not taken for granted."""
    twin = copy_of(proto)
    for value in twin.graph.output:
        if value.type.HasField("tensor_type"):
            value.type.tensor_type.ClearField("shape")
    return tensor_types(twin, data_prop=True)


def _mean_to_pool(graph: GraphProto, node: NodeProto, types: _Types) -> None:
    """Turn a mean over every axis behind the channels into GlobalAveragePool, flattened where axes are dropped."""
    tensor = types.get(node.input[0])
    axes = axes_of(node, partial(constant, graph))
    rank = len(lengths(tensor) or ())
    if tensor is None or tensor.elem_type not in _POOLED or rank not in _SPATIAL_RANKS or axes is None:
        return
    if sorted(axis % rank for axis in axes) != list(range(2, rank)):
        return
    source, result = node.input[0], node.output[0]
    keep = bool(attribute(node, "keepdims", 1))
    pooled = result if keep else fresh_name(graph, f"{result}_pooled")
    node.CopyFrom(helper.make_node("GlobalAveragePool", [source], [pooled], name=node.name))
    if not keep:
        place = next(index for index, other in enumerate(graph.node) if other is node)
        # Reshape, not Flatten: older runtimes let integers through it. 0 copies a length; -1 fails at no rows.
        flat = add_constant(graph, f"{result}_shape", np.asarray([0, 0], np.int64))
        graph.node.insert(place + 1, helper.make_node("Reshape", [pooled, flat], [result]))


def _constant_target(graph: GraphProto, node: NodeProto, types: _Types) -> None:
    """Replace Concat(batch, 3, 4) as the target of a Reshape by the constant [-1, 3, 4]."""
    if constant(graph, node.input[1]) is not None:
        return
    target = _lengths(graph, node.input[1], producers(graph), types)
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
    scaled = producers(graph).get(erf.input[0])
    # What erf is taken of is made of x, so x is there before any of these nodes.
    if scaled is None or operator(scaled) not in ("Div", "Mul") or x not in scaled.input:
        return
    halved.input[:] = [x, above.output[0]]
    product.input[:] = [halved.output[0], half]


def _only(readers: dict[str, list[NodeProto]], name: str, kind: str) -> NodeProto | None:
    """Return the one node that reads a tensor, if it is of this operator."""
    nodes = readers.get(name, [])
    return nodes[0] if len(nodes) == 1 and operator(nodes[0]) == kind else None


def _lengths(graph: GraphProto, name: str, makers: dict[str, NodeProto], types: _Types) -> list[int] | None:
    """Read a list of lengths that the graph assembles, -1 for one that it learns at run time; None if not a list."""
    value = constant(graph, name)
    if value is not None:
        return [int(length) for length in value.reshape(-1)] if value.dtype in _LENGTHS else None
    node = makers.get(name)
    kind = operator(node) if node is not None else ""
    if node is None:
        return None
    shape = lengths(types.get(node.input[0])) if kind == "Shape" else None
    if shape is not None:
        stated = [-1 if length is None else length for length in shape]
        return stated[cast("int", attribute(node, "start", 0)) : cast("int | None", attribute(node, "end"))]
    if kind == "Concat":
        parts = [_lengths(graph, part, makers, types) for part in node.input]
        return None if any(part is None for part in parts) else [n for part in parts if part for n in part]
    if kind == "Slice" and len(node.input) in (3, 4):
        inner = _lengths(graph, node.input[0], makers, types)
        bounds = [constant(graph, bound) for bound in node.input[1:3]]
        ends = [int(bound.item()) for bound in bounds if bound is not None and bound.size == 1]
        return None if inner is None or len(ends) < len(bounds) else inner[ends[0] : ends[1]]
    if kind in ("Unsqueeze", "Squeeze") or (kind == "Cast" and attribute(node, "to") == TensorProto.INT64):
        return _lengths(graph, node.input[0], makers, types)
    return [-1] if lengths(types.get(name)) == [1] else None
