"""Tensors from a file load into modules that ask for the version of who wrote them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from distill.prune import load, save
from distill.references.weights import load_weights
from distill.state_dicts import load_state


class Versioned(nn.Module):
    """A module that refuses weights of no version, as torchvision's MNASNet does."""

    _version = 2

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.norm, self.head = nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)

    def _load_from_state_dict(self, state: Any, prefix: str, metadata: dict[str, Any], *rest: Any) -> None:
        if metadata.get("version") != 2:
            raise ValueError("version should be set to 2")
        super()._load_from_state_dict(state, prefix, metadata, *rest)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        answer: torch.Tensor = self.head(torch.relu(self.norm(self.hidden(x))))
        return answer


def test_a_dict_of_tensors_loads() -> None:
    model, other = Versioned(), Versioned()
    with pytest.raises(ValueError, match="version"):
        other.load_state_dict(dict(model.state_dict()))
    load_state(other, dict(model.state_dict()))
    assert torch.equal(other.head.weight, model.head.weight)


def test_what_does_not_fit_is_still_refused() -> None:
    with pytest.raises(RuntimeError, match="Missing key"):
        load_state(Versioned(), {"head.bias": torch.zeros(3)})


def test_a_user_s_weights_and_a_pruned_model_load(tmp_path: Path) -> None:
    model = Versioned().eval()
    save_file(dict(model.state_dict()), tmp_path / "weights.safetensors")
    loaded = Versioned()
    assert load_weights(loaded, tmp_path / "weights.safetensors", field="teacher") == ()
    assert torch.equal(loaded.head.weight, model.head.weight)
    save(tmp_path, model, f"{__name__}:Versioned", {})
    x = torch.randn(2, 4)
    assert torch.equal(load(tmp_path, trust=f"{__name__}:Versioned")(x), model(x))
