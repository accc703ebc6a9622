"""Which nodes of a quantised graph onnxruntime really runs as integer kernels."""

from __future__ import annotations

from collections.abc import Collection

import onnx
from onnx import ModelProto, TensorProto

from distill import scratch
from distill.benchmarks.runner import session_options
from distill.benchmarks.target import CPU, TARGETS
from distill.benchmarks.timing.machine import family
from distill.benchmarks.timing.profile import FLOAT
from distill.export.graph import initializers, producers
from distill.export.stripping import to_bytes
from distill.quantize.select_nodes import COMPUTE

_SILENT = 4


def fuses_here(scheme: str, *, strict: bool) -> bool:
    """Whether onnxruntime on this machine fuses what it fuses on the target.

    On x86 it leaves products of signed activations in float, which it does not on ARM, and it fuses none of the pairs
    that are placed for another runtime (``strict``).
    """
    return not strict and family() in TARGETS and scheme in TARGETS[family()].fused


def unfused_nodes(model: ModelProto, names: Collection[str]) -> set[str]:
    """Name those of some nodes that onnxruntime runs in float, since it did not fuse the pairs around them.

    Such a node is worse than a float one: its weights are made float again in every call. The graph that the CPU
    provider makes of ``model`` when it opens a session tells; no row is run. ``names`` are those of the nodes that are
    meant to run as integer kernels.
    """
    optimized = _optimized(model)
    stored = initializers(optimized.graph)
    loose = {
        node.name
        for node in optimized.graph.node
        if node.name in names and (node.op_type in FLOAT or node.op_type == "Add")
    }
    # A node that was fused with its rectifier has a name of its own; its weights have not.
    inflated = {
        node.input[0]
        for node in optimized.graph.node
        if node.op_type == "DequantizeLinear"
        and node.input[0] in stored
        and stored[node.input[0]].data_type == TensorProto.INT8
    }
    makers = producers(model.graph)
    for node in model.graph.node:
        if node.name in names and node.op_type in COMPUTE:
            source = makers.get(node.input[1])
            if source is not None and source.op_type == "DequantizeLinear" and source.input[0] in inflated:
                loose.add(node.name)
    return loose


def _optimized(model: ModelProto) -> ModelProto:
    """Return the graph that a session executes."""
    import onnxruntime

    with scratch.folder("optimized") as folder:
        options = session_options(1)
        options.log_severity_level = _SILENT  # it warns that such a graph is for this machine only, which it is
        options.optimized_model_filepath = str(folder / "optimized.onnx")
        onnxruntime.InferenceSession(to_bytes(model), options, providers=[CPU])
        return onnx.load(options.optimized_model_filepath)
