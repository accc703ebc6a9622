"""Which layers int8 hurts, and which of them to leave in float.

Each layer is quantised alone, and the network's answers are compared with those of the float one: Kullback-Leibler
divergence for classes, relative squared error for anything else. What a layer costs by that is set against the time
that its integer kernel saves, and the layers with the worst price go back to float until the budget holds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
from onnx import ModelProto

from distill.benchmarks.target import why_unmeasurable
from distill.benchmarks.timing.kernels import kernel_seconds
from distill.errors import UserError
from distill.export.graph import consumers
from distill.export.parity_check import run_onnx
from distill.outputs import Output, of_shape
from distill.quantize.select_nodes import COMPUTE
from distill.types import Array, Feed, Progress

from .settings import QuantizeSettings
from .static import CalibratedGraph, integer_graph

Graph = TypeVar("Graph")


@dataclass(frozen=True)
class Sensitivity:
    """A layer, with the elementwise operators that follow it.

    `output` is the name by which `keep_float` knows it, `name` that by which people do. `divergence` is that of the
    network's answers when only this layer is quantised: nats a sample for classes, a share of the answers' energy else.
    `saved_s` is the time that its integer kernel saves in a call, None where that was not measured.
    """

    output: str
    operator: str
    divergence: float
    saved_s: float | None = None
    name: str = ""

    @property
    def price(self) -> float:
        """Divergence for each second saved; a layer that saves nothing is not worth any.

        Where nothing was measured it is the divergence alone, as if each layer saved a second.
        """
        if self.saved_s is None:
            return self.divergence
        return self.divergence / self.saved_s if self.saved_s > 0 else float("inf")


def divergence(reference: Array, other: Array, output: Output | None = None) -> float:
    """Compare two networks' answers to the same rows, as `Output.divergence` does.

    Where nobody says what the output holds, [n, k] with k from 2 on are logits of classes, and anything else numbers.

    Raises:
        ValueError: the shapes differ.
    """
    return (output or of_shape(reference.shape)).divergence(reference, other)


def layers_of(graph: CalibratedGraph) -> list[tuple[str, str]]:
    """List the layers that can be left in float one by one: (output, operator), in order."""
    names = set(graph.nodes)
    return [
        (node.output[0], node.op_type)
        for node in graph.model.graph.node
        if node.name in names and node.op_type in COMPUTE
    ]


def sensitivities(
    graph: CalibratedGraph,
    settings: QuantizeSettings,
    *,
    rows: Sequence[Feed],
    saved_s: Mapping[str, float] | None = None,
    output: Output | None = None,
    progress: Progress | None = None,
) -> list[Sensitivity]:
    """Measure every layer alone, in order of the graph, on ``rows``: 128 to 512 samples.

    ``saved_s`` says how many seconds a layer's integer kernel saves in a call, by the layer's output; ``progress`` is
    called with ("sensitivity", layers done, layers).
    """
    layers = layers_of(graph)
    outputs = [output for output, _ in layers]
    reference = run_onnx(graph.model, rows)
    plain = replace(settings, tables=False)  # else every divergence has that of the tables in it
    measured = []
    for number, (layer, operator) in enumerate(layers):
        alone, _ = integer_graph(graph, plain, keep_float=[name for name in outputs if name != layer])
        saved = None if saved_s is None else saved_s.get(layer)
        moved = divergence(reference, run_onnx(alone, rows), output)
        measured.append(Sensitivity(layer, operator, moved, saved, graph.layers.get(layer, layer)))
        if progress is not None:
            progress("sensitivity", number + 1, len(layers))
    return measured


def fewest_float(
    measured: Sequence[Sensitivity], make: Callable[[list[str]], Graph], holds: Callable[[Graph], bool]
) -> tuple[list[str], Graph] | None:
    """Find the fewest layers that have to stay float for the budget to hold, worst price first.

    ``make`` writes the graph in which the layers of some outputs stay float, and ``holds`` says whether it keeps the
    budget; both are asked about as often as there are digits in the number of layers, in binary.

    Returns:
        The outputs that stay float, with their graph; None where not even all layers but one in float keep it.

    Raises:
        UserError: there are no layers.
    """
    if not measured:
        raise UserError("model: it has no layers to choose from")
    ranked = [layer.output for layer in sorted(measured, key=lambda layer: layer.price, reverse=True)]
    low, high = 0, len(ranked)  # `low` layers in float are too few, or not asked about; `high` are enough, or all
    best: tuple[list[str], Graph] | None = None
    while low < high:
        count = (low + high) // 2
        chosen = ranked[:count]
        model = make(chosen)
        if holds(model):
            best, high = (chosen, model), count
        else:
            low = count + 1
    return best


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


def at_batch(feed: Feed, size: int) -> Feed:
    """Return as many rows as a batch has, the same ones again where there are fewer."""
    return {name: value[np.arange(size) % len(value)] for name, value in feed.items()}


def layer_seconds(model: ModelProto, feed: Feed, threads: int) -> dict[str, float]:
    """Return each node's fastest seconds of several calls, by its name or, as fused ones have it, its output.

    Whatever else runs on the machine only adds time, and not to every call.
    """
    timed = kernel_seconds(model.SerializeToString(), dict(feed), threads)
    return {name: min(seconds) for name, seconds in timed.items()}
