"""What each layer's integer kernel saves, from profiles of the float and of the integer graph on this machine."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from onnx import ModelProto

from distill.benchmarks.target import why_unmeasurable
from distill.benchmarks.timing.kernels import kernel_seconds
from distill.export.graph import consumers, initializers, input_shape
from distill.types import Feed

from .select import COMPUTE
from .settings import QuantizeSettings
from .static import CalibratedGraph, integer_graph


def saved_seconds(graph: CalibratedGraph, settings: QuantizeSettings, *, feed: Feed) -> dict[str, float] | None:
    """Return what each layer saves in one call as an integer kernel, by the name of its output; below 0 it costs time.

    Each of both graphs is called 10 to 100 times on ``feed`` in a profiled session; a layer counts with the rectifier
    that is fused into it. None where the target is not this machine's processor; layers that are not found are left
    out.
    """
    target = graph.target
    if not target.is_profiled or why_unmeasurable(target):
        return None
    plain = layer_seconds(graph.model, feed, target.threads)
    # Other biases take no other time, and would need the samples.
    whole, _ = integer_graph(graph, replace(settings, bias_correction=False))
    integer = layer_seconds(whole, feed, target.threads)
    readers = consumers(graph.model.graph)
    saved = {}
    for node in graph.model.graph.node:
        if node.name in graph.nodes and node.op_type in COMPUTE:
            following = [reader.output[0] for reader in readers.get(node.output[0], []) if len(reader.output) == 1]
            names = [node.name, node.output[0], *following]
            before, after = (next((s[name] for name in names if name in s), None) for s in (plain, integer))
            if before is not None and after is not None:
                saved[node.output[0]] = before - after
    return saved


def open_batch(model: ModelProto) -> bool:
    """Whether the first axis of every input is open, so that one row can be given."""
    constants = initializers(model.graph)
    shapes = [input_shape(model.graph, value.name) for value in model.graph.input if value.name not in constants]
    return all(shape is not None and shape and isinstance(shape[0], str) for shape in shapes)


def at_batch(feed: Feed, size: int) -> Feed:
    """Return as many rows as a batch has, the same ones again where there are fewer."""
    return {name: value[np.arange(size) % len(value)] for name, value in feed.items()}


def layer_seconds(model: ModelProto, feed: Feed, threads: int) -> dict[str, float]:
    """Return each node's fastest seconds of several calls, by its name or, as fused ones have it, its output.

    Whatever else runs on the machine only adds time, and not to every call.
    """
    timed = kernel_seconds(model.SerializeToString(), dict(feed), threads)
    return {name: min(seconds) for name, seconds in timed.items()}
