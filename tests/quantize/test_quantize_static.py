from __future__ import annotations

import platform

import numpy as np
import pytest
import torch
from onnx import ModelProto, TensorProto, helper, numpy_helper
from quantize_zoo import PIXELS, executed, normal, pixels, target
from torch import nn

from distill.errors import UserError
from distill.export import export_onnx, parity, run_onnx, strip, to_bytes
from distill.quantize import QuantizeSettings, quantize, quantize_onnx
from distill.quantize.calibrate import calibrate

INTEGER = {"QLinearConv", "QLinearAdd", "QGemm", "QLinearMatMul", "QLinearGlobalAveragePool"}
MOVES = {"QuantizeLinear", "DequantizeLinear", "Transpose", "Flatten", "Reshape", "Squeeze"}
X86 = platform.machine() in ("x86_64", "AMD64")
on_x86 = pytest.mark.skipif(not X86, reason="U8S8 kernels are those of x86")


def images(rows: int = 128, seed: int = 0):
    return PIXELS.apply({"image": pixels(rows, seed)})


def close(core: ModelProto, small: ModelProto, feed, *, share: float = 0.05) -> None:
    """Logits of int8 within a share of the largest float logit."""
    result = parity(run_onnx(core, [feed]), run_onnx(small, [feed]), atol=1e-6, rtol=share)
    assert result.ok, result


