"""Small helpers to read and edit ONNX graphs; nothing here knows what a model is for."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, MutableSequence
from itertools import count
from typing import TypeVar

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import (
    AttributeProto,
    GraphProto,
    ModelProto,
    NodeProto,
    TensorProto,
    TypeProto,
    ValueInfoProto,
    helper,
    numpy_helper,
)

Message = TypeVar("Message", ModelProto, NodeProto, TensorProto, ValueInfoProto, AttributeProto)
STANDARD = ("", "ai.onnx")  # two spellings of the standard's own operator domain


def attribute_graphs(node: NodeProto) -> Iterator[GraphProto]:
    """Yield the graphs that a node holds in its attributes (If, Loop, Scan)."""
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH:
            yield attribute.g
        elif attribute.type == AttributeProto.GRAPHS:
            yield from attribute.graphs


def all_graphs(graph: GraphProto) -> Iterator[GraphProto]:
    """Yield the graph and every graph nested in its nodes."""
    yield graph
    for node in graph.node:
        for inner in attribute_graphs(node):
            yield from all_graphs(inner)


def all_nodes(graph: GraphProto) -> Iterator[NodeProto]:
    """Yield every node, those of nested graphs too."""
    for part in all_graphs(graph):
        yield from part.node


def operator(node: NodeProto) -> str:
    """Return the name of a node's operator, behind its domain where that is not the standard's.

    Another domain's operator may have a name of the standard's and do something else.
    """
    return node.op_type if node.domain in STANDARD else f"{node.domain}::{node.op_type}"


def layer_names(graph: GraphProto) -> dict[str, str]:
    """Say which layer computes each tensor, as people know it: output -> module's name, or else the node's.

    Exporters of torch leave a module's name in that of its parameters, in the scopes that they note of a node, or in
    the node's name, with the operator behind it. Nodes that have none of these are left out.
    """
    constants = initializers(graph)
    names = dict[str, str]()
    for node in graph.node:
        parameters = [name for name in node.input if name in constants and name.endswith((".weight", ".bias"))]
        scopes = [entry.value for entry in node.metadata_props if entry.key == "pkg.torch.onnx.name_scopes"]
        modules = [name for name in re.findall(r"'([^']*)'", scopes[0])[:-1] if name] if scopes else []
        own = re.sub(rf"/{re.escape(node.op_type)}(_\d+)?$", "", node.name).strip("/") or node.name
        name = parameters[0].rpartition(".")[0] if parameters else modules[-1] if modules else own
        names |= {output: name for output in node.output if output and name}
    return names


def initializers(graph: GraphProto) -> dict[str, TensorProto]:
    """Map the name of each constant to its tensor; one that is an input as well is only a default value."""
    inputs = {value.name for value in graph.input}
    return {tensor.name: tensor for tensor in graph.initializer if tensor.name not in inputs}


def constant(graph: GraphProto, name: str) -> NDArray[np.generic] | None:
    """Return the value of a constant, or None where ``name`` is computed or may be given by the caller."""
    tensor = initializers(graph).get(name)
    return None if tensor is None else np.asarray(numpy_helper.to_array(tensor))


def producers(graph: GraphProto) -> dict[str, NodeProto]:
    """Map each computed tensor's name to the node that computes it."""
    return {name: node for node in graph.node for name in node.output if name}


def consumers(graph: GraphProto) -> dict[str, list[NodeProto]]:
    """Map each tensor's name to the top-level nodes that read it; a node that holds a reading graph counts."""
    readers: dict[str, list[NodeProto]] = defaultdict(list)
    for node in graph.node:
        for name in filter(None, dict.fromkeys(_reads(node))):
            readers[name].append(node)
    return readers


def use_counts(graph: GraphProto) -> Counter[str]:
    """Count how often each tensor is read, by nodes at any depth and as an output of any graph."""
    counts: Counter[str] = Counter()
    for part in all_graphs(graph):
        counts.update(name for node in part.node for name in node.input)
        counts.update(value.name for value in part.output)
    return counts


