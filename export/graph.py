"""Small helpers to read and edit ONNX graphs; nothing here knows what a model is for."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper


def attribute_graphs(node: NodeProto) -> Iterator[GraphProto]:
    """Yield the graphs that a node holds in its attributes (If, Loop, Scan)."""
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            yield attribute.g
        elif attribute.type == onnx.AttributeProto.GRAPHS:
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


def initializers(graph: GraphProto) -> dict[str, TensorProto]:
    """Map each initializer's name to its tensor."""
    return {tensor.name: tensor for tensor in graph.initializer}


def constant(graph: GraphProto, name: str) -> NDArray[np.generic] | None:
    """Return the value of an initializer, or None where ``name`` is computed."""
    for tensor in graph.initializer:
        if tensor.name == name:
            return np.asarray(numpy_helper.to_array(tensor))
    return None


def producers(graph: GraphProto) -> dict[str, NodeProto]:
    """Map each computed tensor's name to the node that computes it."""
    return {name: node for node in graph.node for name in node.output if name}


def consumers(graph: GraphProto) -> dict[str, list[NodeProto]]:
    """Map each tensor's name to the top-level nodes that read it; a node that holds a reading graph counts."""
    readers: dict[str, list[NodeProto]] = defaultdict(list)
    for node in graph.node:
        names = dict.fromkeys(node.input)
        for inner in attribute_graphs(node):
            for part in all_graphs(inner):
                names.update(dict.fromkeys(name for deep in part.node for name in deep.input))
                names.update(dict.fromkeys(value.name for value in part.output))
        for name in names:
            if name:
                readers[name].append(node)
    return readers


def use_counts(graph: GraphProto) -> Counter[str]:
    """Count how often each tensor is read, by nodes at any depth and as an output of any graph."""
    counts: Counter[str] = Counter()
    for part in all_graphs(graph):
        counts.update(name for node in part.node for name in node.input)
        counts.update(value.name for value in part.output)
    return counts


def replace_input(graph: GraphProto, old: str, new: str) -> None:
    """Let every node, at any depth, that reads ``old`` read ``new``."""
    for part in all_graphs(graph):
        for node in part.node:
            for index, name in enumerate(node.input):
                if name == old:
                    node.input[index] = new


def rename_all(graph: GraphProto, new: Callable[[str], str], *, keep: Collection[str] = ()) -> None:
    """Rename every tensor at every depth by one function, so that scopes stay as they were; "" means absent."""
    fixed = {"", *keep}

    def rename(name: str) -> str:
        return name if name in fixed else new(name)

    for part in all_graphs(graph):
        for value in (*part.input, *part.output, *part.value_info):
            value.name = rename(value.name)
        for node in part.node:
            node.input[:] = [rename(name) for name in node.input]
            node.output[:] = [rename(name) for name in node.output]
        for tensor in part.initializer:
            tensor.name = rename(tensor.name)
        for sparse in part.sparse_initializer:
            sparse.values.name = rename(sparse.values.name)


def attribute(node: NodeProto, name: str, default: object = None) -> object:
    """Return the value of a node's attribute, or the default where it is not written."""
    for entry in node.attribute:
        if entry.name == name:
            return helper.get_attribute_value(entry)
    return default


def add_constant(graph: GraphProto, name: str, value: NDArray[np.generic]) -> str:
    """Add an initializer under a name that is still free, and return that name."""
    free = fresh_name(graph, name)
    graph.initializer.append(numpy_helper.from_array(np.asarray(value), free))
    return free


def fresh_name(graph: GraphProto, name: str) -> str:
    """Return ``name``, or ``name`` with a number behind it where the graph uses it already."""
    taken = {tensor.name for part in all_graphs(graph) for tensor in part.initializer}
    taken |= {value.name for part in all_graphs(graph) for value in part.input}
    taken |= {output for node in all_nodes(graph) for output in node.output}
    number, free = 0, name
    while free in taken:
        number, free = number + 1, f"{name}_{number + 1}"
    return free


def remove_nodes(graph: GraphProto, gone: list[NodeProto]) -> None:
    """Remove nodes of the top level, by identity."""
    ids = {id(node) for node in gone}
    kept = [node for node in graph.node if id(node) not in ids]
    del graph.node[:]
    graph.node.extend(kept)


def sort_nodes(graph: GraphProto) -> None:
    """Put the nodes, also of nested graphs, in the order of their data, as the standard demands; else as they were.

    Some tools append what they insert at the end. A runtime sorts by itself, other readers refuse such a file.
    """
    for part in all_graphs(graph):
        nodes = list(part.node)
        order = _order(nodes)
        if order != list(range(len(nodes))):
            copies = [NodeProto.FromString(nodes[number].SerializeToString()) for number in order]
            del part.node[:]
            part.node.extend(copies)


def _order(nodes: list[NodeProto]) -> list[int]:
    """Return the nodes' numbers such that each comes after those that it reads from, and else as early as it was."""
    maker = {name: number for number, node in enumerate(nodes) for name in node.output if name}
    reads = [[maker[name] for name in dict.fromkeys(_reads(node)) if name in maker] for node in nodes]
    done, begun = dict[int, None](), set[int]()
    for root in range(len(nodes)):
        waiting = [root]
        while waiting:
            number = waiting[-1]
            missing = [one for one in reads[number] if one not in done]
            if number in done or (number in begun and missing):  # the latter is a cycle, which no order mends
                waiting.pop()
            elif missing:
                begun.add(number)
                waiting += reversed(missing)
            else:
                done[waiting.pop()] = None
    return list(done) if len(done) == len(nodes) else list(range(len(nodes)))


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
    return max((entry.version for entry in proto.opset_import if entry.domain in _same_domain(domain)), default=0)


def _same_domain(domain: str) -> tuple[str, ...]:
    return ("", "ai.onnx") if domain in ("", "ai.onnx") else (domain,)


def copy_of(proto: ModelProto) -> ModelProto:
    """Return a deep copy, so that the caller's model stays as it is."""
    twin = ModelProto()
    twin.CopyFrom(proto)
    return twin


def input_shape(graph: GraphProto, name: str) -> list[int | str] | None:
    """Return the shape of a graph input, symbols as text, or None where the graph has no such input."""
    for value in graph.input:
        if value.name == name:
            dims = value.type.tensor_type.shape.dim
            return [d.dim_value if d.HasField("dim_value") else (d.dim_param or "?") for d in dims]
    return None
