"""Which nodes stay float32 in a graph of 16-bit floats, as far as the graph itself shows it, and why."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, numpy_helper

from distill.export.graph import consumers, initializers, operator, producers
from distill.quantize.half.operands import operands
from distill.quantize.select_nodes import COMPUTE

LARGEST = float(np.finfo(np.float16).max)
SMALLEST = float(np.finfo(np.float16).smallest_normal)

ASKED = "asked for"
BY_KIND = "its kind of operator wants float32"
SHAPE = "computes a shape"
TOO_LARGE = f"reads a constant beyond fp16's {LARGEST:.0f}"
TOO_SMALL = f"reads a constant below fp16's smallest normal number {SMALLEST:.1e}"
NORM = "part of a normalisation that is written out"
INTEGERS = "turns floats into integers"
NO_TYPE = "has no form in these 16 bits in this opset"
NO_KERNEL = "has no bfloat16 kernel"
BETWEEN = "lies between nodes that stay float32"
REASONS = frozenset({ASKED, BY_KIND, SHAPE, TOO_LARGE, TOO_SMALL, NORM, INTEGERS, NO_TYPE, NO_KERNEL, BETWEEN})

# Sums of squares and exponentials leave the range of 16 bits, or lose what they are for; of the last line onnxruntime's
# GPU kernels have float32 only.
FLOAT32_OPERATORS = frozenset(
    {"LayerNormalization", "RMSNormalization", "InstanceNormalization", "GroupNormalization", "LpNormalization"}
    | {"SkipLayerNormalization", "SimplifiedLayerNormalization", "SkipSimplifiedLayerNormalization"}
    | {"Softmax", "LogSoftmax", "ReduceSumSquare", "ReduceL2", "ReduceLogSumExp", "ReduceSum", "Exp", "Pow", "CumSum"}
    | {"Erf", "TopK", "NonMaxSuppression", "Upsample", "Range"}
    | {"RoiAlign", "GridSample"}
    # Where they do not say which type they make, it is that of what they read, which their schemas do not tell.
    | {"EyeLike", "RandomNormalLike", "RandomUniformLike", "Bernoulli"}
)
# What onnxruntime's CUDA provider has bfloat16 kernels for, by docs/OperatorKernels.md of old and new releases: a node
# without one does not load there. The standard itself has bfloat16 convolutions from opset 22 on only.
BFLOAT_KERNELS = frozenset(
    {"MatMul", "Gemm", "Conv", "Attention", "RotaryEmbedding", "Add", "Sub", "Mul", "Div", "Sum"}
    | {"Relu", "Sigmoid", "Tanh", "Cast", "Identity", "Dropout"}
    | {"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Concat", "Split", "Slice", "Expand", "Trilu"}
    | {"Gather", "GatherElements", "GatherND", "ScatterElements", "ScatterND", "Shape", "Size"}
)
_GUARDS = frozenset({"Add", "Max", "Clip"})  # what an eps goes into
_PASSES_ON = frozenset({"ReduceMean", "ReduceSum", "Sqrt", "Expand", "Reshape", "Unsqueeze", "Squeeze", "Identity"})
_DIVIDES = frozenset({"Div", "Reciprocal", "Pow"})
_SHAPES = frozenset({"Shape", "Size"})
_HEAVY = frozenset({*COMPUTE, "ConvTranspose", "LSTM", "GRU", "RNN", "Einsum", "Attention"})


@dataclass(frozen=True)
class Island:
    """A node that stays float32: its first output, by the name that `keep_float` knows it by, its operator, and why."""

    output: str
    operator: str
    why: str


def islands(
    model: ModelProto, types: Mapping[str, int], element: int, *, keep_float: Collection[str] = ()
) -> dict[str, str]:
    """Choose the nodes that stay float32 without running the graph, node name -> why.

    These are normalisations, written out or whole, softmax and the like; what computes shapes; for fp16 the readers of
    constants out of its range; what has no form in 16 bits; and what is asked for, by names of outputs. All nodes of
    the graph have names; ``element`` is TensorProto.FLOAT16 or BFLOAT16.
    """
    graph = model.graph
    reasons = {node.name: SHAPE for node in _shape_nodes(graph)}
    reasons |= dict.fromkeys(_written_out_norms(graph), NORM)
    if element == TensorProto.FLOAT16:
        reasons |= _reading(graph, too_small(graph), TOO_SMALL) | _reading(graph, too_large(graph), TOO_LARGE)
    for node in graph.node:
        if element == TensorProto.BFLOAT16 and node.op_type not in BFLOAT_KERNELS:
            reasons[node.name] = NO_KERNEL
        elif operands(node, types, element, model) is None:
            reasons[node.name] = INTEGERS if operator(node) == "Cast" else NO_TYPE
        if node.op_type in FLOAT32_OPERATORS or _is_square(node):
            reasons[node.name] = BY_KIND
        if set(node.output) & set(keep_float):
            reasons[node.name] = ASKED
    floats = {name for name, element_type in types.items() if element_type == TensorProto.FLOAT}
    with_floats = {node.name for node in graph.node if floats & {*node.input, *node.output}}
    return {name: why for name, why in reasons.items() if name in with_floats}


def fill_gaps(model: ModelProto, types: Mapping[str, int], float32_nodes: Collection[str]) -> dict[str, str]:
    """Find cheap nodes that only float32 feeds and only float32 reads, node name -> why: casts would cost more.

    Nodes that read a matrix stay out: in 16 bits it takes half the room.
    """
    graph = model.graph
    makers, readers = producers(graph), consumers(graph)
    ends = {value.name for value in graph.output}
    matrices = {tensor.name for tensor in graph.initializer if len(tensor.dims) > 1}
    constants = initializers(graph)
    below = set(float32_nodes)
    for node in graph.node:
        sources = [name for name in node.input if types.get(name) == TensorProto.FLOAT and name not in constants]
        cheap = node.op_type not in _HEAVY and not matrices & set(node.input)
        if cheap and sources and all(name not in makers or makers[name].name in below for name in sources):
            below.add(node.name)
    above = set(float32_nodes)
    for node in reversed(graph.node):
        results = [name for name in node.output if types.get(name) == TensorProto.FLOAT]
        following = [reader.name for name in results for reader in readers.get(name, [])]
        read = bool(following or ends & set(results))
        if node.name in below and read and all(name in above for name in following):
            above.add(node.name)
    return dict.fromkeys(above - set(float32_nodes), BETWEEN)


def too_large(graph: GraphProto) -> set[str]:
    """Name the float constants that hold a number above the largest of fp16; -inf, as masks have it, is fine."""
    return {name for name, sizes in _sizes(graph) if sizes.size and sizes.max() > LARGEST}


def too_small(graph: GraphProto) -> set[str]:
    """Name the float constants whose numbers other than zero are all below the smallest normal one of fp16."""
    return {name for name, sizes in _sizes(graph) if 0 < sizes.max(initial=0) < SMALLEST}


def _sizes(graph: GraphProto) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the magnitudes of each float constant, infinite ones left out."""
    for tensor in graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            sizes = np.abs(numpy_helper.to_array(tensor))
            yield tensor.name, sizes[np.isfinite(sizes)]


