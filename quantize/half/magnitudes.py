"""How large and how small the activations of a float32 graph become on samples, and which of them fp16 cannot hold."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper

from distill.export.graph import add_constant, copy_of, free_prefix, only_outputs, operator
from distill.export.parity_check import session_of
from distill.quantize.half.float32_nodes import LARGEST, SMALLEST
from distill.types import Feed

from ..calibrate import run_batch
from .operands import float_tensors

HEADROOM = 4.0  # other data go beyond the samples: a tensor has to stay this far within both ends of the range
_EXACT = 2048.0  # fp16 leaves out every second integer above
# Where these read a number, what is left of a small one matters more than of a large one.
_MAGNIFY = {"Div": 1, "Reciprocal": 0, "Sqrt": 0, "Log": 0}
_INTEGERS = frozenset({TensorProto.INT64, TensorProto.INT32, TensorProto.UINT64, TensorProto.UINT32})


@dataclass(frozen=True)
class Magnitude:
    """The largest |value| of a tensor over all samples, 0 where all are 0, and the smallest other than 0.

    ``smallest`` is taken only of what divides or goes into a root or logarithm, and infinite elsewhere. ``summed`` is
    the largest sum of |values| that a mean adds up. Infinite values, as masks have them, do not count.
    """

    largest: float = 0.0
    smallest: float = float("inf")
    summed: float = 0.0


def magnitudes(model: ModelProto, types: Mapping[str, int], feeds: Iterable[Feed]) -> dict[str, Magnitude]:
    """Run a float32 graph over samples and return the magnitude of each float tensor, graph inputs included.

    Minima and maxima are taken inside a copy of the graph, so that memory does not grow with the number of samples.

    Raises:
        UserError: a batch that the graph refuses.
    """
    augmented, probes = _with_probes(model, types)
    session = session_of(augmented)
    outputs = [probe.output for probe in probes]
    sizes = dict.fromkeys((probe.tensor for probe in probes), Magnitude())
    for feed in feeds:
        for probe, value in zip(probes, run_batch(session, outputs, feed), strict=True):
            size = abs(float(value))
            if np.isfinite(size):
                sizes[probe.tensor] = probe.add(sizes[probe.tensor], size)
    return sizes


def unfit(model: ModelProto, types: Mapping[str, int], sizes: Mapping[str, Magnitude]) -> dict[str, str]:
    """Find the nodes that have to stay float32 by the magnitudes, with a margin of `HEADROOM`; node name -> why."""
    large, small = LARGEST / HEADROOM, SMALLEST * HEADROOM
    # Positions and counts, of which every one matters.
    casts = [node for node in model.graph.node if operator(node) == "Cast" and types.get(node.input[0]) in _INTEGERS]
    integers = {node.output[0] for node in casts}
    tensors = {}
    for name, magnitude in sizes.items():
        if magnitude.largest > large:
            tensors[name] = f"values up to {magnitude.largest:.2g}"
        elif name in integers and magnitude.largest > _EXACT:
            tensors[name] = f"integers up to {magnitude.largest:.0f}"
        elif 0 < magnitude.largest < small:
            tensors[name] = f"no value above {magnitude.largest:.2g}"
        elif magnitude.smallest < small:
            tensors[name] = f"values down to {magnitude.smallest:.2g} behind a division, root or logarithm"
    # A mean is no larger than what goes in, but may be added up in 16 bits first.
    sums = {node.name: sizes[node.output[0]].summed for node in model.graph.node if node.output[0] in sizes}
    means = {name: f"values that add up to {total:.2g} before their mean" for name, total in sums.items()}
    return {name: why for name, why in means.items() if sums[name] > large} | touching(model.graph, tensors)


def touching(graph: GraphProto, tensors: Mapping[str, str]) -> dict[str, str]:
    """Find the nodes that read or write some tensors, node name -> what is said of the first of these."""
    nodes = {}
    for node in graph.node:
        reasons = [tensors[name] for name in (*node.output, *node.input) if name in tensors]
        if reasons:
            nodes[node.name] = reasons[0]
    return nodes


@dataclass(frozen=True)
class _Probe:
    """An output that says something about a tensor: `field` names that of its magnitude."""

    tensor: str
    output: str
    field: str

    def add(self, magnitude: Magnitude, size: float) -> Magnitude:
        extreme = min if self.field == "smallest" else max
        return replace(magnitude, **{self.field: extreme(getattr(magnitude, self.field), size)})


def _with_probes(model: ModelProto, types: Mapping[str, int]) -> tuple[ModelProto, list[_Probe]]:
    """Add reductions of every float tensor to a copy of the graph, as its only outputs."""
    augmented = copy_of(model)
    graph, tensors = augmented.graph, float_tensors(model, types)
    probes, nodes, prefix = list[_Probe](), list[NodeProto](), free_prefix(graph, "probe")
    for reduction in ("ReduceMin", "ReduceMax"):
        for tensor in tensors:
            probes.append(_Probe(tensor, f"{prefix}/{len(probes)}", "largest"))
            nodes.append(helper.make_node(reduction, [tensor], [probes[-1].output], keepdims=0))
    read = [node.input[_MAGNIFY[operator(node)]] for node in graph.node if operator(node) in _MAGNIFY]
    for tensor in [name for name in dict.fromkeys(read) if name in set(tensors)]:
        probes.append(_Probe(tensor, f"{prefix}/{len(probes)}", "smallest"))
        nodes += _smallest(graph, tensor, probes[-1].output)
    for node in graph.node:
        if operator(node) == "ReduceMean" and node.output[0] in tensors:
            probes.append(_Probe(node.output[0], f"{prefix}/{len(probes)}", "summed"))
            nodes += _sums(node, probes[-1].output)
    graph.node.extend(nodes)
    only_outputs(augmented, [probe.output for probe in probes])
    return augmented, probes


def _smallest(graph: GraphProto, tensor: str, output: str) -> list[NodeProto]:
    """Make the nodes that find the smallest |value| other than 0, infinite where all are 0."""
    zero = add_constant(graph, f"{output}/zero", np.zeros((), np.float32))
    endless = add_constant(graph, f"{output}/infinite", np.full((), np.inf, np.float32))
    return [
        helper.make_node("Abs", [tensor], [f"{output}/size"]),
        helper.make_node("Greater", [f"{output}/size", zero], [f"{output}/other"]),
        helper.make_node("Where", [f"{output}/other", f"{output}/size", endless], [f"{output}/sizes"]),
        helper.make_node("ReduceMin", [f"{output}/sizes"], [output], keepdims=0),
    ]


def _sums(mean: NodeProto, output: str) -> list[NodeProto]:
    """Make the nodes that find the largest sum of |values| behind a mean."""
    total = copy_of(mean)
    total.op_type, total.name = "ReduceL1", ""
    total.output[:] = [f"{output}/sums"]
    return [total, helper.make_node("ReduceMax", [f"{output}/sums"], [output], keepdims=0)]
