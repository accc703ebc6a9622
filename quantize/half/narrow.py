"""Rewrite a float32 graph to compute in 16-bit floats, all but the nodes that are to stay, and emulate the result."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from distill.export.graph import attribute, copy_of, free_prefix, initializers, names_of, operator, sort_nodes

from .operands import element_types, operands

SIXTEEN_BITS = (TensorProto.FLOAT16, TensorProto.BFLOAT16)


def narrow(model: ModelProto, float32_nodes: Collection[str], element: int, types: Mapping[str, int]) -> ModelProto:
    """Let all nodes but ``float32_nodes`` read and write 16-bit floats, where their operators have them.

    A tensor keeps its name as float32, and has a twin in 16 bits where a node wants one: neighbours that stay float32
    hand each other float32, and nested graphs find what they read. Inputs and outputs of the graph stay float32. What
    computes in 16 bits is cast back whether anything reads it or not, so that every tensor can be looked at; `strip`
    takes away what is not read. All nodes of the graph, which is not changed, have names; ``element`` is
    TensorProto.FLOAT16 or BFLOAT16.
    """
    small = copy_of(model)
    graph = small.graph
    twins = _Twins(graph)
    narrowed: set[str] = set()
    for node in graph.node:
        places = None if node.name in float32_nodes else operands(node, types, element, model)
        if places is None:
            continue
        for place in places.inputs:
            node.input[place] = twins.of(node.input[place])
        for place in places.outputs:
            narrowed.add(node.output[place])
            node.output[place] = twins.of(node.output[place])
        if operator(node) == "Cast" and places.outputs:
            next(entry for entry in node.attribute if entry.name == "to").i = element
    constants = initializers(graph)
    for name, twin in twins.names.items():
        if name in narrowed:
            graph.node.append(helper.make_node("Cast", [twin], [name], to=TensorProto.FLOAT))
        elif name in constants:
            graph.initializer.append(_rounded(constants[name], element, twin))
        else:
            graph.node.append(helper.make_node("Cast", [name], [twin], to=element))
    sort_nodes(graph)
    return small


class _Twins:
    """Names of 16-bit twins, that nothing in the graph has yet."""

    def __init__(self, graph: GraphProto) -> None:
        self.names: dict[str, str] = {}
        self._taken = names_of(graph)

    def of(self, name: str) -> str:
        if name not in self.names:
            twin = f"{name}/16"
            while twin in self._taken:
                twin += "_"
            self._taken.add(twin)
            self.names[name] = twin
        return self.names[name]


def _rounded(tensor: TensorProto, element: int, name: str) -> TensorProto:
    values = numpy_helper.to_array(tensor)
    with np.errstate(over="ignore"):  # such nodes stay float32 unless the caller wants it so
        return numpy_helper.from_array(values.astype(helper.tensor_dtype_to_np_dtype(element)), name)


def casts_to(model: ModelProto, elements: Collection[int]) -> bool:
    """Whether a graph casts to one of these element types."""
    return any(operator(node) == "Cast" and attribute(node, "to") in elements for node in model.graph.node)


def emulate(model: ModelProto) -> ModelProto:
    """Return a graph that computes in float32 what a GPU computes in a graph of 16-bit floats.

    Every tensor of 16 bits becomes one of float32 that is rounded to 16 bits behind the node that makes it: products
    and sums accumulate in float32, as on a GPU, and their results round, overflow and underflow. onnxruntime's CPU
    provider does not show that: it takes fp16 graphs to float32 as a whole, where nothing overflows, and refuses
    bfloat16. The graph, which is not changed, has float32 inputs, as `to_half` makes it; so are its outputs afterwards.
    """
    wide = copy_of(model)
    graph = wide.graph
    types = element_types(wide)
    casts, prefix = list[NodeProto](), free_prefix(graph, "wide")
    for node in graph.node:
        for place, name in enumerate(node.output):
            element = types.get(name, 0)
            if element not in SIXTEEN_BITS:
                continue
            exact, rounded = f"{prefix}/{name}/exact", f"{prefix}/{name}/rounded"
            if operator(node) == "Cast":
                node.output[place] = rounded
            else:
                node.output[place] = exact
                casts.append(helper.make_node("Cast", [exact], [rounded], to=element))
            casts.append(helper.make_node("Cast", [rounded], [name], to=TensorProto.FLOAT))
    for tensor in graph.initializer:
        if tensor.data_type in SIXTEEN_BITS:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name))
    for value in graph.output:
        if types.get(value.name) in SIXTEEN_BITS:
            value.type.tensor_type.elem_type = TensorProto.FLOAT
    graph.node.extend(casts)
    del graph.value_info[:]
    sort_nodes(graph)
    return wide
