from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from quantize_zoo import PIXELS, executed, normal, pixels, target
from torch import nn

from distill.distillation.imitation import Imitation
from distill.export import export_onnx, run_onnx
from distill.quantize import QuantizeSettings
from distill.quantize.repair_loop import Loss, Repairs, repair
from distill.quantize.sensitivity import divergence, layers_of

BUDGET = 0.05  # of a network with random weights, whose classes lie close together


class Uneven(nn.Module):
    """A depthwise network in which one channel's range is a thousand times that of the others."""

    def __init__(self, rectifier: type[nn.Module]) -> None:
        super().__init__()
        self.stem, self.depthwise = nn.Conv2d(3, 16, 3, 1, 1), nn.Conv2d(16, 16, 3, 1, 1, groups=16)
        self.mix, self.head = nn.Conv2d(16, 32, 1), nn.Linear(32, 5)
        self.rectifier = rectifier()
        with torch.no_grad():
            for layer in (self.stem, self.depthwise, self.mix, self.head):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            self.stem.weight[3] *= 1000
            self.stem.bias[3] *= 1000
            self.depthwise.weight[3] /= 1000
            self.head.weight *= 8

    def forward(self, x):
        x = self.rectifier(self.stem(x))
        x = self.rectifier(self.depthwise(x))
        return self.head(self.rectifier(self.mix(x)).mean((2, 3)))


def repaired(
    core: Any, settings: QuantizeSettings, rows: list[Any], budget: float = BUDGET, epochs: int = 0
) -> Repairs:
    reference = run_onnx(core, rows)

    def judge(model: Any) -> Loss:
        answers = run_onnx(model, rows)
        return Loss(float((answers.argmax(1) != reference.argmax(1)).mean()), divergence(reference, answers))

    return repair(
        core, settings, target=target("x86"), calibration=rows, rows=rows, judge=judge, max_drop=budget,
        train=Imitation(epochs=epochs) if epochs else None,
    )  # fmt: skip


def pictures() -> np.ndarray:
    """Coarse ones, so that each is different from the next also after a mean over its area."""
    return normal(256, 3, 3, 3).repeat(4, axis=2).repeat(4, axis=3)


def uneven(rectifier: type[nn.Module]) -> Any:
    """Export the network, its answers spread over all classes."""
    torch.manual_seed(0)
    model = Uneven(rectifier).eval()
    with torch.no_grad():
        model.head.bias -= model(torch.from_numpy(pictures())).mean(0)
    return export_onnx(model, args=(torch.randn(2, 3, 12, 12),), input_names=["x"])


def test_first_layers_that_integers_slow_down_are_offered_in_float(
    resnet: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"x": PIXELS.apply({"image": pixels()})}]

    def saved(found: Any, *_: Any, **__: Any) -> dict[str, float]:
        times = [-3e-6, 1e-6, 5e-6]
        return {output: times[min(number, 2)] for number, (output, _) in enumerate(layers_of(found))}

    monkeypatch.setattr("distill.quantize.repair_loop.saved_seconds", saved)
    done = repaired(resnet, QuantizeSettings(), rows, budget=1.0)
    (late,) = done.faster
    assert late.name == "int8, the first 1 of 10 layers float"
    assert late.record.float_operators == {"Conv": 1}
    assert not any("stays float" in text for text in late.record.warnings)
    # The shortcut around the first block takes what the block's convolution takes, in integers.
    kernels = executed(late.model, {"x": rows[0]["x"][:1]}, tmp_path)
    assert kernels.count("QLinearAdd") == 3 and "Add" not in kernels
    np.testing.assert_array_equal(run_onnx(late.model, rows).argmax(1), run_onnx(resnet, rows).argmax(1))


def test_a_network_whose_first_layers_gain_is_offered_as_it_is(resnet: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for times in ({}, None):
        monkeypatch.setattr("distill.quantize.repair_loop.saved_seconds", lambda *_, found=times, **__: found)
        assert repaired(resnet, QuantizeSettings(), [{"x": PIXELS.apply({"image": pixels()})}], budget=1.0).faster == []


def test_a_network_that_needs_nothing_is_quantised_once(mlp: Any) -> None:
    done = repaired(mlp, QuantizeSettings(), [{"x": normal(200, 20)}], budget=0.1)
    assert [one.name for one in done.attempts] == ["int8"]
    assert done.sensitivity == []


@pytest.mark.parametrize("rectifier", [nn.ReLU, nn.Hardswish])
def test_a_loud_channel_breaks_int8_and_a_repair_mends_it(rectifier: type[nn.Module]) -> None:
    core, rows = uneven(rectifier), [{"x": pictures()}]
    done = repaired(core, QuantizeSettings(), rows)
    assert done.attempts[0].loss.drop > 0.3
    last = done.attempts[-1]
    assert last.loss.drop <= BUDGET
    if rectifier is nn.ReLU:
        assert "equalised" in last.name
        assert last.floats == ()
    else:  # not homogeneous, so that only a layer in float helps
        assert 1 <= len(last.floats) <= 2
        assert "layers float" in last.name
        assert {one.output for one in done.sensitivity} >= set(last.floats)
    assert len({(one.settings, one.floats) for one in done.attempts}) == len(done.attempts)


def test_a_budget_that_cannot_be_kept_ends_with_the_attempts(mlp: Any) -> None:
    rows = [{"x": normal(64, 20)}]
    done = repaired(mlp, QuantizeSettings(), rows, budget=-1.0)
    assert done.best.loss == min(one.loss for one in done.attempts)
    assert len(done.sensitivity) == 3
    names = [one.name for one in done.attempts]
    assert "int8 percentile" in names
    assert any("biases corrected" in name for name in names)
    assert np.isfinite([one.loss.divergence for one in done.attempts]).all()


def test_training_is_tried_before_layers_go_back_to_float(mlp: Any) -> None:
    rows = [{"x": normal(64, 20, seed=seed)} for seed in range(4)]
    done = repaired(mlp, QuantizeSettings(), rows, budget=-1.0, epochs=3)
    (trained,) = [one for one in done.attempts if "trained for 3 epochs" in one.name]
    floats = [number for number, one in enumerate(done.attempts) if one.floats]
    assert done.attempts.index(trained) < min(floats)
    assert np.isfinite(trained.loss.divergence)
