"""Bias correction: give back to every layer the mean that rounding its weights took from its outputs.

A rounded weight W̃ moves the mean of a layer's outputs by E[W̃x] − E[Wx], which the next layers add up. The expectation
is taken over the calibration samples in the float graph, where each layer gets a twin that computes (W − W̃)x, and is
added to the bias. Source: Nagel et al., "Data-Free Quantization through Weight Equalization and Bias Correction", 2019
(there by way of batch-norm statistics; here measured, as in its section 4.2's empirical form).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import cast

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from distill.errors import UserError
from distill.export.graph import (
    add_constant,
    attribute,
    consumers,
    copy_of,
    free_prefix,
    initializers,
    only_outputs,
    operator,
    producers,
)
from distill.quantize.select_nodes import output_axis
from distill.types import Array, Feed, Progress

from .calibrate import channel_reduction, observed
from .settings import QuantizeSettings

_ROWS = 32


def rounded_weights(quantized: GraphProto, names: Iterable[str]) -> dict[str, Array]:
    """Read the weights that a graph with QuantizeLinear/DequantizeLinear pairs really uses, node name -> float32.

    Nodes without constant weights are left out.
    """
    makers, constants = producers(quantized), initializers(quantized)
    wanted = set(names)
    weights = {}
    for node in quantized.node:
        source = makers.get(node.input[1]) if node.name in wanted and len(node.input) > 1 else None
        if source is not None and operator(source) == "DequantizeLinear" and source.input[0] in constants:
            weights[node.name] = _dequantized(source, constants)
    return weights


def _dequantized(node: NodeProto, constants: Mapping[str, TensorProto]) -> Array:
    values = [numpy_helper.to_array(constants[name]) for name in node.input]
    weight, scale = values[0].astype(np.float32), values[1]
    zero = values[2].astype(np.float32) if len(values) > 2 else np.zeros_like(scale)
    if scale.ndim:
        axis = cast("int", attribute(node, "axis", 1)) % weight.ndim
        shape = [-1 if i == axis else 1 for i in range(weight.ndim)]
        scale, zero = scale.reshape(shape), zero.reshape(shape)
    return np.asarray((weight - zero) * scale)


def correct_biases(
    model: ModelProto,
    rounded: Mapping[str, Array],
    calibration: Iterable[Feed],
    settings: QuantizeSettings,
    *,
    progress: Progress | None = None,
) -> tuple[ModelProto, int]:
    """Return the float graph with corrected biases, and how many layers were corrected; the one given is not changed.

    ``rounded`` holds weights as they are after rounding, by node, shaped as in the prepared float graph, every layer of
    which has weights and bias of its own. ``progress`` is called with ("correct", samples done, samples wanted).

    Raises:
        UserError: no samples, or samples that do not fit.
    """
    corrected = copy_of(model)
    places = {node.name: place for node in corrected.graph.node if (place := _bias_of(corrected.graph, node))}
    layers = [node for node in corrected.graph.node if node.name in rounded and node.name in places]
    if not layers:
        return corrected, 0
    twins = _with_twins(corrected, layers, rounded)
    sums, samples = [np.zeros(1)] * len(layers), 0
    for means, rows in observed(twins, calibration, settings, _ROWS, "correct", progress):
        sums = [total + rows * mean.astype(np.float64) for total, mean in zip(sums, means, strict=True)]
        samples += rows
    for node, total in zip(layers, sums, strict=True):
        _add(corrected.graph, places[node.name], node, (total / samples).astype(np.float32))
    return corrected, len(layers)


def _bias_of(graph: GraphProto, node: NodeProto) -> NodeProto | None:
    """Find the node whose last input is, or can become, the bias of a layer: itself, or a sum behind a MatMul."""
    if operator(node) in ("Conv", "Gemm"):
        return node
    if operator(node) != "MatMul":
        return None
    constants, readers = initializers(graph), consumers(graph).get(node.output[0], [])
    if len(readers) != 1 or operator(readers[0]) != "Add":
        return None
    other = [name for name in readers[0].input if name != node.output[0]]
    return readers[0] if len(other) == 1 and other[0] in constants and len(constants[other[0]].dims) == 1 else None


def _with_twins(model: ModelProto, layers: list[NodeProto], rounded: Mapping[str, Array]) -> ModelProto:
    """Add to each layer a twin that multiplies by what rounding took, and the mean of that by output channel."""
    twin = copy_of(model)
    constants = initializers(twin.graph)
    outputs, prefix = [], free_prefix(model.graph, "lost")
    for number, node in enumerate(layers):
        weight = numpy_helper.to_array(constants[node.input[1]])
        if weight.shape != rounded[node.name].shape:
            raise UserError(f"layer {node.name}: its rounded weights have another shape than its own")
        lost = add_constant(twin.graph, f"{prefix}/{number}", (weight - rounded[node.name]).astype(np.float32))
        copy = copy_of(node)
        copy.name = ""
        copy.input[:] = [node.input[0], lost]
        copy.output[:] = [f"{prefix}/{number}/y"]
        outputs.append(f"{prefix}/{number}/mean")
        channels = weight.shape[output_axis(node, weight.ndim)]
        twin.graph.node.extend([copy, *_channel_mean(twin, copy, weight.ndim, channels, outputs[-1])])
    only_outputs(twin, outputs)
    return twin


def _channel_mean(model: ModelProto, node: NodeProto, rank: int, channels: int, output: str) -> list[NodeProto]:
    """Make the nodes that average a layer's output over everything but its channels."""
    source, nodes = node.output[0], []
    axes = [0, *range(2, rank)]
    if operator(node) != "Conv":
        shape = add_constant(model.graph, f"{output}/shape", np.array([-1, channels], np.int64))
        nodes.append(helper.make_node("Reshape", [source, shape], [f"{output}/flat"]))
        source, axes = f"{output}/flat", [0]
    nodes.append(channel_reduction(model, "ReduceMean", source, axes, output))
    return nodes


def _add(graph: GraphProto, place: NodeProto, node: NodeProto, shift: Array) -> None:
    """Add to a layer's bias, or give it one."""
    if place is not node:
        at = next(i for i, name in enumerate(place.input) if name != node.output[0])
    elif len(place.input) > 2 and place.input[2]:
        at = 2
    else:
        place.input[:] = [*place.input[:2], add_constant(graph, f"{node.name}/bias", shift)]
        return
    old = numpy_helper.to_array(initializers(graph)[place.input[at]])
    place.input[at] = add_constant(graph, f"{node.name}/bias", (old + shift).astype(np.float32))
