from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnx import ModelProto, TensorProto, helper, numpy_helper
from quantize_graphs import graph_of, node, operators
from quantize_zoo import normal

from distill.export import run_onnx, strip
from distill.quantize.half.narrow import emulate, narrow
from distill.quantize.half.operands import element_types, first_opset, operands

FP16, BF16 = TensorProto.FLOAT16, TensorProto.BFLOAT16
NUMPY = {FP16: np.dtype(np.float16), BF16: np.dtype(ml_dtypes.bfloat16)}


def named(model: ModelProto) -> ModelProto:
    for number, one in enumerate(model.graph.node):
        one.name = f"n{number}"
    return model


def narrowed(model: ModelProto, element: int = FP16, kept: tuple[str, ...] = ()) -> ModelProto:
    return narrow(named(model), kept, element, element_types(model))


def makers(model: ModelProto) -> dict[str, onnx.NodeProto]:
    return {name: one for one in model.graph.node for name in one.output}


FLOATS = hnp.arrays(np.float32, (3, 4), elements=st.floats(-1e5, 1e5, width=32))


@pytest.mark.parametrize("element", [FP16, BF16])
@given(x=FLOATS, w=hnp.arrays(np.float32, (4, 4), elements=st.floats(-4, 4, width=32)))
@settings(max_examples=40, deadline=None)
def test_an_emulated_product_rounds_operands_and_result_and_nothing_between(element, x, w):
    core = graph_of([node("MatMul", "x w", "y")], {"w": w})
    found = run_onnx(emulate(narrowed(core, element)), [{"x": x}])
    kind = NUMPY[element]
    with np.errstate(over="ignore", invalid="ignore"):
        left, right = x.astype(kind).astype(np.float64), w.astype(kind).astype(np.float64)
        exact = left @ right
        step = np.abs(left) @ np.abs(right) * 2.0**-22  # float32 sums of four
        low, high = ((exact + sign * step).astype(np.float32).astype(kind).astype(np.float32) for sign in (-1, 1))
    fine = np.isfinite(exact)
    assert ((found >= low) & (found <= high))[fine].all()
    assert not np.isfinite(found[~fine]).any()


@pytest.mark.parametrize("element", [FP16, BF16])
@given(x=FLOATS)
@settings(max_examples=40, deadline=None)
def test_an_emulated_sum_is_that_of_numpy_to_the_bit(element, x):
    core = graph_of([node("Add", "x c", "s"), node("Sub", "s c", "y")], {"c": 300.0})
    kind = NUMPY[element]
    with np.errstate(over="ignore", invalid="ignore"):
        one, c = x.astype(kind).astype(np.float32), kind.type(300).astype(np.float32)
        total = (one + c).astype(kind).astype(np.float32)
        expected = (total - c).astype(kind).astype(np.float32)
    np.testing.assert_array_equal(run_onnx(emulate(narrowed(core, element)), [{"x": x}]), expected)


def test_emulation_shows_an_overflow_that_the_cpu_provider_hides():
    core = graph_of([node("Mul", "x k", "b"), node("Mul", "b s", "y")], {"k": 1000.0, "s": 0.001})
    half, x = narrowed(core), np.full((1, 4), 100, np.float32)
    assert np.isinf(run_onnx(emulate(half), [{"x": x}])).all()
    assert np.isfinite(run_onnx(half, [{"x": x}])).all()  # as onnxruntime has it; where this fails, run the file itself


@pytest.mark.parametrize("element", [FP16, BF16])
def test_neighbours_in_float32_hand_each_other_float32(element):
    """A value of 1e8 between them would be infinite in fp16 and lose digits in bfloat16."""
    nodes = [node("MatMul", "x w", "a"), node("Mul", "a k", "b"), node("Relu", "b", "c"), node("Mul", "c s", "y")]
    core = graph_of(nodes, {"w": normal(4, 4), "k": 1e8, "s": 1e-8})
    half = narrowed(core, element, ("n1", "n2", "n3"))
    onnx.checker.check_model(half, full_check=True)
    assert operators(half).count("Cast") == 2 and [one.op_type for one in half.graph.node[-3:]] == [
        "Mul",
        "Relu",
        "Mul",
    ]
    x = normal(8, 4)
    np.testing.assert_allclose(run_onnx(emulate(half), [{"x": x}]), run_onnx(core, [{"x": x}]), rtol=0.05, atol=0.05)


def test_the_graph_given_is_not_changed_and_its_ends_stay_float32():
    core = named(graph_of([node("MatMul", "x w", "a"), node("Relu", "a", "y")], {"w": normal(4, 4)}))
    before = core.SerializeToString()
    half = narrowed(core)
    emulate(half)
    assert core.SerializeToString() == before
    types = element_types(half)
    assert {types["x"], types["y"]} == {TensorProto.FLOAT}
    wide = element_types(emulate(half))
    assert not any(tensor.data_type == FP16 for tensor in emulate(half).graph.initializer) and wide["y"] == 1


