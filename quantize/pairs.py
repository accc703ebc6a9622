"""Remove quantise-dequantise pairs that only round a value for a reader that wants a float."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
from onnx import GraphProto, NodeProto, helper

from distill.export.graph import (
    add_constant,
    consumers,
    copy_of,
    fresh_name,
    operator,
    output_names,
    producers,
    remove_nodes,
    replace_input,
    replace_reads,
)
from distill.quantize.select_nodes import MOVERS

_POOLS = frozenset({"GlobalAveragePool", "AveragePool"})


def free_float_readers(graph: GraphProto, integer_nodes: Collection[str], rectifiers: Mapping[str, NodeProto]) -> None:
    """Let readers that want floats read floats: the logits, a softmax, a normalisation.

    Products have kernels that take integers and give floats, so the pair behind one goes where nothing reads its
    integers; a move or a last pool between the product and the reader then works on floats too. A value that was
    computed as a float is read before its pair by all float readers. The graph is changed in place.

    ``rectifiers`` holds, by the name of the node in front of it, each rectifier or clip that is gone because a pair
    whose range begins where it does has taken its work; it comes back where the pair goes.
    """
    while True:
        makers, readers = producers(graph), consumers(graph)
        idle = (node for node in graph.node if _is_idle(graph, node, makers, readers, integer_nodes, rectifiers))
        pair = next(idle, None)
        if pair is None:
            break
        product = makers[pair.input[0]]
        _bypass(graph, product, pair, readers.get(pair.output[0], []), rectifiers.get(product.name))
    for quantizer in graph.node:
        maker = makers.get(quantizer.input[0]) if operator(quantizer) == "QuantizeLinear" else None
        if operator(quantizer) != "QuantizeLinear" or (maker is not None and maker.name in integer_nodes):
            continue
        for node in readers.get(quantizer.output[0], []):
            for reader in readers.get(node.output[0], []):
                if not _reads_integers(reader, readers, integer_nodes):
                    replace_reads(reader, node.output[0], quantizer.input[0])
    _spell_out_rectifiers(graph, integer_nodes)


def _spell_out_rectifiers(graph: GraphProto, integer_nodes: Collection[str]) -> None:
    """Write rectifiers and clips behind products that give floats as Max and Min.

    onnxruntime takes a Relu or Clip behind a product for a part of what it fuses. Where no pair follows, it fuses
    nothing then, and the product's weights are made float in every call.
    """
    makers, readers = producers(graph), consumers(graph)
    for node in [node for node in graph.node if operator(node) in ("Relu", "Clip")]:
        maker = makers.get(node.input[0])
        if maker is None or operator(maker) not in ("Gemm", "MatMul") or maker.name not in integer_nodes:
            continue
        if any(reader.op_type == "QuantizeLinear" for reader in readers.get(node.output[0], [])):
            continue
        bounds = [*node.input[1:], "", ""][:2]
        if node.op_type == "Relu":
            bounds = [add_constant(graph, f"{node.output[0]}/zero", np.zeros((), np.float32)), ""]
        last, source = node.output[0], node.input[0]
        if all(bounds):
            middle = fresh_name(graph, f"{last}/raised")
            graph.node.append(helper.make_node("Max", [source, bounds[0]], [middle], name=middle))
            bounds, source = ["", bounds[1]], middle
        kind = "Max" if bounds[0] else "Min" if bounds[1] else "Identity"
        node.CopyFrom(helper.make_node(kind, [source, *filter(None, bounds)], [last], name=node.name))


def _is_idle(
    graph: GraphProto,
    quantizer: NodeProto,
    makers: dict[str, NodeProto],
    readers: dict[str, list[NodeProto]],
    integer_nodes: Collection[str],
    rectifiers: Collection[str],
) -> bool:
    """Whether a pair can go without taking any node off its integer kernel."""
    maker = makers.get(quantizer.input[0]) if operator(quantizer) == "QuantizeLinear" else None
    if maker is None or len(readers[quantizer.input[0]]) != 1:
        return False
    dequantizers = readers.get(quantizer.output[0], [])
    ends = [reader for node in dequantizers for reader in readers.get(node.output[0], [])]
    if any(_reads_integers(reader, readers, integer_nodes) for reader in ends):
        return False
    outputs = output_names(graph)
    if len(outputs & {quantizer.input[0], *(node.output[0] for node in dequantizers)}) > 1:
        return False  # one tensor cannot have the names of two outputs
    if operator(maker) in _POOLS:
        return all(operator(reader) in MOVERS and reader.output[0] in outputs for reader in ends)
    # A pair that has taken a rectifier's work goes only behind a product, whose kernel gives floats.
    return operator(maker) in ("Gemm", "MatMul") or (operator(maker) in MOVERS and maker.name not in rectifiers)


def _reads_integers(reader: NodeProto, readers: dict[str, list[NodeProto]], integer_nodes: Collection[str]) -> bool:
    """Whether a reader of a dequantised value is itself fused into an integer kernel."""
    if reader.name not in integer_nodes:
        return False
    if operator(reader) in ("Gemm", "MatMul"):
        return True
    followers = [node for name in reader.output for node in readers.get(name, [])]
    return any(operator(node) == "QuantizeLinear" for node in followers)


def _bypass(
    graph: GraphProto,
    maker: NodeProto,
    quantizer: NodeProto,
    dequantizers: list[NodeProto],
    rectifier: NodeProto | None,
) -> None:
    """Let the readers of a pair read what went into it, rectified if need be; a graph output keeps its name."""
    outputs = output_names(graph)
    at_output = [node.output[0] for node in dequantizers if node.output[0] in outputs]
    source = quantizer.input[0]
    name = at_output[0] if at_output else source
    if rectifier is not None:
        name = at_output[0] if at_output else fresh_name(graph, f"{source}/rectified")
        twin = copy_of(rectifier)
        twin.input[0], twin.output[0] = source, name
        graph.node.append(twin)
    elif name != source:
        maker.output[list(maker.output).index(source)] = name
    for node in dequantizers:
        replace_input(graph, node.output[0], name)
    remove_nodes(graph, [quantizer, *dequantizers])
