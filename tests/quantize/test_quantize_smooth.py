from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from quantize_zoo import normal
from torch import nn

from distill.benchmarks import Target
from distill.export import export_onnx, run_onnx
from distill.quantize import QuantizeSettings, quantize_onnx
from distill.quantize.prepare import prepare
from distill.quantize.smooth import smooth


class Block(nn.Module):
    """A feed-forward block with its normalisation in front, or behind the sum as BERT has it; two readers, or three."""

    def __init__(self, *, before: bool) -> None:
        super().__init__()
        self.before = before
        self.first, self.second = nn.LayerNorm(16), nn.LayerNorm(16)
        self.gate, self.up, self.down, self.head = (
            nn.Linear(16, 32), nn.Linear(16, 32), nn.Linear(32, 16), nn.Linear(16, 3),
        )  # fmt: skip

    def forward(self, x):
        y = self.first(x)
        out = self.down(torch.relu(self.up(y)) * torch.tanh(self.gate(y)))
        return self.head(self.second((x if self.before else y) + out)).mean(1)


def made(before: bool, seed: int, factor: float) -> Any:
    torch.manual_seed(seed)
    model = Block(before=before)
    with torch.no_grad():
        model.first.bias.normal_()
        for norm in (model.first, model.second):
            norm.weight[3] *= factor
            norm.weight[7] *= factor
        model.up.weight[:, [3, 7]] /= factor
        model.gate.weight[:, [3, 7]] /= factor
    core = export_onnx(model, args=(torch.randn(2, 5, 16),), input_names=["x"])
    return prepare(core, fold_norms=True)


@settings(max_examples=4, deadline=None)
@given(st.booleans(), st.integers(0, 50), st.sampled_from([0.0, 0.5, 0.8, 1.0]))
def test_the_function_stays_and_the_channels_come_closer(before: bool, seed: int, strength: float) -> None:
    core, x = made(before, seed, 40.0), normal(12, 5, 16)
    even, count = smooth(core, [{"x": x[:7]}, {"x": x[7:]}], QuantizeSettings(samples=12), strength=strength)
    assert count == 2
    expected = run_onnx(core, [{"x": x}])
    np.testing.assert_allclose(run_onnx(even, [{"x": x}]), expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())
    undone = [node for node in even.graph.node if node.op_type == "Mul" and node.name.endswith("undone")]
    assert len(undone) == (0 if before else 1)  # a shortcut behind the normalisation reads it as it was


@pytest.mark.parametrize("before", [True, False])
def test_int8_loses_less_behind_outlying_channels(before: bool, x86: Target) -> None:
    core, x = made(before, 0, 60.0), normal(64, 5, 16)
    expected = run_onnx(core, [{"x": x}])

    def error(smoothed: float | None) -> float:
        chosen = QuantizeSettings(smooth=smoothed)
        small, _ = quantize_onnx(core, chosen, target=x86, calibration=[{"x": x}])
        return float(np.abs(run_onnx(small, [{"x": x}]) - expected).mean())

    # Where a shortcut brings the outliers to the next normalisation, most of the loss is there.
    assert error(0.5) < (0.5 if before else 0.95) * error(None)


def test_a_network_without_normalisations_is_left_alone(mlp: Any) -> None:
    assert smooth(mlp, [{"x": normal(4, 20)}], QuantizeSettings())[1] == 0
