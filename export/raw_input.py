"""Let a quantised graph take uint8 pixels as they come, with no float work before its first integer kernel."""

from __future__ import annotations

import numpy as np
from onnx import GraphProto, NodeProto, TensorProto, helper, numpy_helper

from .graph import add_constant, consumers, fresh_name, initializers, operator, output_names, producers, remove_nodes

# Operators that only move values: what comes out has the scale of what went in.
MOVERS = frozenset({"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "MaxPool", "Slice"})
_BIASED = frozenset({"Conv", "Gemm"})


def feed_raw_uint8(graph: GraphProto, value: str, pixels: str, scale: str, zero: str) -> bool:
    """Replace ``value -> QuantizeLinear -> DequantizeLinear`` by ``pixels -> DequantizeLinear(scale, zero)``.

    ``pixels`` is uint8, ``scale`` and ``zero`` name constants, and ``value`` would be their product in float. Integer
    biases behind it are written anew, because an integer kernel takes them in units of input scale × weight scale.

    Returns:
        False, with the graph unchanged, where ``value`` is read by anything but uint8 quantisers of one scale.
    """
    readers = consumers(graph)
    movers = _leading_movers(value, readers)
    quantised = movers[-1].output[0] if movers else value
    quantizers = readers.get(quantised, [])
    dequantizers = [node for q in quantizers for node in readers.get(q.output[0], [])]
    if not quantizers or not all(_is_uint8_quantizer(graph, node) for node in quantizers):
        return False
    if any(operator(node) != "DequantizeLinear" for node in dequantizers):
        return False
    if output_names(graph) & {value, *(node.output[0] for node in (*movers, *quantizers))}:
        return False
    old = (quantizers[0].input[1], quantizers[0].input[2])
    if any(tuple(node.input[1:3]) != old for node in (*quantizers, *dequantizers)):
        return False
    if movers:
        movers[0].input[0] = pixels
    for node in dequantizers:
        node.input[0] = quantised if movers else pixels
        _follow(graph, node, old, (scale, zero), readers)
    remove_nodes(graph, quantizers)
    return True


def _leading_movers(value: str, readers: dict[str, list[NodeProto]]) -> list[NodeProto]:
    """Name the nodes that only move an input's values before it is quantised, as the flattening of a perceptron."""
    movers: list[NodeProto] = []
    while len(readers.get(value, [])) == 1 and operator(readers[value][0]) in MOVERS:
        movers.append(readers[value][0])
        value = movers[-1].output[0]
    return movers


def _is_uint8_quantizer(graph: GraphProto, node: NodeProto) -> bool:
    if operator(node) != "QuantizeLinear" or len(node.input) < 3:
        return False
    zero = initializers(graph).get(node.input[2])
    return zero is not None and zero.data_type == TensorProto.UINT8


def _follow(
    graph: GraphProto,
    dequantizer: NodeProto,
    old: tuple[str, str],
    new: tuple[str, str],
    readers: dict[str, list[NodeProto]],
) -> None:
    """Give a dequantiser new parameters, and all that inherited the old ones from it."""
    dequantizer.input[1:] = new
    for node in readers.get(dequantizer.output[0], []):
        if operator(node) in _BIASED and len(node.input) > 2:
            _rescale_bias(graph, node, old[0], new[0])
        elif operator(node) in MOVERS:
            for quantizer in readers.get(node.output[0], []):
                if operator(quantizer) == "QuantizeLinear" and tuple(quantizer.input[1:3]) == old:
                    quantizer.input[1:] = new
                    for inner in readers.get(quantizer.output[0], []):
                        if operator(inner) == "DequantizeLinear":
                            _follow(graph, inner, old, new, readers)


def _rescale_bias(graph: GraphProto, node: NodeProto, old: str, new: str) -> None:
    """Write the bias of a convolution or Gemm in units of the new input scale, through a dequantiser of its own."""
    maker = producers(graph).get(node.input[2])
    constants = initializers(graph)
    stored = constants.get(maker.input[0]) if maker is not None and operator(maker) == "DequantizeLinear" else None
    if maker is None or stored is None or stored.data_type != TensorProto.INT32:
        return
    old_scale, new_scale = (np.float64(numpy_helper.to_array(constants[name])) for name in (old, new))
    bias, unit = (numpy_helper.to_array(constants[name]) for name in maker.input[:2])
    new_unit = (unit.astype(np.float64) * (new_scale / old_scale)).astype(np.float32)
    limits = np.iinfo(np.int32)
    numbers = np.rint(bias.astype(np.float64) * unit / new_unit).clip(limits.min, limits.max).astype(np.int32)
    twin = helper.make_node(
        "DequantizeLinear",
        [
            add_constant(graph, "pre/bias", numbers),
            add_constant(graph, "pre/bias_scale", new_unit),
            *maker.input[2:],
        ],
        [fresh_name(graph, "pre/bias_float")],
    )
    twin.attribute.extend(maker.attribute)
    place = next(index for index, other in enumerate(graph.node) if other is node)
    node.input[2] = twin.output[0]
    graph.node.insert(place, twin)
