"""Nodes that the ranges of activations do not give away, found by what they do to the answers."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import ModelProto
from quantize_graphs import graph_of, node
from quantize_zoo import normal

from distill.errors import UserError
from distill.export import parity, run_onnx
from distill.quantize import to_half
from distill.quantize.half import emulate

EYE = np.eye(4, dtype=np.float32)


def distance(core: ModelProto, half: ModelProto, x: np.ndarray) -> float:
    """The largest distance over the largest float32 answer, as a GPU's fp16 would have it."""
    found = parity(run_onnx(core, [{"x": x}]), run_onnx(emulate(half), [{"x": x}]), atol=0, rtol=1)
    return found.max_abs / found.tolerance if not found.warnings else np.inf


def cancelling(depth: int = 0) -> ModelProto:
    """10000 is added and taken away again; fp16 has steps of 8 there, and every value is in range."""
    nodes = [node("MatMul", "x w", "h0")]
    nodes += [node("MatMul", f"h{i} eye", f"h{i + 1}") for i in range(depth)]
    nodes += [node("Add", f"h{depth} c", "raised"), node("Sub", "raised c", "back"), node("MatMul", "back w", "y")]
    return graph_of(nodes, {"w": normal(4, 4), "c": 10000.0, "eye": EYE})


@pytest.mark.parametrize("depth", [0, 40])
def test_a_cancellation_is_found_by_bisection(depth):
    core, x = cancelling(depth), normal(64, 4)
    assert distance(core, to_half(core)[0], x) > 0.5
    half, record = to_half(core, samples=[{"x": x}])
    assert distance(core, half, x) < 0.01
    assert {one.output for one in record.islands} == {"raised", "back"}
    assert "decides whether the answers come near" in record.warnings[0] and "Add 'raised'" in record.warnings[0]
    assert record.nodes_quantized == 2 + depth


def vanishing() -> ModelProto:
    """1.0004 − 1, which is 0 in fp16, divides; neither it nor what comes of it is out of range in float32."""
    nodes = [
        node("MatMul", "x w", "a"),
        node("Add", "one little", "more"),
        node("Sub", "more one", "rest"),
        node("Div", "a rest", "large"),
        node("Mul", "large little", "b"),
        node("MatMul", "b w", "y"),
    ]
    return graph_of(nodes, {"w": normal(4, 4), "one": np.ones((1, 4), np.float32), "little": 4e-4})


def test_a_division_by_what_rounds_to_zero_is_mended():
    core, x = vanishing(), normal(64, 4)
    assert np.isinf(distance(core, to_half(core)[0], x))
    half, record = to_half(core, samples=[{"x": x}])
    assert distance(core, half, x) < 0.01
    assert {"more", "rest"} <= {one.output for one in record.islands}


def test_answers_that_become_zero_are_mended():
    nodes = [
        node("MatMul", "x w", "a"),
        node("Mul", "a little", "b"),
        node("Add", "b one", "raised"),
        node("Sub", "raised one", "back"),
        node("MatMul", "back w", "y"),
    ]
    core, x = graph_of(nodes, {"w": normal(4, 4), "one": 8.0, "little": 1e-4}), normal(64, 4)
    assert not run_onnx(emulate(to_half(core)[0]), [{"x": x}]).any()
    half, _ = to_half(core, samples=[{"x": x}])
    assert distance(core, half, x) < 0.01


def test_what_no_few_nodes_can_mend_is_told_and_costs_no_islands():
    """Chaos: a map that triples every difference, over and over, modulo the signs."""
    nodes = [node("MatMul", "x w", "h0")]
    nodes += [part for i in range(30) for part in (node("Mul", f"h{i} k", f"p{i}"), node("Sin", f"p{i}", f"h{i + 1}"))]
    core = graph_of([*nodes, node("MatMul", "h30 w", "y")], {"w": normal(4, 4), "k": 3.0})
    half, record = to_half(core, samples=[{"x": normal(16, 4)}])
    assert record.islands == () and distance(core, half, normal(16, 4)) > 0.05
    assert "% of the largest float32 answer away on the samples" in record.warnings[-1]


def test_a_healthy_network_needs_nothing(mlp):
    _, record = to_half(mlp, samples=[{"x": normal(64, 20)}])
    assert (record.islands, record.warnings, record.samples) == ((), (), 64)


def test_infinities_that_float32_has_too_are_no_ones_fault():
    nodes = [node("MatMul", "x w", "a"), node("Relu", "a", "b"), node("Log", "b", "y")]
    core, x = graph_of(nodes, {"w": normal(4, 4)}), normal(64, 4)
    half, record = to_half(core, samples=[{"x": x}])
    same = np.isinf(run_onnx(core, [{"x": x}])) == np.isinf(run_onnx(emulate(half), [{"x": x}]))
    assert same.all() and not any("infinite" in text for text in record.warnings)


def test_samples_without_any_answer_are_refused():
    core = graph_of([node("MatMul", "x w", "a"), node("Sqrt", "a", "y")], {"w": -np.abs(normal(4, 4))})
    with pytest.raises(UserError, match="float32 graph itself"):
        to_half(core, samples=[{"x": np.abs(normal(8, 4))}])


def test_answers_whose_length_depends_on_rounding_are_not_compared():
    """Which numbers are above a threshold, as a detector has it: fp16 may find one more."""
    nodes = [
        node("MatMul", "x w", "a"),
        node("Greater", "a limit", "above"),
        node("Compress", "a above_flat", "y"),
    ]
    nodes.insert(2, node("Reshape", "above flat", "above_flat"))
    core = graph_of(nodes, {"w": EYE, "limit": 1.00001, "flat": np.asarray([-1], np.int64)}, y=("m",))
    x = np.full((4, 4), 1.00002, np.float32)
    half, record = to_half(core, samples=[{"x": x}])
    assert run_onnx(core, [{"x": x}]).shape == (16,) and run_onnx(emulate(half), [{"x": x}]).shape == (0,)
    assert record.warnings == ()
