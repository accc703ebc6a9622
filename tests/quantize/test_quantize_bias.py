from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from quantize_zoo import normal, target

from distill.errors import UserError
from distill.export import run_onnx
from distill.quantize import QuantizeSettings, quantize_onnx
from distill.quantize.bias import correct_biases, rounded_weights


def layer(kind: str, weight: np.ndarray, bias: np.ndarray | None) -> onnx.ModelProto:
    """One layer of a kind: Conv, Gemm, or MatMul with a sum behind it."""
    constants = [numpy_helper.from_array(weight, "w")]
    if bias is not None:
        constants.append(numpy_helper.from_array(bias, "b"))
    rest = ["b"] if bias is not None else []
    if kind == "MatMul":
        nodes = [helper.make_node("MatMul", ["x", "w"], ["m"], name="n0"), helper.make_node("Add", ["b", "m"], ["y"])]
    elif kind == "Conv":
        nodes = [helper.make_node("Conv", ["x", "w", *rest], ["y"], name="n0", pads=[1] * 4)]
    else:
        nodes = [helper.make_node("Gemm", ["x", "w", *rest], ["y"], name="n0", transB=1)]
    shape = {"Conv": ["n", 3, 8, 8], "Gemm": ["n", 6], "MatMul": ["n", 5, 6]}[kind]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        constants,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


@pytest.mark.parametrize(("kind", "biased"), [("Conv", True), ("Conv", False), ("Gemm", True), ("MatMul", True)])
def test_the_mean_of_every_channel_is_that_of_the_float_layer(kind: str, biased: bool) -> None:
    rng = np.random.default_rng(0)
    shape = {"Conv": (4, 3, 3, 3), "Gemm": (4, 6), "MatMul": (6, 4)}[kind]
    weight, bias = rng.normal(size=shape).astype(np.float32), rng.normal(size=4).astype(np.float32)
    x = (rng.normal(size={"Conv": (50, 3, 8, 8), "Gemm": (50, 6), "MatMul": (50, 5, 6)}[kind]) + 1).astype(np.float32)
    rounded = np.rint(weight * 2) / 2
    plain, coarse = (layer(kind, one, bias if biased else None) for one in (weight, rounded))
    batches = [{"x": x[:33]}, {"x": x[33:]}]
    corrected, count = correct_biases(plain, {"n0": rounded}, batches, QuantizeSettings(samples=50))
    assert count == 1
    # With the rounded weights in their place, as an integer kernel has them.
    for tensor in corrected.graph.initializer:
        if tensor.name == "w":
            tensor.CopyFrom(numpy_helper.from_array(rounded, "w"))
    axes = {"Conv": (0, 2, 3), "Gemm": (0,), "MatMul": (0, 1)}[kind]
    exact, moved, found = (
        run_onnx(one, [{"x": x}]).astype(np.float64).mean(axes) for one in (plain, coarse, corrected)
    )
    assert np.abs(moved - exact).max() > 0.05
    np.testing.assert_allclose(found, exact, atol=1e-5)
    assert run_onnx(plain, [{"x": x}]).shape[0] == 50  # and the graph that was given is as it was


@pytest.mark.parametrize("axis", [0, 1, None])
def test_weights_are_read_back_as_the_integer_kernels_have_them(axis: int | None) -> None:
    values = np.arange(-6, 6, dtype=np.int8).reshape(3, 4)
    scales = np.float32(0.5) if axis is None else np.arange(1, values.shape[axis] + 1, dtype=np.float32)
    zeros = np.zeros_like(scales, np.int8)
    attributes = {} if axis is None else {"axis": axis}
    nodes = [
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["w"], **attributes),
        helper.make_node("MatMul", ["x", "w"], ["y"], name="n0"),
    ]
    constants = [
        numpy_helper.from_array(np.asarray(one), name) for one, name in ((values, "q"), (scales, "s"), (zeros, "z"))
    ]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in "xy")
    found = rounded_weights(helper.make_graph(nodes, "g", [x], [y], constants), ["n0"])
    by_axis = {0: scales[:, None] if axis == 0 else 0, 1: scales, None: scales}[axis]
    np.testing.assert_array_equal(found["n0"], values * by_axis)


def test_coarse_weights_lose_less_of_their_mean(separable, x86) -> None:
    x = np.abs(normal(64, 3, 16, 16))
    reference = run_onnx(separable, [{"x": x}])

    def shift(corrected: bool) -> float:
        settings = QuantizeSettings(per_channel=False, bias_correction=corrected)
        small, _ = quantize_onnx(separable, settings, target=x86, calibration=[{"x": x}])
        return float(np.abs((run_onnx(small, [{"x": x}]) - reference).mean(0)).mean())

    assert shift(True) < 0.6 * shift(False)


def test_samples_that_are_gone_after_one_reading_are_refused(separable) -> None:
    with pytest.raises(UserError, match="read more than once"):
        quantize_onnx(
            separable,
            QuantizeSettings(bias_correction=True),
            target=target("x86"),
            calibration=iter([{"x": normal(4, 3, 16, 16)}]),
        )


def test_a_graph_without_pairs_has_no_rounded_weights(separable) -> None:
    assert rounded_weights(separable.graph, [node.name for node in separable.graph.node]) == {}