def defined_names(graph: GraphProto) -> Iterator[str]:
    """Yield the names of the tensors that a graph defines itself, not those of nested graphs."""
    yield from (value.name for value in graph.input)
    yield from (tensor.name for tensor in graph.initializer)
    yield from (tensor.values.name for tensor in graph.sparse_initializer)
    yield from (name for node in graph.node for name in node.output if name)


def output_names(graph: GraphProto) -> set[str]:
    """Return the names of a graph's outputs: tensors that are read even where no node reads them."""
    return {value.name for value in graph.output}


def replace_input(graph: GraphProto, old: str, new: str) -> None:
    """Let every node, at any depth, that reads ``old`` read ``new``."""
    for node in graph.node:
        replace_reads(node, old, new)


def replace_reads(node: NodeProto, old: str, new: str) -> None:
    """Let a node, and all that its nested graphs hold, read ``new`` where it reads ``old``."""
    node.input[:] = [new if name == old else name for name in node.input]
    for nested in attribute_graphs(node):
        replace_input(nested, old, new)
        for value in nested.output:
            if value.name == old:
                value.name = new


def rename_all(graph: GraphProto, new: Callable[[str], str], *, keep: Collection[str] = ()) -> None:
    """Rename every tensor at every depth by one function, so that scopes stay as they were; "" means absent."""
    fixed = {"", *keep}
    for part in all_graphs(graph):
        rename_here(part, lambda name: name if name in fixed else new(name))


def rename_here(graph: GraphProto, new: Callable[[str], str]) -> None:
    """Rename the tensors that a graph defines and reads by a function, nested graphs left out."""
    for value in (*graph.input, *graph.output, *graph.value_info):
        value.name = new(value.name)
    for node in graph.node:
        node.input[:] = [new(name) for name in node.input]
        node.output[:] = [new(name) for name in node.output]
    for tensor in graph.initializer:
        tensor.name = new(tensor.name)
    for sparse in graph.sparse_initializer:
        sparse.values.name = new(sparse.values.name)


def attribute(node: NodeProto, name: str, default: object = None) -> object:
    """Return the value of a node's attribute, or the default where it is not written."""
    for entry in node.attribute:
        if entry.name == name:
            return helper.get_attribute_value(entry)
    return default


def axes_of(node: NodeProto, value_of: Callable[[str], NDArray[np.generic] | None]) -> list[int] | None:
    """Return the axes that a node names, by an input (newer opsets) or an attribute; None where neither is constant."""
    listed = attribute(node, "axes")
    if len(node.input) > 1 and node.input[1]:
        listed = value_of(node.input[1])
    return None if listed is None else [int(axis) for axis in np.asarray(listed).reshape(-1)]


def tensor_types(model: ModelProto, *, data_prop: bool = False) -> dict[str, TypeProto.Tensor]:
    """Infer the types of the main graph's tensors; 0 stands for the type of what is unknown, or is no tensor."""
    try:
        graph = onnx.shape_inference.infer_shapes(model, data_prop=data_prop).graph
    except Exception:  # a graph that onnx cannot read, or of more than 2 GB: what it states remains
        graph = model.graph
    constants = ((t.name, helper.make_tensor_type_proto(t.data_type, t.dims)) for t in initializers(graph).values())
    stated = ((value.name, value.type) for value in (*graph.output, *graph.value_info, *graph.input))
    return {name: kind.tensor_type for name, kind in (*stated, *constants)}


def lengths(tensor: TypeProto.Tensor | None) -> list[int | None] | None:
    """Return the shape of a tensor, None for an axis of any length; None where not even the rank is known."""
    if tensor is None or not tensor.HasField("shape"):
        return None
    return [dim.dim_value if dim.HasField("dim_value") else None for dim in tensor.shape.dim]


def add_constant(graph: GraphProto, name: str, value: NDArray[np.generic]) -> str:
    """Add an initializer under a name that is still free, and return that name."""
    free = fresh_name(graph, name)
    graph.initializer.append(numpy_helper.from_array(np.asarray(value), free))
    return free


