from __future__ import annotations

import dataclasses
import itertools
import math
import platform
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from quantize_zoo import normal, target
from torch import nn

from distill.errors import UserError
from distill.export import export_onnx, run_onnx
from distill.quantize import QuantizeSettings
from distill.quantize.sensitivity import (
    Sensitivity,
    divergence,
    fewest_float,
    layer_seconds,
    layers_of,
    saved_seconds,
    sensitivities,
)
from distill.quantize.static import CalibratedGraph, calibrate_graph, write

on_x86 = pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="times x86 kernels")
LOUD = 2  # the layer in front of which one channel is a thousand times larger than the others


class Loud(nn.Module):
    """Five layers; one hidden channel is loud, and the weights that read it are as much smaller."""

    def __init__(self) -> None:
        super().__init__()
        sizes = (20, 32, 32, 32, 32, 5)
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(sizes))
        with torch.no_grad():
            for layer in self.layers:
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            self.layers[LOUD - 1].weight[7] *= 1000
            self.layers[LOUD - 1].bias[7] *= 1000
            self.layers[LOUD].weight[:, 7] /= 1000

    def forward(self, x):
        for layer in self.layers[:-1]:
            x = torch.relu(layer(x))
        return 2 * self.layers[-1](x)


@pytest.fixture(scope="module")
def loud() -> tuple[CalibratedGraph, list[dict[str, np.ndarray]]]:
    torch.manual_seed(0)
    core = export_onnx(Loud(), args=(torch.randn(2, 20),), input_names=["x"])
    rows = [{"x": normal(200, 20)}]
    return calibrate_graph(core, QuantizeSettings(), target=target("x86"), calibration=rows), rows


def test_the_layer_behind_a_loud_channel_costs_most(loud: Any) -> None:
    found, rows = loud
    steps: list[int] = []
    measured = sensitivities(
        found,
        QuantizeSettings(),
        rows=rows,
        progress=lambda what, done, total: steps.append(done),
    )
    assert [one.output for one in measured] == [output for output, _ in layers_of(found)]
    assert [one.name for one in measured] == [f"layers.{number}" for number in range(5)]
    assert steps == [1, 2, 3, 4, 5]
    costs = [one.divergence for one in measured]
    assert int(np.argmax(costs)) == LOUD
    assert costs[LOUD] > 10 * sorted(costs)[-2]


def test_the_fewest_layers_go_back_to_float(loud: Any) -> None:
    found, rows = loud
    chosen = QuantizeSettings()
    reference = run_onnx(found.model, rows).argmax(1)
    asked: list[list[str]] = []

    def make(floats: list[str]) -> Any:
        asked.append(floats)
        return write(found, chosen, keep_float=floats)[0]

    def changed(model: Any) -> float:
        return float((run_onnx(model, rows).argmax(1) != reference).mean())

    measured = sensitivities(found, chosen, rows=rows)
    assert changed(make([])) > 0.05
    best = fewest_float(measured, make, lambda model: changed(model) <= 0.03)
    assert best is not None
    floats, model = best
    assert floats == [layers_of(found)[LOUD][0]]
    assert changed(model) <= 0.03
    assert len(asked) <= 1 + math.ceil(math.log2(6)) + 1
    assert fewest_float(measured, make, lambda model: False) is None
    with pytest.raises(UserError, match="no layers"):
        fewest_float([], make, lambda model: True)


@given(st.lists(st.floats(0, 10), min_size=1, max_size=40), st.integers(0, 45))
@settings(deadline=None)
def test_the_search_finds_the_threshold_and_takes_the_worst_first(costs: list[float], enough: int) -> None:
    measured = [Sensitivity(f"layer{number}", "Conv", cost) for number, cost in enumerate(costs)]
    best = fewest_float(measured, lambda floats: floats, lambda floats: len(floats) >= enough)
    if enough >= len(costs):
        assert best is None
        return
    assert best is not None
    assert len(best[0]) == enough
    kept = [one.divergence for one in measured if one.output not in best[0]]
    assert all(one.divergence >= max(kept) for one in measured if one.output in best[0])


def test_a_layer_that_saves_no_time_goes_first() -> None:
    priced = [
        Sensitivity(*one) for one in (("a", "Conv", 1, 1e-3), ("b", "Conv", 0.1, -1e-6), ("c", "Conv", 0.5, 1e-5))
    ]
    assert [one.output for one in sorted(priced, key=lambda one: -one.price)] == ["b", "c", "a"]


@on_x86
def test_what_layers_save_is_read_from_profiles(resnet: Any) -> None:
    feed = {"x": np.zeros((8, 1, 28, 28), np.float32)}
    found = calibrate_graph(
        resnet, QuantizeSettings(), target=target("x86"), calibration=[{"x": normal(32, 1, 28, 28)}]
    )
    saved = saved_seconds(found, QuantizeSettings(), feed=feed)
    assert saved is not None
    assert set(saved) == {output for output, _ in layers_of(found)}
    assert all(abs(seconds) < 1 for seconds in saved.values())
    plain = layer_seconds(found.model, feed, 1)
    assert all(value >= 0 for value in plain.values())
    assert saved_seconds(dataclasses.replace(found, target=target("tensorrt")), QuantizeSettings(), feed=feed) is None
    away = dataclasses.replace(target("x86"), measure="ssh board")
    assert saved_seconds(dataclasses.replace(found, target=away), QuantizeSettings(), feed=feed) is None


logits = st.integers(2, 6).flatmap(
    lambda k: st.lists(st.lists(st.floats(-20, 20), min_size=k, max_size=k), min_size=1, max_size=5)
)


@given(logits, st.floats(-5, 5))
@settings(deadline=None)
def test_divergence_is_that_of_the_probabilities(values: list[list[float]], shift: float) -> None:
    reference = np.asarray(values)
    other = np.roll(reference, 1, axis=1)
    p, q = (np.exp(one) / np.exp(one).sum(1, keepdims=True) for one in (reference, other))
    assert divergence(reference, other) == pytest.approx(float((p * np.log(p / q)).sum(1).mean()), abs=1e-9)
    assert divergence(reference, reference + shift) == pytest.approx(0, abs=1e-9)


def test_other_answers_are_compared_by_their_error() -> None:
    reference = np.arange(12.0).reshape(2, 2, 3)
    assert divergence(reference, reference * 1.1) == pytest.approx(0.01)
    assert divergence(np.zeros((3, 1)), np.zeros((3, 1))) == 0
    assert divergence(np.zeros((3, 1)), np.ones((3, 1))) == 1
    assert divergence(reference, np.full_like(reference, np.nan)) == math.inf
    with pytest.raises(ValueError, match="cannot be compared"):
        divergence(reference, reference[:1])
