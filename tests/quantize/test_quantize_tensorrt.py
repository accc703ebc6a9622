"""The TensorRT artifact: explicit symmetric int8, as far as it can be judged without a GPU."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnx import ModelProto, NodeProto, numpy_helper
from quantize_graphs import graph_of, node, operators
from quantize_zoo import PIXELS, normal, pixels, target

from distill.export import parity, run_onnx
from distill.quantize import QuantizeSettings, quantize_onnx

NETWORKS = {
    "resnet": {"x": PIXELS.apply({"image": pixels(128)})},
    "separable": {"x": normal(128, 3, 16, 16)},
    "mlp": {"x": normal(128, 20)},
    "two_inputs": {"left": normal(128, 6), "right": normal(128, 4, seed=1)},
    "pre_activation": {"x": normal(128, 1, 12, 12)},
}


@pytest.fixture(params=NETWORKS)
def pair(request) -> tuple[str, ModelProto, ModelProto]:
    core = request.getfixturevalue(request.param)
    return request.param, core, quantized(core, NETWORKS[request.param])


def quantized(core: ModelProto, feed: dict[str, np.ndarray], **asked) -> ModelProto:
    return quantize_onnx(core, QuantizeSettings(**asked), target=target("tensorrt"), calibration=[feed])[0]


def constants(model: ModelProto) -> dict[str, np.ndarray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def made_by(model: ModelProto) -> dict[str, NodeProto]:
    return {name: one for one in model.graph.node for name in one.output}


def layers(model: ModelProto) -> list[NodeProto]:
    return [one for one in model.graph.node if one.op_type in ("Conv", "Gemm", "MatMul")]


def test_all_is_int8_around_zero_in_standard_operators(pair):
    """TensorRT takes no zero points but 0, no unsigned integers, and no operator of onnxruntime's own."""
    _, _, small = pair
    onnx.checker.check_model(small, full_check=True)
    values = constants(small)
    found = [one for one in small.graph.node if one.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert found
    for one in found:
        zero, scale = values[one.input[2]], values[one.input[1]]
        assert zero.dtype == np.int8 and not zero.any() and scale.dtype == np.float32 and (scale > 0).all()
    integers = {value.dtype for name, value in values.items() if any(name == one.input[0] for one in found)}
    assert integers == {np.dtype(np.int8)}
    assert [(entry.domain, entry.version) for entry in small.opset_import] == [("", 18)]


def test_every_layer_reads_a_dequantised_activation_and_weight_and_a_float_bias(pair):
    _, core, small = pair
    values, made = constants(small), made_by(small)
    biases = [value.tobytes() for value in constants(core).values()]
    assert len(layers(small)) == len(layers(core))
    for layer in layers(small):
        data, weight = (made[name] for name in layer.input[:2])
        assert data.op_type == weight.op_type == "DequantizeLinear"
        assert made[data.input[0]].op_type == "QuantizeLinear" and weight.input[0] in values
        if len(layer.input) > 2:
            bias = values[layer.input[2]]
            assert bias.dtype == np.float32 and bias.tobytes() in biases
    assert not any(value.dtype == np.int32 for value in values.values())


def test_weights_have_a_scale_for_each_output_channel(pair):
    """A scale is the channel's largest weight over 127; no weight is farther than half a step from its own."""
    _, core, small = pair
    values, made = constants(small), made_by(small)
    floats = constants(core)
    for layer, before in zip(layers(small), layers(core), strict=True):
        dequantize = made[layer.input[1]]
        weight, scale = (values[name].astype(np.float64) for name in dequantize.input[:2])
        axis = next((entry.i for entry in dequantize.attribute if entry.name == "axis"), 1)
        exact = floats[before.input[1]].astype(np.float64)
        assert np.abs(weight).max() <= 127 and scale.shape == (exact.shape[axis],)
        rest = tuple(index for index in range(exact.ndim) if index != axis)
        np.testing.assert_allclose(scale, np.abs(exact).max(axis=rest) / 127, rtol=1e-6)
        wide = np.expand_dims(scale, rest)
        assert (np.abs(weight * wide - exact) <= wide * (0.5 + 1e-5)).all()


def test_per_layer_scales_are_scalars(resnet):
    small = quantized(resnet, NETWORKS["resnet"], per_channel=False)
    values, made = constants(small), made_by(small)
    assert all(values[made[layer.input[1]].input[1]].shape == () for layer in layers(small))


def test_the_cpu_runs_it_close_to_float32(pair):
    name, core, small = pair
    feed = {key: np.concatenate([value, -value])[::3] for key, value in NETWORKS[name].items()}
    assert parity(run_onnx(core, [feed]), run_onnx(small, [feed]), atol=1e-6, rtol=0.08).ok


def test_both_sides_of_a_shortcut_are_quantised(resnet):
    small = quantized(resnet, NETWORKS["resnet"])
    made = made_by(small)
    sums = [one for one in small.graph.node if one.op_type == "Add"]
    assert len(sums) == 3
    assert all(made[name].op_type == "DequantizeLinear" for one in sums for name in one.input)


def test_a_batch_norm_that_no_convolution_took_in_stays_one(pre_activation):
    """TensorRT fuses it in float; as a depthwise convolution, which x86 gets, it would be one more kernel."""
    small = quantized(pre_activation, NETWORKS["pre_activation"])
    assert operators(small).count("BatchNormalization") == 1 and operators(small).count("Conv") == 2
    x86, _ = quantize_onnx(pre_activation, target=target("x86"), calibration=[NETWORKS["pre_activation"]])
    assert operators(x86).count("BatchNormalization") == 0 and operators(x86).count("Conv") == 3


STEPS = st.integers(-127, 127)


@given(w=hnp.arrays(np.int64, (3, 4), elements=STEPS), x=hnp.arrays(np.int64, (5, 4), elements=STEPS))
@settings(max_examples=20, deadline=None)
def test_numbers_on_the_grid_are_kept_exactly(w, x):
    """Whole steps of the largest number over 127, of each row of weights and of all inputs, round to themselves."""
    w[:, 0], x[0, 0] = 127, -127
    weight, values = w * np.asarray([[2.0**-7], [1.0], [2.0**-3]]), x * 2.0**-5
    bias = np.asarray([0.1, -1e-4, 3e3], np.float32)
    core = graph_of([node("Gemm", "x w b", "y", transB=1)], {"w": weight.astype(np.float32), "b": bias}, y=("n", 3))
    feed = {"x": values.astype(np.float32)}
    np.testing.assert_allclose(run_onnx(quantized(core, feed), [feed]), values @ weight.T + bias, rtol=1e-6, atol=1e-5)


def test_nothing_stands_between_a_layer_and_its_rectifier(resnet):
    small = quantized(resnet, NETWORKS["resnet"])
    made = made_by(small)
    assert {made[one.input[0]].op_type for one in small.graph.node if one.op_type == "Relu"} <= {"Conv", "Add"}


def test_a_bias_behind_a_product_stays_float():
    nodes = [node("MatMul", "x w", "a"), node("Add", "a b", "h"), node("Relu", "h", "r"), node("MatMul", "r v", "y")]
    bias = np.asarray([100, 0.1, -0.1, 0.2], np.float32)
    core = graph_of(nodes, {"w": normal(4, 4), "b": bias, "v": normal(4, 4, seed=1)})
    values = constants(quantized(core, {"x": normal(128, 4)}))
    assert any(np.array_equal(value, bias) for value in values.values())