def fresh_name(graph: GraphProto, name: str) -> str:
    """Return ``name``, or ``name`` with a number behind it where the graph uses it already."""
    used = names_of(graph)
    return next(free for number in count() if (free := f"{name}_{number}" if number else name) not in used)


def free_prefix(used: GraphProto | Collection[str], word: str) -> str:
    """Return ``word``, with a number behind it where one of a graph's names begins with it, for new names."""
    names = names_of(used) if isinstance(used, GraphProto) else used
    numbered = (f"{word}{number}" if number else word for number in count())
    return next(free for free in numbered if not any(name.startswith(free) for name in names))


def names_of(graph: GraphProto) -> set[str]:
    """Return the names of all tensors that a graph and its nested ones define."""
    return {name for part in all_graphs(graph) for name in defined_names(part)}


def remove_nodes(graph: GraphProto, nodes: list[NodeProto]) -> None:
    """Remove nodes of the top level, by identity."""
    ids = {id(node) for node in nodes}
    refill(graph.node, [node for node in graph.node if id(node) not in ids])


def sort_nodes(graph: GraphProto) -> None:
    """Put the nodes, also of nested graphs, in the order of their data, as the standard demands; else as they were.

    Some tools append what they insert at the end. A runtime sorts by itself, other readers refuse such a file.
    """
    for part in all_graphs(graph):
        nodes = list(part.node)
        order = _order(nodes)
        if order != list(range(len(nodes))):
            refill(part.node, [nodes[number] for number in order])


def _order(nodes: list[NodeProto]) -> list[int]:
    """Return the nodes' numbers such that each comes after those that it reads from, and else as early as it was."""
    maker = {name: number for number, node in enumerate(nodes) for name in node.output if name}
    reads = [[maker[name] for name in dict.fromkeys(_reads(node)) if name in maker] for node in nodes]
    ordered, begun = dict[int, None](), set[int]()
    for root in range(len(nodes)):
        waiting = [root]
        while waiting:
            number = waiting[-1]
            missing = [other for other in reads[number] if other not in ordered]
            if number in ordered or (number in begun and missing):  # the latter is a cycle, which no order mends
                waiting.pop()
            elif missing:
                begun.add(number)
                waiting += reversed(missing)
            else:
                ordered[waiting.pop()] = None
    return list(ordered) if len(ordered) == len(nodes) else list(range(len(nodes)))


def _reads(node: NodeProto) -> Iterator[str]:
    """Yield the names that a node reads, those of its nested graphs included."""
    yield from node.input
    for nested in attribute_graphs(node):
        for part in all_graphs(nested):
            for inner in part.node:
                yield from inner.input
            yield from (value.name for value in part.output)


def opset_of(proto: ModelProto, domain: str = "") -> int:
    """Return the imported version of an operator domain, 0 where it is not imported."""
    same = STANDARD if domain in STANDARD else (domain,)
    return max((entry.version for entry in proto.opset_import if entry.domain in same), default=0)


def copy_of(message: Message) -> Message:
    """Return a deep copy of a model, node or tensor, so that the caller's stays as it is."""
    twin = type(message)()
    twin.CopyFrom(message)
    return twin


def refill(field: MutableSequence[Message], messages: Iterable[Message]) -> None:
    """Let a repeated field hold copies of these messages, some of which may lie in it."""
    copies = [copy_of(message) for message in messages]
    del field[:]
    field.extend(copies)


def only_outputs(model: ModelProto, names: Iterable[str]) -> None:
    """Let a model, in place, have these float tensors as its only outputs."""
    refill(model.graph.output, [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names])


def input_shape(graph: GraphProto, name: str) -> list[int | str] | None:
    """Return the shape of a graph input, symbols as text, or None where the graph has no such input."""
    for value in graph.input:
        if value.name == name:
            dims = value.type.tensor_type.shape.dim
            return [d.dim_value if d.HasField("dim_value") else (d.dim_param or "?") for d in dims]
    return None
