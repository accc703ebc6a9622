"""Which nodes of a graph become integer kernels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping

from onnx import GraphProto, NodeProto, TensorProto

from distill.export.graph import all_graphs, attribute, consumers, initializers, operator, output_names, producers

# What a network spends its time on.
COMPUTE = frozenset({"Conv", "Gemm", "MatMul"})
# Operators with an integer kernel that is worth having once their inputs are integers anyway.
ELEMENTWISE = frozenset(
    {"Add", "Mul", "Relu", "Clip", "LeakyRelu", "Sigmoid", "GlobalAveragePool", "AveragePool", "Concat"}
)
# Operators that move values, whatever type these have; only the first input is data.
MOVERS = frozenset(
    {"MaxPool", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Slice", "Split", "Pad", "Resize", "Gather"}
)
_RECTIFIERS = frozenset({"Relu", "Clip", "LeakyRelu"})
QUANTIZED_OPERATORS = frozenset({*COMPUTE, *ELEMENTWISE, *MOVERS})


def select_nodes(graph: GraphProto, *, keep_float: Collection[str] = (), float_biases: bool = False) -> list[NodeProto]:
    """Choose the nodes to quantise, in order: all that compute, and what lies between them.

    An addition, a pool or a move follows its inputs: it is chosen where every activation that it reads comes from a
    chosen node, so that no value is rounded only to be dequantised again. Normalisation, softmax and other
    functions stay float, and so do nodes whose outputs are in ``keep_float``. With ``float_biases`` no sum with a
    constant is chosen: TensorRT adds biases in float, before it rounds.
    """
    constants = initializers(graph)
    integers = _borders(graph, constants, keep_float)
    outputs = output_names(graph)
    nested = {name for part in list(all_graphs(graph))[1:] for reader in part.node for name in reader.input}
    chosen = []
    for node in graph.node:
        if set(node.output) & set(keep_float):
            continue
        if not _wanted(node, constants, integers) or _bounds_others(node, outputs, nested):
            continue
        if float_biases and operator(node) == "Add" and set(node.input) & constants.keys():
            continue
        chosen.append(node)
        integers.update(node.output)
    names = {id(node) for node in chosen}
    readers, makers = consumers(graph), producers(graph)
    return [node for node in chosen if not _is_last_bias(node, constants, makers, readers, names)]


def _borders(graph: GraphProto, constants: dict[str, TensorProto], keep_float: Collection[str]) -> set[str]:
    """Name what layers that stay float hand to an integer one: it is rounded for that one, so for a shortcut, too."""
    readers = consumers(graph)
    floats = set(keep_float)
    for node in graph.node:
        if operator(node) in _RECTIFIERS and node.input[0] in floats:
            floats.update(node.output)
    return {
        name
        for name in floats
        if any(
            operator(reader) in COMPUTE and _computes(reader, constants) and not set(reader.output) & set(keep_float)
            for reader in readers.get(name, [])
        )
    }


def _is_last_bias(
    node: NodeProto,
    constants: dict[str, TensorProto],
    makers: dict[str, NodeProto],
    readers: dict[str, list[NodeProto]],
    chosen: Collection[int],
) -> bool:
    """Whether a node adds a bias to a product for readers that want floats.

    A product can give floats: its sum is then not rounded to 8 bits twice only to be dequantised.
    """
    if operator(node) != "Add" or any(id(reader) in chosen for reader in readers.get(node.output[0], [])):
        return False
    values = [name for name in node.input if name not in constants]
    if len(values) != 1 or len(readers.get(values[0], [])) != 1:
        return False
    maker = makers.get(values[0])
    return maker is not None and operator(maker) == "MatMul" and id(maker) in chosen


def _bounds_others(node: NodeProto, outputs: Collection[str], nested: Collection[str]) -> bool:
    """Whether a rectifier cannot become the range of what it reads, as the quantiser makes it, without others noticing.

    An output of the graph that it reads would be rectified, too; a nested graph that reads what it gives would read
    what went in, and one that reads what went in would find nothing.
    """
    if operator(node) not in _RECTIFIERS:
        return False
    return node.input[0] in outputs or node.input[0] in nested or node.output[0] in nested


def _wanted(node: NodeProto, constants: dict[str, TensorProto], integers: set[str]) -> bool:
    if operator(node) in COMPUTE:
        return _computes(node, constants)
    if operator(node) in MOVERS:
        return node.input[0] in integers
    if operator(node) in ELEMENTWISE:
        data = node.input[:1] if operator(node) == "Clip" else node.input
        activations = [name for name in data if name and name not in constants]
        return bool(activations) and all(name in integers for name in activations)
    return False


def _computes(node: NodeProto, constants: dict[str, TensorProto]) -> bool:
    """Whether a Conv, Gemm or MatMul is in a form that has an integer kernel."""
    weight = constants.get(node.input[1])
    if weight is not None and (weight.data_type != TensorProto.FLOAT or 0 in weight.dims):
        return False
    bias = node.input[2] if len(node.input) > 2 else ""
    if operator(node) == "MatMul":
        return node.input[0] not in constants and (weight is None or len(weight.dims) == 2)
    if operator(node) == "Gemm":
        plain = not attribute(node, "transA", 0) and attribute(node, "alpha", 1.0) == 1.0
        flat = not bias or (bias in constants and len(constants[bias].dims) == 1)
        return weight is not None and plain and flat and attribute(node, "beta", 1.0) == 1.0
    return weight is not None and (not bias or bias in constants)


def is_compute(node: NodeProto, constants: Collection[str]) -> bool:
    """Whether a node counts as work: a product, or a sum of two activations such as a shortcut."""
    if operator(node) in COMPUTE or operator(node) == "ConvTranspose":
        return True
    return operator(node) == "Add" and not any(name in constants for name in node.input)


def is_depthwise(node: NodeProto, constants: Mapping[str, TensorProto]) -> bool:
    """Whether a node is a convolution in which each output channel reads one input channel of its own."""
    weight = constants.get(node.input[1]) if operator(node) == "Conv" else None
    return weight is not None and weight.dims[1] == 1 and attribute(node, "group", 1) == weight.dims[0]


def output_axis(node: NodeProto, rank: int = 2) -> int:
    """Return the axis of a layer's weights that its output channels lie along."""
    return 0 if operator(node) == "Conv" or attribute(node, "transB", 0) else rank - 1


def count_float(graph: GraphProto, chosen: Collection[str]) -> Counter[str]:
    """Count by kind the nodes that compute and were not chosen; ``chosen`` holds node names."""
    constants = initializers(graph)
    return Counter(operator(n) for n in graph.node if is_compute(n, constants) and n.name not in chosen)