def test_a_constant_read_on_both_sides_is_kept_twice():
    core = graph_of([node("Add", "x c", "a"), node("Mul", "a c", "y")], {"c": normal(4)})
    half = narrowed(core, kept=("n1",))
    assert sorted(tensor.data_type for tensor in half.graph.initializer) == [TensorProto.FLOAT, FP16]


def test_integers_become_16_bits_at_once_and_sizes_stay_float32():
    nodes = [
        node("Shape", "x", "lengths"),
        node("Cast", "lengths", "floats", to=TensorProto.FLOAT),
        node("ReduceMax", "floats", "longest", keepdims=0),
        node("Mul", "x longest", "scaled"),
        node("Unsqueeze", "scaled axes", "image"),
        node("Resize", "image  scales", "wide", mode="nearest"),
        node("Squeeze", "wide axes", "y"),
    ]
    nodes[5].input[:] = ["image", "", "scales"]
    constants = {"axes": np.asarray([0], np.int64), "scales": np.asarray([1, 1, 2], np.float32)}
    core = graph_of(nodes, constants, y=("n", 8))
    half = narrowed(core)
    onnx.checker.check_model(half, full_check=True)
    made, types = makers(half), element_types(half)
    assert (
        next(one for one in half.graph.node if one.op_type == "Cast" and one.input[0] == "lengths").attribute[0].i == 10
    )
    resize = next(one for one in made.values() if one.op_type == "Resize")
    assert (types[resize.input[0]], types[resize.input[2]]) == (FP16, TensorProto.FLOAT)
    x = normal(3, 4)
    np.testing.assert_allclose(run_onnx(half, [{"x": x}]), run_onnx(core, [{"x": x}]), rtol=2e-3)


def test_nested_graphs_read_float32():
    def branch(operator: str, name: str) -> onnx.GraphProto:
        return helper.make_graph(
            [node(operator, "a w2", name)], name, [], [helper.make_tensor_value_info(name, TensorProto.FLOAT, None)]
        )

    nodes = [
        node("MatMul", "x w", "a"),
        node("ReduceSum", "x", "total", keepdims=0),
        node("Greater", "total zero", "positive"),
        node("If", "positive", "b", then_branch=branch("Add", "then"), else_branch=branch("Sub", "else")),
        node("MatMul", "b w", "y"),
    ]
    core = graph_of(nodes, {"w": normal(4, 4), "w2": normal(4, seed=1), "zero": 0.0})
    half = narrowed(core)
    onnx.checker.check_model(half)
    x = normal(8, 4)
    for feed in ({"x": x}, {"x": -x}):
        np.testing.assert_allclose(run_onnx(half, [feed]), run_onnx(core, [feed]), rtol=0.01, atol=0.01)
        np.testing.assert_allclose(run_onnx(emulate(half), [feed]), run_onnx(core, [feed]), rtol=0.01, atol=0.02)


def test_operators_of_the_runtime_itself_are_converted_by_its_own_schemas():
    nodes = [
        node("FusedMatMul", "x w", "a", domain="com.microsoft", transB=1),
        node("QuickGelu", "a", "b", domain="com.microsoft"),
        node("NotThere", "b", "c", domain="org.example"),
    ]
    model = graph_of(nodes, {"w": normal(4, 4)})
    assert operands(nodes[2], {"b": 1, "c": 1}, FP16, model) is None
    core = graph_of([*nodes[:2], node("Relu", "b", "y")], {"w": normal(4, 4)})
    half = narrowed(core)
    assert [tensor.data_type for tensor in half.graph.initializer if tensor.name != "w"] == [FP16]
    assert operators(strip(half)).count("Cast") == 2
    x = normal(8, 4)
    np.testing.assert_allclose(run_onnx(half, [{"x": x}]), run_onnx(core, [{"x": x}]), rtol=0.01, atol=0.01)


def test_the_standard_says_from_when_an_operator_has_16_bits():
    assert first_opset("Conv", BF16) == 22 and first_opset("MatMul", BF16) == 13 and first_opset("Conv", FP16) == 1
    assert first_opset("NonMaxSuppression", FP16) is None


def test_a_name_that_is_taken_already_is_not_taken_again():
    core = graph_of([node("Add", "x x/16", "a"), node("Relu", "a", "y")], {"x/16": 1.0})
    half = narrowed(core)
    onnx.checker.check_model(half, full_check=True)
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in half.graph.initializer}
    assert values["x/16"].dtype == np.float32 and len(values) == 2
    np.testing.assert_array_equal(run_onnx(half, [{"x": np.zeros((1, 4), np.float32)}]), 1)
