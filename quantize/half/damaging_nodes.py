"""Which nodes spoil the answers of a graph of 16-bit floats, found by running it emulated beside the float32 one."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from onnx import ModelProto, NodeProto, helper
from onnxruntime import InferenceSession

from distill.errors import UserError
from distill.export.graph import copy_of, free_prefix, only_outputs
from distill.export.parity_check import session_of
from distill.quantize.calibrate import run_batch
from distill.quantize.half.magnitudes import touching
from distill.quantize.half.narrow import emulate, narrow
from distill.quantize.half.operands import float_tensors
from distill.types import Feed

FAR = 0.05  # of the largest float32 answer: ten times what rounding to fp16 does to a healthy network
_ROUNDS = 8  # nodes that are sought before it is given up

NOT_FINITE = "becomes infinite or NaN in 16 bits on the samples"
DECIDES = "decides whether the answers come near those of float32"


@dataclass(frozen=True)
class Verdict:
    """How the answers compare once the ``culprits`` (node name -> why) stay float32 too.

    ``distance`` is the largest distance from the float32 answers over the largest of these, the worst of all outputs;
    infinite where an answer is NaN or infinite that was not. Nodes that did not help are no ``culprits``.
    """

    distance: float
    culprits: dict[str, str]

    @property
    def near(self) -> bool:
        """Whether the answers are near enough for rounding to be all that happened to them."""
        return self.distance <= FAR


def find_culprits(
    model: ModelProto, float32_nodes: Collection[str], element: int, types: Mapping[str, int], rows: Sequence[Feed]
) -> Verdict:
    """Compare the graph of 16-bit floats with the float32 one, and find the nodes to leave in float32 where it is off.

    Where something becomes infinite or NaN it is the nodes around the first such tensor; where answers are merely far
    off, or all zero, bisection finds the last node that float32 has to reach for them to come near. All nodes of the
    graph have names, and ``rows`` are run many times where something is off.

    Raises:
        UserError: float32 has no finite answer either.
    """
    names = [node.name for node in model.graph.node]
    float32 = session_of(model)

    def distance(floats: Collection[str]) -> float:
        small = emulate(narrow(model, floats, element, types))
        return _distance(float32, session_of(small), rows)

    first = current = distance(float32_nodes)
    culprits: dict[str, str] = {}
    for _ in range(_ROUNDS):
        if current <= FAR:
            return Verdict(current, culprits)
        floats = {*float32_nodes, *culprits}
        more = _around_first_spoilt(model, floats, element, types, rows) if np.isinf(current) else {}
        if not more.keys() - floats:  # what spoils it lies further up: a denominator that was rounded to zero, say
            more = _last_needed([name for name in names if name not in floats], floats, distance)
        if not more.keys() - floats:
            break
        culprits |= more
        current = distance({*float32_nodes, *culprits})
    helped = current < first / 2  # a little from each of many nodes is no one's fault, and costs speed
    return Verdict(current, culprits) if helped or current <= FAR else Verdict(first, {})


def _distance(float32: InferenceSession, small: InferenceSession, rows: Sequence[Feed]) -> float:
    """Return the largest distance over the largest float32 answer, of the worst output; infinities of float32 pass.

    Of the answers only those to one batch are held at a time.
    """
    names = [value.name for value in float32.get_outputs() if value.type == "tensor(float)"]
    if not names:  # onnxruntime would take that for all outputs
        return 0.0
    scales, distances, any_finite = np.zeros(len(names)), np.zeros(len(names)), False
    for feed in rows:
        answers = zip(run_batch(float32, names, feed), run_batch(small, names, feed), strict=True)
        for number, (exact, rounded) in enumerate(answers):
            finite = np.isfinite(exact)
            any_finite |= bool(finite.any())
            if exact.shape != rounded.shape:  # a list of findings, say, whose length hangs on a rounded score
                continue
            if not np.isfinite(rounded[finite]).all():
                return float("inf")
            exact, rounded = exact[finite], rounded[finite]
            scales[number] = max(scales[number], np.abs(exact).max(initial=0))
            distances[number] = max(distances[number], np.abs(exact - rounded).max(initial=0))
    if not any_finite:
        raise UserError("samples: the float32 graph itself answers NaN or infinity only; check data and weights")
    return float((distances[scales > 0] / scales[scales > 0]).max(initial=0))


def _last_needed(names: Sequence[str], floats: set[str], distance: Callable[[set[str]], float]) -> dict[str, str]:
    """Find by bisection the node up to which all have to be float32 for the answers to come near; node name -> why."""
    low, high = 0, len(names)
    while low + 1 < high:
        middle = (low + high) // 2
        if distance({*floats, *names[:middle]}) <= FAR:
            high = middle
        else:
            low = middle
    return {names[high - 1]: DECIDES} if names else {}


def _around_first_spoilt(
    model: ModelProto, floats: set[str], element: int, types: Mapping[str, int], rows: Sequence[Feed]
) -> dict[str, str]:
    """Find the nodes that make and read the first tensor that is finite in float32 only; node name -> why."""
    tensors = float_tensors(model, types)
    small = emulate(narrow(model, floats, element, types))
    wide_flags, small_flags = (_spoilt(graph, tensors, rows) for graph in (model, small))
    for name in tensors:
        if name in small_flags - wide_flags:
            return touching(model.graph, {name: NOT_FINITE})
    return {}


def _spoilt(model: ModelProto, tensors: Sequence[str], rows: Sequence[Feed]) -> set[str]:
    """Name the tensors that hold NaN or infinity on some batch: x − x is 0 for all other numbers."""
    probed = copy_of(model)
    nodes: list[NodeProto] = []
    prefix = free_prefix(model.graph, "flag")
    flags = [f"{prefix}/{number}" for number in range(len(tensors))]
    for flag, name in zip(flags, tensors, strict=True):
        nodes.append(helper.make_node("Sub", [name, name], [f"{flag}/zero"]))
        nodes.append(helper.make_node("ReduceSum", [f"{flag}/zero"], [flag], keepdims=0))
    probed.graph.node.extend(nodes)
    only_outputs(probed, flags)
    session = session_of(probed)
    spoilt: set[str] = set()
    for feed in rows:
        values = run_batch(session, flags, feed)
        spoilt |= {name for name, value in zip(tensors, values, strict=True) if not np.isfinite(value)}
    return spoilt
