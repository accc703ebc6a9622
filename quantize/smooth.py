"""SmoothQuant: move the outlying channels of a normalised activation into the weights that read it.

A few channels behind a layer normalisation are often tens of times larger than the rest, and one scale for all of them
leaves little for the others; weights have a scale each, or room to spare. Dividing such a channel in the normalisation
and multiplying it in the weights leaves the function as it was. Source: Xiao et al., "SmoothQuant", 2023, equation 4.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, helper, numpy_helper

from distill.export.graph import (
    add_constant,
    attribute,
    consumers,
    copy_of,
    free_prefix,
    fresh_name,
    initializers,
    only_outputs,
    operator,
    replace_reads,
    sort_nodes,
)
from distill.types import Array, Feed, Progress

from .calibrate import channel_reduction, observed
from .settings import QuantizeSettings

_ROWS = 8
_SMALLEST = 1e-5


def smooth(
    model: ModelProto,
    calibration: Iterable[Feed],
    settings: QuantizeSettings,
    *,
    strength: float = 0.5,
    progress: Progress | None = None,
) -> tuple[ModelProto, int]:
    """Return an equal graph with smoother activations, and how many normalisations it concerns.

    ``strength``, the paper's alpha, is how much of the outliers moves, from 0 (nothing) to 1 (all). ``progress`` is
    called with ("smooth", samples done, samples wanted). The prepared float graph that is given is not changed.

    Raises:
        UserError: no samples, or samples that do not fit.
    """
    result = copy_of(model)
    places = [(node, products) for node in result.graph.node if (products := _products(result.graph, node))]
    if not places:
        return result, 0
    largest = _largest_by_channel(result, [node for node, _ in places], calibration, settings, progress)
    for (node, products), activation in zip(places, largest, strict=True):
        weight = np.max([np.abs(_rows(result.graph, product)).max(axis=1) for product in products], axis=0)
        scale = np.maximum(activation, _SMALLEST) ** strength / np.maximum(weight, _SMALLEST) ** (1 - strength)
        _move(result.graph, node, products, np.where((activation > 0) & (weight > 0), scale, 1.0))
    sort_nodes(result.graph)
    return result, len(places)


def _products(graph: GraphProto, node: NodeProto) -> list[NodeProto]:
    """List the products that read a normalisation over the last axis, whose gain is known; none for other nodes."""
    constants = initializers(graph)
    if operator(node) != "LayerNormalization" or len([name for name in node.output if name]) != 1:
        return []
    if attribute(node, "axis", -1) not in (-1,) or any(name not in constants for name in node.input[1:] if name):
        return []
    if len(constants[node.input[1]].dims) != 1 or node.output[0] in {value.name for value in graph.output}:
        return []
    return [
        reader
        for reader in consumers(graph).get(node.output[0], [])
        if operator(reader) in ("MatMul", "Gemm")
        and [place for place, name in enumerate(reader.input) if name == node.output[0]] == [0]
        and reader.input[1] in constants
        and len(constants[reader.input[1]].dims) == 2
        and not attribute(reader, "transA", 0)
    ]


def _rows(graph: GraphProto, product: NodeProto) -> Array:
    """Read a product's weights as [in, out], in float64."""
    weight = numpy_helper.to_array(initializers(graph)[product.input[1]]).astype(np.float64)
    return weight.T if attribute(product, "transB", 0) else weight


def _largest_by_channel(
    model: ModelProto,
    nodes: list[NodeProto],
    calibration: Iterable[Feed],
    settings: QuantizeSettings,
    progress: Progress | None,
) -> list[Array]:
    """Return the largest magnitude of each channel of the nodes' outputs over all samples."""
    twin, outputs, prefix = copy_of(model), [], free_prefix(model.graph, "smooth")
    sizes = {tensor.name: tensor.dims[0] for tensor in model.graph.initializer if len(tensor.dims) == 1}
    for number, node in enumerate(nodes):
        shape = add_constant(twin.graph, f"{prefix}/{number}/shape", np.array([-1, sizes[node.input[1]]], np.int64))
        flat, size = f"{prefix}/{number}/flat", f"{prefix}/{number}/size"
        outputs.append(f"{prefix}/{number}")
        twin.graph.node.append(helper.make_node("Reshape", [node.output[0], shape], [flat]))
        twin.graph.node.append(helper.make_node("Abs", [flat], [size]))
        twin.graph.node.append(channel_reduction(twin, "ReduceMax", size, [0], outputs[-1]))
    only_outputs(twin, outputs)
    largest = [np.zeros(1)] * len(nodes)
    for maxima, _ in observed(twin, calibration, settings, _ROWS, "smooth", progress):
        largest = [np.maximum(old, new.astype(np.float64)) for old, new in zip(largest, maxima, strict=True)]
    return largest


def _move(graph: GraphProto, node: NodeProto, products: list[NodeProto], scale: Array) -> None:
    """Divide a normalisation's gain and shift, multiply its products' weights, and undo it for all other readers."""
    constants = initializers(graph)
    for index in (1, 2):
        if len(node.input) > index and node.input[index]:
            value = numpy_helper.to_array(constants[node.input[index]]) / scale
            node.input[index] = add_constant(graph, f"{node.output[0]}/{index}", value.astype(np.float32))
    for product in products:
        rows = _rows(graph, product) * scale[:, None]
        weight = rows.T if attribute(product, "transB", 0) else rows
        name = product.input[1]
        product.input[1] = add_constant(graph, name, np.ascontiguousarray(weight, np.float32))
    mine = {id(product) for product in products}
    others = [reader for reader in consumers(graph)[node.output[0]] if id(reader) not in mine]
    if not others:
        return
    factor = add_constant(graph, f"{node.output[0]}/scale", scale.astype(np.float32))
    undone = fresh_name(graph, f"{node.output[0]}/undone")
    graph.node.append(helper.make_node("Mul", [node.output[0], factor], [undone], name=undone))
    for reader in others:
        replace_reads(reader, node.output[0], undone)
