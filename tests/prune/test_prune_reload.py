"""Weights that are computed, shared or made late come back from a folder, which holds no pickle."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.utils.prune as masks
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

from distill.prune import PruneSettings, load, prune_channels, save

WIDE = 32


def between(middle: nn.Module) -> nn.Module:
    """Return a network with a module between its convolutions, behind 32 channels and before as many."""
    torch.manual_seed(0)
    first, last = nn.Conv2d(3, WIDE, 3), nn.Conv2d(WIDE, WIDE, 3)
    pooled = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(WIDE, 4))
    return nn.Sequential(nn.Sequential(first, nn.ReLU()), middle, nn.ReLU(), last, nn.ReLU(), pooled)


class Doubled(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight * weight.abs().mean()


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = between(nn.Identity()), nn.Linear(4, 4), nn.Linear(4, 4)
        self.third.weight = self.second.weight
        self.register_buffer("sum", self.second.weight.sum() + 1)
        self.register_buffer("ramp", torch.linspace(0, 1, 4), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.third(self.second(self.first(x)).relu()) * self.get_buffer("sum") + self.get_buffer("ramp")


def changed(change: Callable[[nn.Module], object]) -> nn.Module:
    model = between(nn.Conv2d(WIDE, WIDE, 1))
    change(model.get_submodule("1"))
    return model


def masked() -> nn.Module:
    return changed(lambda layer: masks.l1_unstructured(layer, "weight", 0.5))


def weight_normed() -> nn.Module:
    return changed(nn.utils.weight_norm)


def weight_normed_anew() -> nn.Module:
    return changed(parametrizations.weight_norm)


def spectral_normed() -> nn.Module:
    return changed(nn.utils.spectral_norm)


def spectral_normed_anew() -> nn.Module:
    return changed(parametrizations.spectral_norm)


def parametrized() -> nn.Module:
    return changed(lambda layer: parametrize.register_parametrization(layer, "weight", Doubled()))


def lazy() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.LazyConv2d(WIDE, 3), nn.ReLU(), nn.LazyConv2d(WIDE, 3), nn.AdaptiveAvgPool2d(1))
    model.extend([nn.Flatten(), nn.LazyLinear(4)])
    model(torch.zeros(1, 3, 8, 8))
    return model


def stubs() -> nn.Module:
    return nn.Sequential(torch.ao.quantization.QuantStub(), Tied(), torch.ao.quantization.DeQuantStub())


BUILDERS = (
    *(masked, weight_normed, weight_normed_anew, spectral_normed, spectral_normed_anew, parametrized),
    *(Tied, lazy, stubs),
)


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning", "ignore:.*Lazy.*:UserWarning")
@pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated:DeprecationWarning")
@pytest.mark.parametrize("has_run", [False, True], ids=["fresh", "has run"])
@pytest.mark.parametrize("builder", BUILDERS, ids=lambda builder: builder.__name__)
def test_a_computed_weight_comes_back(builder: Callable[[], nn.Module], has_run: bool, tmp_path: Path) -> None:
    model, x = builder().eval(), torch.randn(2, 3, 8, 8)
    if has_run:
        model(x)
    settings = PruneSettings(macs=0.7, importance="group_norm", round_to=4)
    narrow, record = prune_channels(
        model, settings, example=((x,), {}), batches=None, loss=None, logits=lambda output: output
    )
    assert record.macs_after < record.macs_before
    reference = f"{__file__}:{builder.__name__}"
    save(tmp_path, narrow, reference, {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.json", "model.safetensors"]
    assert torch.equal(load(tmp_path, trust=reference)(x), narrow(x))
