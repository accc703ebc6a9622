from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from onnx import numpy_helper
from quantize_zoo import normal, target
from torch import nn

from distill.benchmarks import Target
from distill.distillation.imitation import Imitation
from distill.export import export_onnx, run_onnx
from distill.quantize import QuantizeSettings
from distill.quantize.quantization_aware import AwareModule, train_aware
from distill.quantize.sensitivity import divergence
from distill.quantize.static import calibrate_graph, integer_graph, write

SHAPES = {"resnet": (1, 28, 28), "separable": (3, 16, 16), "mlp": (20,), "pre_activation": (1, 12, 12)}


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("per_channel", [True, False])
def test_it_answers_as_the_integer_graph_does(request: Any, x86: Target, name: str, per_channel: bool) -> None:
    core, x = request.getfixturevalue(name), normal(64, *SHAPES[name])
    chosen = QuantizeSettings(per_channel=per_channel)
    found = calibrate_graph(core, chosen, target=x86, calibration=[{"x": x}])
    with torch.no_grad():
        rounded = AwareModule(found, chosen, target=x86)(torch.from_numpy(x)).numpy()
    small, _ = write(found, chosen)
    integer, plain = run_onnx(small, [{"x": x}]), run_onnx(core, [{"x": x}])
    # Biases are rounded too, and sums of floats differ in their last digits, which flips a step here and there.
    assert np.abs(rounded - integer).mean() < 0.65 * np.abs(plain - integer).mean() + 1e-6


def test_the_scales_that_were_learned_are_those_of_the_file(separable: Any) -> None:
    x, chosen = normal(64, 3, 16, 16), QuantizeSettings()
    found = calibrate_graph(separable, chosen, target=target("x86"), calibration=[{"x": x}])
    learned = train_aware(
        found, chosen, target=target("x86"), batches=[{"x": x}] * 3, train=Imitation(epochs=2, learning_rate=1e-3)
    )
    module = AwareModule(learned, chosen, target=target("x86"))
    whole, _ = integer_graph(learned, chosen)
    constants = {one.name: numpy_helper.to_array(one) for one in whole.graph.initializer}
    before, _ = integer_graph(found, chosen)
    old = {one.name: numpy_helper.to_array(one) for one in before.graph.initializer}
    assert module.roundings
    for name, how in module.roundings.items():
        low, high = learned.ranges[name]
        assert float(constants[how.scale]) == pytest.approx((high - low) / 255, rel=1e-5)
        assert float(constants[how.scale]) != float(old[how.scale])
    assert any(not np.array_equal(constants[key], old[key]) for key in constants if constants[key].dtype == np.int8)


class Uneven(nn.Module):
    """A depthwise network whose channels differ too much for one scale, and whose rectifier allows no equalisation."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.depthwise = nn.Conv2d(3, 16, 3, 1, 1), nn.Conv2d(16, 16, 3, 1, 1, groups=16)
        self.mix, self.head = nn.Conv2d(16, 32, 1), nn.Linear(32, 5)
        with torch.no_grad():
            for layer in (self.stem, self.depthwise, self.mix, self.head):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            self.depthwise.weight *= torch.logspace(-1, 1, 16).reshape(-1, 1, 1, 1)
            self.head.weight *= 8

    def forward(self, x):
        x = nn.functional.hardswish(self.depthwise(nn.functional.hardswish(self.stem(x))))
        return self.head(nn.functional.hardswish(self.mix(x)).mean((2, 3)))


def test_it_gives_back_most_of_what_rounding_took(x86: Target) -> None:
    torch.manual_seed(0)
    x = normal(2048, 3, 3, 3).repeat(4, axis=2).repeat(4, axis=3)
    model = Uneven().eval()
    with torch.no_grad():
        model.head.bias -= model(torch.from_numpy(x)).mean(0)
    core = export_onnx(model, args=(torch.randn(2, 3, 12, 12),), input_names=["x"])
    rows, held_out = [{"x": x[start : start + 32]} for start in range(0, 384, 32)], [{"x": x[384:]}]
    chosen = QuantizeSettings(per_channel=False)
    found = calibrate_graph(core, chosen, target=x86, calibration=rows)
    reference = run_onnx(core, held_out)

    def cost(one: Any) -> tuple[float, float]:
        answers = run_onnx(write(one, chosen)[0], held_out)
        return float((answers.argmax(1) != reference.argmax(1)).mean()), divergence(reference, answers)

    learned = train_aware(found, chosen, target=x86, batches=rows, train=Imitation(epochs=5, learning_rate=1e-3))
    (changed, far), (kept, near) = cost(found), cost(learned)
    assert changed > 0.02
    assert kept < changed
    assert near < far / 2