def _reading(graph: GraphProto, names: set[str], why: str) -> dict[str, str]:
    return {node.name: why for node in graph.node if set(node.input) & names}


def _is_square(node: NodeProto) -> bool:
    """Whether a product is a square, which leaves the range where the number is above 256: so are variances made."""
    return operator(node) == "Mul" and node.input[0] == node.input[1]


def _shape_nodes(graph: GraphProto) -> list[NodeProto]:
    """List the nodes that compute with nothing but lengths: fp16 knows no odd number above 2048."""
    constants = initializers(graph)
    lengths: set[str] = set()
    nodes = []
    for node in graph.node:
        sources = [name for name in node.input if name and name not in constants]
        if operator(node) in _SHAPES:
            lengths.update(node.output)
        elif sources and all(name in lengths for name in sources):
            lengths.update(node.output)
            nodes.append(node)
    return nodes


def _written_out_norms(graph: GraphProto) -> set[str]:
    """Name the nodes of normalisations, from a square or a tiny constant to the division, both included.

    Squares leave fp16's range from 256 on, and their sums do. 1e-12 rounds to zero in fp16 and 1e-5 loses most of its
    digits: a row of zeros would become NaN, whether a sample has one or not.
    """
    readers, tiny, constants = consumers(graph), too_small(graph), initializers(graph).keys()
    paths = [[node] for node in graph.node if _is_square(node) or operator(node) == "Pow"]
    paths += [[node] for node in graph.node if operator(node) in _GUARDS and set(node.input) & tiny]
    names: set[str] = set()
    while paths:
        path = paths.pop()
        result = path[-1].output[0]
        for reader in readers.get(result, []):
            if operator(reader) in _DIVIDES:
                # What is multiplied by a reciprocal meets numbers that only float32 holds.
                ends = readers.get(reader.output[0], []) if operator(reader) != "Div" else []
                if operator(reader) != "Div" or reader.input[1] == result:
                    names.update(node.name for node in (*path, reader, *ends))
            elif operator(reader) in _PASSES_ON or (
                operator(reader) in _GUARDS and {*reader.input} - {result} <= constants
            ):
                paths.append([*path, reader])
    return names