def constants(model: ModelProto) -> dict[str, np.ndarray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def zero_points(model: ModelProto) -> list[np.ndarray]:
    """The zero points of activations: those behind QuantizeLinear."""
    values = constants(model)
    return [values[node.input[2]] for node in model.graph.node if node.op_type == "QuantizeLinear"]


@on_x86
def test_a_resnet_runs_on_integer_kernels_only_from_raw_pixel_to_logit(resnet, tmp_path):
    before = to_bytes(resnet)
    small, record = quantize_onnx(resnet, target=target("x86"), calibration=[{"x": images()}])
    assert to_bytes(resnet) == before
    close(resnet, small, {"x": images(64, seed=1)})
    shipped = PIXELS.prepend(small, input_name="x")
    kernels = executed(shipped, {"image": pixels(1)}, tmp_path)
    assert set(kernels) <= {*INTEGER, "Transpose", "Reshape"}
    assert kernels[0] == "QLinearConv"
    assert kernels.count("QLinearConv") == 9 and kernels.count("QLinearAdd") == 3 and kernels[-1] == "QGemm"
    assert (record.nodes_quantized, record.nodes_float, record.samples) == (13, 0, 128)
    assert (record.precision, record.scheme, record.warnings) == ("int8", "u8s8", ())
    raw = {"image": pixels(64, seed=1)}
    reference = run_onnx(PIXELS.prepend(resnet, input_name="x"), [raw])
    assert parity(reference, run_onnx(shipped, [raw]), atol=1e-6, rtol=0.05).ok


def test_the_input_scale_of_raw_pixels_reaches_the_bias(resnet):
    """Calibrated on darker images, the graph's own input scale differs from that of the pixels."""
    dark = PIXELS.apply({"image": pixels() // 2})
    small, _ = quantize_onnx(resnet, target=target("x86"), calibration=[{"x": dark}])
    raw = {"image": pixels(64, seed=1) // 2}
    shipped = run_onnx(PIXELS.prepend(small, input_name="x"), [raw])
    assert parity(run_onnx(resnet, [{"x": PIXELS.apply(raw)}]), shipped, atol=1e-6, rtol=0.05).ok


@on_x86
def test_raw_pixels_pass_a_flatten_as_bytes(tmp_path):
    """A perceptron flattens before its first product; the bytes go through, with the pixels' own scale."""
    weight, head, bias = normal(784, 16), normal(16, 3), normal(16)
    graph = helper.make_graph(
        [
            helper.make_node("Flatten", ["x"], ["flat"]),
            helper.make_node("Gemm", ["flat", "w", "b"], ["hidden"]),
            helper.make_node("Relu", ["hidden"], ["active"]),
            helper.make_node("Gemm", ["active", "h"], ["logits"]),
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 1, 28, 28])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3])],
        [numpy_helper.from_array(value, name) for name, value in (("w", weight), ("h", head), ("b", bias))],
    )
    core = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    dark = {"image": pixels() // 2}
    small, _ = quantize_onnx(core, target=target("x86"), calibration=[{"x": PIXELS.apply(dark)}])
    shipped = PIXELS.prepend(small, input_name="x")
    assert executed(shipped, {"image": pixels(1)}, tmp_path) == ["Transpose", "Flatten", "QGemm", "QGemm"]
    reference = run_onnx(core, [{"x": PIXELS.apply(dark)}])
    assert parity(reference, run_onnx(shipped, [dark]), atol=1e-6, rtol=0.05).ok


def test_the_file_is_weights_scales_and_little_text(resnet):
    small, record = quantize_onnx(resnet, target=target("x86"), calibration=[{"x": images()}])
    weights = sum(value.size for value in constants(resnet).values())
    assert record.file_bytes == len(to_bytes(small)) < 1.08 * weights
    assert [(entry.domain, entry.version) for entry in small.opset_import] == [("", 18)]
    payloads = [(t.data_type, tuple(t.dims), t.raw_data) for t in small.graph.initializer]
    assert len(set(payloads)) == len(payloads)
    assert to_bytes(strip(small)) == to_bytes(small)


@on_x86
@pytest.mark.parametrize(
    ("name", "shapes"),
    [
        ("mlp", {"x": (20,)}),
        ("separable", {"x": (3, 16, 16)}),
        ("two_inputs", {"left": (6,), "right": (4,)}),
    ],
)
def test_other_networks_are_integer_throughout(request, x86, tmp_path, name, shapes):
    core = request.getfixturevalue(name)
    feed = {key: normal(128, *shape, seed=number) for number, (key, shape) in enumerate(shapes.items())}
    small, record = quantize_onnx(core, target=x86, calibration=[feed])
    close(core, small, feed)
    kernels = executed(small, {key: value[:1] for key, value in feed.items()}, tmp_path)
    assert set(kernels) <= INTEGER | MOVES and "DequantizeLinear" not in kernels
    assert record.nodes_float == 0


@on_x86
def test_a_batch_norm_alone_becomes_integer_and_a_softmax_stays_float(pre_activation, tmp_path):
    x = normal(128, 1, 12, 12)
    small, record = quantize_onnx(pre_activation, target=target("x86"), calibration=[{"x": x}])
    close(pre_activation, small, {"x": x})
    kernels = executed(small, {"x": x[:1]}, tmp_path)
    assert kernels.count("QLinearConv") == 3 and kernels.count("QLinearAdd") == 1
    assert "BatchNormalization" not in kernels and "Softmax" in kernels
    assert record.nodes_quantized == 6


class FeedForward(nn.Module):
    """The feed-forward part of a transformer with its layer norms: products of rank 3, with biases."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down, self.head = (
            nn.LayerNorm(16),
            nn.Linear(16, 64),
            nn.Linear(64, 16),
            nn.Linear(16, 3),
        )

    def forward(self, x):
        y = self.norm(x)
        return self.head(self.norm(y + self.down(nn.functional.gelu(self.up(y)))).mean(1))


@on_x86
def test_products_that_floats_are_made_of_are_not_rounded_to_eight_bits(x86, tmp_path):
    torch.manual_seed(0)
    core = export_onnx(FeedForward().eval(), args=(torch.randn(2, 6, 16),), input_names=["x"])
    x = normal(64, 6, 16)
    small, record = quantize_onnx(core, target=x86, calibration=[{"x": x}])
    close(core, small, {"x": x})
    kernels = executed(small, {"x": x[:2]}, tmp_path)
    # The GELU and the shortcut work on the products' floats, without a pair in between; biases are added in 32 bits.
    assert kernels.count("QGemm") == 3 and "Gelu" in kernels
    assert not {"QLinearAdd", "QLinearMatMul", "DequantizeLinear"} & set(kernels)
    biases = {tuple(one.dims) for one in small.graph.initializer if one.data_type == TensorProto.INT32}
    assert biases == {(64,), (16,), (3,)}
    assert record.float_operators == {"Add": 1}  # the shortcut, between two layer norms


def test_the_logits_are_not_rounded_to_eight_bits(mlp):
    x = normal(2000, 20)
    small, _ = quantize_onnx(mlp, target=target("x86"), calibration=[{"x": x[:128]}])
    assert len(np.unique(run_onnx(small, [{"x": x}]))) > 1000


def test_equal_calls_give_equal_bytes_in_any_batching(resnet):
    x = images()
    batches = [[{"x": x}], ({"x": x[start : start + 50]} for start in range(0, 128, 50))]
    first, second = (quantize(resnet, target=target("x86"), calibration=batch)[0] for batch in batches)
    assert to_bytes(first) == to_bytes(second)


def test_calibration_is_read_no_further_than_asked(mlp):
    read = []

    def stream():
        while True:  # an endless source: whoever keeps or counts it never comes back
            read.append(1)
            yield {"x": normal(10, 20, seed=len(read))}

    steps: list[tuple[str, int, int]] = []
    _, record = quantize_onnx(
        mlp,
        QuantizeSettings(samples=35),
        target=target("x86"),
        calibration=stream(),
        progress=lambda what, done, total: steps.append((what, done, total)),
    )
    assert record.samples == 35 and len(read) == 4
    assert steps[-1] == ("calibrate", 35, 35)
    assert "35 calibration samples" not in "".join(record.warnings)  # as many as were asked for


@pytest.mark.parametrize("method", ["average", "percentile", "entropy"])
def test_other_calibrations_clip_outliers(mlp, method):
    x = normal(256, 20)
    x[0] *= 50
    usual = {"x": x[1:]}
    reference = run_onnx(mlp, [usual])

    def error(calibration):
        settings = QuantizeSettings(calibration=calibration, percentile=99.0)
        small, record = quantize_onnx(mlp, settings, target=target("x86"), calibration=[{"x": x}])
        assert record.calibration == calibration
        return parity(reference, run_onnx(small, [usual]), atol=1, rtol=1).mean_abs

    assert error(method) < error("minmax") / 2


def test_an_average_is_the_mean_over_samples_in_any_order_and_any_batches(mlp):
    x = normal(40, 20)
    settings = QuantizeSettings(calibration="average", samples=40)
    found = [
        calibrate(mlp, ["x"], batches, settings)[0]["x"]
        for batches in ([{"x": x}], [{"x": x[::-1][:7]}, {"x": x[::-1][7:]}])
    ]
    expected = [x.min(axis=1).mean(dtype=np.float64), x.max(axis=1).mean(dtype=np.float64)]
    np.testing.assert_allclose(found, [expected, expected], rtol=1e-6)


def test_reduced_range_keeps_weights_to_seven_bits_and_removes_the_risk(resnet):
    feed = {"x": images()}
    full, plain = quantize_onnx(resnet, target=target("x86"), calibration=[feed])
    small, record = quantize_onnx(resnet, target=target("x86", reduce_range=True), calibration=[feed])

    def largest(model):
        values = [np.abs(v.astype(int)).max() for v in constants(model).values() if v.dtype == np.int8 and v.ndim > 1]
        return max(values)

    assert record.reduce_range and largest(full) == 127 and largest(small) <= 64
    assert plain.saturation_risk > 0 and record.saturation_risk == 0
    close(resnet, small, feed, share=0.1)
    forced = quantize_onnx(resnet, QuantizeSettings(reduce_range=True), target=target("x86"), calibration=[feed])[0]
    assert to_bytes(forced) == to_bytes(small)


def test_arm_gets_signed_activations_that_start_at_zero_behind_relu(resnet):
    feed = {"x": images()}
    small, record = quantize_onnx(resnet, target=target("arm"), calibration=[feed])
    zeros = zero_points(small)
    assert record.scheme == "s8s8" and record.saturation_risk == 0
    assert {value.dtype for value in zeros} == {np.dtype(np.int8)}
    assert sum(int(value) == -128 for value in zeros) >= 5
    assert not any(node.op_type == "Relu" for node in small.graph.node)
    close(resnet, small, feed)
    raw = {"image": pixels(16)}  # its first kernel takes int8, so pixels pass through one quantiser
    shipped = run_onnx(PIXELS.prepend(small, input_name="x"), [raw])
    np.testing.assert_allclose(shipped, run_onnx(small, [{"x": PIXELS.apply(raw)}]), atol=1e-5)


def test_x86_zero_points_are_zero_behind_relu(resnet):
    small, _ = quantize_onnx(resnet, target=target("x86"), calibration=[{"x": images()}])
    zeros = zero_points(small)
    assert {value.dtype for value in zeros} == {np.dtype(np.uint8)}
    assert sum(int(value) == 0 for value in zeros) >= 5


def test_tensorrt_gets_symmetric_activations_and_float_biases(resnet):
    feed = {"x": images()}
    small, _ = quantize_onnx(resnet, target=target("tensorrt"), calibration=[feed])
    assert all(value.dtype == np.int8 and int(value) == 0 for value in zero_points(small))
    assert not any(value.dtype == np.int32 for value in constants(small).values())
    close(resnet, small, feed)


def test_per_layer_scales_are_scalars(resnet):
    settings = QuantizeSettings(per_channel=False)
    small, record = quantize_onnx(resnet, settings, target=target("x86"), calibration=[{"x": images()}])
    scales = [constants(small)[n.input[1]] for n in small.graph.node if n.op_type == "DequantizeLinear"]
    assert not record.per_channel and all(scale.size == 1 for scale in scales)
    close(resnet, small, {"x": images()}, share=0.1)


@pytest.mark.parametrize("last", [nn.ReLU(), nn.ReLU6()])
def test_a_rectifier_in_front_of_a_float_reader_is_kept(last, x86):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 32), last, nn.LayerNorm(32), nn.Linear(32, 3))
    core = export_onnx(model, args=(torch.randn(2, 20),), input_names=["x"])
    x = normal(200, 20)
    small, _ = quantize_onnx(core, target=x86, calibration=[{"x": x}])
    assert parity(run_onnx(core, [{"x": x}]), run_onnx(small, [{"x": x}]), atol=1e-6, rtol=0.05).ok


def test_named_outputs_stay_float(mlp):
    gemms = [node.output[0] for node in mlp.graph.node if node.op_type == "Gemm"]
    x = normal(128, 20)
    small, record = quantize_onnx(mlp, target=target("x86"), calibration=[{"x": x}], keep_float=gemms[:1])
    assert (record.nodes_quantized, record.nodes_float, record.float_operators) == (2, 1, {"Gemm": 1})
    assert record.warnings == ("stays float: 1 Gemm",)
    assert sum(value.dtype == np.float32 and value.ndim == 2 for value in constants(small).values()) == 1
    close(mlp, small, {"x": x})


def test_a_channel_without_weights_keeps_its_bias():
    """Its scale would be 1, and its bias a multiple of the input's scale: 0.3 would become 0 here."""
    weight = normal(4, 8)
    weight[1] = 0
    bias = np.asarray([0.1, 0.3, -0.2, 0.0], np.float32)
    graph = helper.make_graph(
        [helper.make_node("Gemm", ["x", "w", "b"], ["logits"], transB=1)],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 4])],
        [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(bias, "b")],
    )
    core = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    x = 100 * normal(128, 8)
    small, _ = quantize_onnx(core, target=target("x86"), calibration=[{"x": x}])
    np.testing.assert_allclose(run_onnx(small, [{"x": x}])[:, 1], 0.3, atol=0.01)


