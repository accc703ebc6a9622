from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper
from quantize_zoo import normal
from torch import nn

from distill.benchmarks import Target
from distill.export import export_onnx, run_onnx
from distill.quantize import QuantizeSettings, quantize_onnx
from distill.quantize.equalize import equalize
from distill.quantize.prepare import prepare


class Chain(nn.Module):
    """Plain, grouped and depthwise convolutions with rectifiers and a pool between, and a head behind."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 3, 1, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 1, 1, groups=8), nn.LeakyReLU(0.1),
            nn.Conv2d(8, 12, 1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(12, 12, 3, 1, 1, groups=3, bias=False),
            nn.ReLU(), nn.Conv2d(12, 6, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        )  # fmt: skip
        self.head = nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 4))

    def forward(self, x):
        return self.head(self.body(x))


def weights(model) -> list[np.ndarray]:
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    return [constants[node.input[1]] for node in model.graph.node if node.op_type in ("Conv", "Gemm")]


def uneven(seed: int = 0, spread: float = 3.0):
    """A chain in whose depthwise layer, and around it, channels differ by orders of magnitude."""
    torch.manual_seed(seed)
    model = Chain()
    with torch.no_grad():
        model.body[2].weight *= torch.logspace(0, spread, 8).reshape(-1, 1, 1, 1) / 10 ** (spread / 2)
    return export_onnx(model, args=(torch.randn(2, 3, 8, 8),), input_names=["x"])


@settings(max_examples=4, deadline=None)
@given(st.integers(0, 100), st.floats(0, 4))
def test_the_function_is_the_same_and_the_ranges_are_shared(seed: int, spread: float) -> None:
    core = prepare(uneven(seed, spread), fold_norms=True)
    equal, pairs = equalize(core)
    assert pairs == 5  # four between the convolutions, one in the head; a flatten ends the chain
    x = normal(4, 3, 8, 8)
    expected = run_onnx(core, [{"x": x}])
    np.testing.assert_allclose(run_onnx(equal, [{"x": x}]), expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())
    first, depthwise = weights(equal)[:2]
    np.testing.assert_allclose(np.abs(first).max((1, 2, 3)), np.abs(depthwise).max((1, 2, 3)), rtol=0.01)
    assert not np.array_equal(weights(core)[1], depthwise)  # and what was given is as it was


@pytest.mark.parametrize("seed", range(4))
def test_a_layer_whose_scale_is_one_number_loses_less_after_it(seed: int, x86: Target) -> None:
    """The layer alone: what it gives to its neighbours, whose scales are single numbers as well, is their loss."""
    core, x = prepare(uneven(seed), fold_norms=True), normal(64, 3, 8, 8)
    expected = run_onnx(core, [{"x": x}])
    first, _, *later = [node.output[0] for node in core.graph.node if node.op_type in ("Conv", "Gemm")]

    def error(equalized: bool) -> float:
        one_scale = QuantizeSettings(per_channel=False, equalize=equalized)
        small, record = quantize_onnx(core, one_scale, target=x86, calibration=[{"x": x}], keep_float=[first, *later])
        assert record.nodes_quantized == 1
        return float(np.square(run_onnx(small, [{"x": x}]) - expected).mean())

    assert error(True) < 0.5 * error(False)


@pytest.mark.parametrize("name", ["separable", "resnet", "mlp", "pre_activation"])
def test_other_networks_keep_their_function(request: pytest.FixtureRequest, name: str) -> None:
    core = prepare(request.getfixturevalue(name), fold_norms=True)
    shape = {"separable": (3, 16, 16), "resnet": (1, 28, 28), "mlp": (20,), "pre_activation": (1, 12, 12)}[name]
    feed = {"x": normal(4, *shape)}
    expected = run_onnx(core, [feed])
    equal, pairs = equalize(core)
    # Neither a clip at six nor a shortcut is homogeneous, channel by channel.
    assert pairs == {"separable": 1, "resnet": 3, "mlp": 2, "pre_activation": 1}[name]
    np.testing.assert_allclose(run_onnx(equal, [feed]), expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())
