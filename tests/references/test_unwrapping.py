"""What users wrap around a model is taken off where it is built, and the model that is given stays as it was."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from distill.export import export_onnx, run_onnx
from distill.prune import PruneSettings, prune_channels
from distill.references.models import build


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2)).eval()


def compiled(model: nn.Module) -> nn.Module:
    wrapped = torch.compile(model, backend="eager")
    assert isinstance(wrapped, nn.Module)
    return wrapped


def compiled_part(model: nn.Sequential) -> nn.Module:
    model[0] = compiled(model[0])
    return model


def compiled_in_place(model: nn.Module) -> nn.Module:
    model.compile(backend="eager")
    return model


def compiled_forward(model: nn.Module) -> nn.Module:
    model.forward = torch.compile(model.forward, backend="eager")
    return model


class Decorated(nn.Sequential):
    @torch.compile(backend="eager")
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x)


WRAPPED: dict[str, Callable[[nn.Sequential], nn.Module]] = {
    "compiled": compiled,
    "compiled part": compiled_part,
    "compiled in place": compiled_in_place,
    "compiled forward": compiled_forward,
    "compiled class": lambda model: Decorated(*model).eval(),
    "parallel": nn.DataParallel,
    "compiled and parallel": lambda model: compiled(nn.DataParallel(model)),
    "parallel part": lambda model: nn.Sequential(nn.DataParallel(model)).eval(),
    "in double precision": lambda model: compiled(model.double()),
}


@pytest.mark.parametrize("case", WRAPPED)
def test_a_wrapped_model_is_built_pruned_and_exported_as_the_one_inside(case: str) -> None:
    x = torch.randn(3, 4)
    expected = network()(x).detach()
    wrapped = WRAPPED[case](network())
    names, kind = list(wrapped.state_dict()), type(wrapped)
    graph = export_onnx(wrapped, args=(x,), input_names=["x"])
    torch.testing.assert_close(torch.from_numpy(run_onnx(graph, [{"x": x.numpy()}])), expected, atol=1e-5, rtol=1e-4)
    model = build(wrapped)
    assert [name.split(".")[-2:] for name in model.state_dict()] == [
        name.split(".")[-2:] for name in network().state_dict()
    ]
    assert not any("_orig_mod" in name or "module" in name for name, _ in model.named_modules())
    with torch.no_grad():  # a copy: what is done to it does not reach the one that was given, nor the other way round
        next(model.parameters()).zero_()
        assert not torch.equal(model.float()(x), wrapped.float()(x))
    assert (list(wrapped.state_dict()), type(wrapped)) == (names, kind)
    settings = PruneSettings(ratio=0.5, importance="magnitude", round_to=4)
    narrow, _ = prune_channels(wrapped, settings, example=((x,), {}), batches=None, loss=None, logits=lambda y: y)
    assert [value.shape[0] for value in narrow.parameters()] == [8, 8, 2, 2]


def test_what_inference_mode_made_can_be_trained() -> None:
    def make() -> nn.Module:
        with torch.inference_mode():
            return network()

    model = build(make)
    model(torch.randn(3, 4)).sum().backward()
    assert next(model.parameters()).grad is not None