def test_what_cannot_be_quantised_is_refused(mlp):
    x = normal(128, 20)
    small, _ = quantize_onnx(mlp, target=target("x86"), calibration=[{"x": x}])
    nan = x.copy()
    nan[3, 3] = np.nan
    cases = [
        (small, [{"x": x}], "quantised already"),
        (mlp, [], "calibration: no samples"),
        (mlp, [{"x": x[:0]}], "calibration: no samples"),
        (mlp, [{"y": x}], r"inputs \['y'\], the model takes \['x'\]"),
        (mlp, [{"x": x, "y": x}], r"inputs \['x', 'y'\]"),
        (mlp, [{"x": x[:, :5]}], "refuses a batch"),
        (mlp, [{"x": x.astype(np.float64)}], "refuses a batch"),
        (mlp, [{"x": nan}], "input 'x' is NaN or infinite"),
    ]
    for core, calibration, reason in cases:
        with pytest.raises(UserError, match=reason):
            quantize(core, target=target("x86"), calibration=calibration)
    with pytest.raises(UserError, match="needs samples"):
        quantize(mlp, target=target("x86"))
    with pytest.raises(UserError, match="runs fp16"):
        quantize_onnx(mlp, target=target("cuda"), calibration=[{"x": x}])
    bare = strip(mlp)
    del bare.graph.node[:]
    bare.graph.node.append(helper.make_node("Relu", ["x"], ["logits"]))
    with pytest.raises(UserError, match="nothing to quantise"):
        quantize(bare, target=target("x86"), calibration=[{"x": x}])


@pytest.mark.parametrize(
    "settings",
    [{"samples": 0}, {"percentile": 101}, {"scheme": "u4"}, {"reduce_range": "maybe"}, {"calibrate": "minmax"}],
)
def test_settings_out_of_bounds_are_refused(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        QuantizeSettings(**settings)
