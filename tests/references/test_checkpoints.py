"""Checkpoints as training scripts leave them: which state dict is read, and what is said of it."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from distill.errors import UserError
from distill.references.weights import load_weights

State = dict[str, Tensor]


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))


def below(prefix: str, state: State) -> State:
    return {prefix + name: value for name, value in state.items()}


def inside(wrapper: str, state: State) -> State:
    return {name.replace(".", f".{wrapper}.", 1): value for name, value in state.items()}


def other(state: State) -> State:
    return {name: torch.zeros_like(value) for name, value in state.items()}


SAVED: dict[str, tuple[Callable[[State], Any], list[str]]] = {
    "plain": (lambda s: s, []),
    "compiled": (lambda s: below("_orig_mod.", s), ["names without '_orig_mod.'"]),
    "parallel": (lambda s: below("module.", s), ["names without 'module.'"]),
    "nested": (lambda s: below("module._orig_mod.model.", s), ["names without 'module._orig_mod.model.'"]),
    "any prefix": (lambda s: below("my.backbone.", s), ["names without 'my.backbone.'"]),
    "a compiled part": (lambda s: inside("_orig_mod", s), ["names without '_orig_mod.'"]),
    "wrapped twice": (lambda s: below("_orig_mod.", inside("module", s)), ["_orig_mod."]),
    "net": (lambda s: {"net": s, "acc": 91.2, "epoch": 3}, ["read under 'net'"]),
    "lightning": (
        lambda s: {"state_dict": below("model.", s) | {"loss.weight": torch.ones(2)}, "hyper_parameters": {"lr": 0.1}},
        ["read under 'state_dict', names without 'model.'", "left out 1 names that are not the model's: loss.weight"],
    ),
    "arguments": (lambda s: {"model": s, "args": argparse.Namespace(lr=1), "best": np.float64(0.9)}, ["under 'model'"]),
    "deep": (lambda s: {"checkpoint": {"model": below("module.", s)}}, ["under 'checkpoint.model'"]),
    "with an average": (lambda s: {"model": s, "ema": other(s)}, ["read under 'model'", "ema would fit, too"]),
    "only an average": (lambda s: {"ema": s}, ["read under 'ema'"]),
    "two in one": (lambda s: below("model.", s) | below("ema_model.", other(s)), ["ema_model. would fit, too"]),
    "counted": (lambda s: s | {"total_ops": torch.zeros(1), "0.total_params": torch.zeros(1)}, []),
    "old batch norm": (lambda s: {name: value for name, value in s.items() if "num_batches" not in name}, []),
    "half": (lambda s: {n: v.half() if v.is_floating_point() else v for n, v in s.items()}, []),
    "averaged": (lambda s: below("module.", s) | {"n_averaged": torch.tensor(3)}, ["n_averaged"]),
}


@pytest.mark.parametrize("case", SAVED)
def test_a_checkpoint_is_read_by_its_names_and_what_was_read_is_told(case: str, tmp_path: Path) -> None:
    wrap, says = SAVED[case]
    torch.manual_seed(1)
    trained, model = network(), network()
    torch.save(wrap(trained.state_dict()), tmp_path / "ckpt.pt")
    remarks = load_weights(model, tmp_path / "ckpt.pt", field="--weights")
    for name, value in trained.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], value, atol=1e-3, rtol=1e-3)
    assert len(remarks) >= len(says) and bool(remarks) == bool(says)
    assert all(word in "\n".join(remarks) for word in says), remarks


def test_names_may_lack_what_the_models_begin_with_and_shared_tensors_their_second_name(tmp_path: Path) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.head = nn.Embedding(5, 4), nn.Linear(4, 5, bias=False)
            self.head.weight = self.words.weight

    trained, model = Tied(), nn.ModuleDict({"inner": Tied()})
    save_file({"words.weight": trained.words.weight.detach()}, tmp_path / "tied.safetensors")
    (remark,) = load_weights(model, tmp_path / "tied.safetensors", field="--weights")
    assert "names after 'inner.'" in remark
    assert all(torch.equal(value, trained.words.weight) for value in model.state_dict().values())


@pytest.mark.parametrize("save", [save_file, torch.save])
def test_an_index_is_read_with_its_files(save: Callable[..., None], tmp_path: Path) -> None:
    trained, model = network(), network()
    names = {name: f"part-{number % 2}.bin" for number, name in enumerate(trained.state_dict())}
    for file in set(names.values()):
        save({name: value for name, value in trained.state_dict().items() if names[name] == file}, tmp_path / file)
    index = tmp_path / "model.bin.index.json"
    index.write_text(json.dumps({"weight_map": names}))
    assert load_weights(model, index, field="--weights") == ()
    assert torch.equal(model.state_dict()["3.weight"], trained.state_dict()["3.weight"])
    for file, says in (("../part-0.bin", "lie beside it"), ("gone.bin", "no such file"), (index.name, "lie beside it")):
        index.write_text(json.dumps({"weight_map": dict.fromkeys(names, file)}))
        with pytest.raises(UserError, match=says):
            load_weights(model, index, field="--weights")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    ("save", "says"),
    [
        (lambda model, path: torch.jit.save(torch.jit.script(model), path), "TorchScript archive.*torch.jit.load"),
        (
            lambda model, path: torch.export.save(torch.export.export(model.eval(), (torch.ones(2, 4),)), f"{path}"),
            "exported program.*torch.export.load",
        ),
        (
            lambda model, path: torch.save(model, path),
            r"an object of torch\.nn\.modules\.\S+ besides.*weights_only=False",
        ),
        (lambda model, path: path.touch(), "is empty"),
        (lambda model, path: path.mkdir(), "but a folder"),
        (
            lambda model, path: path.write_bytes((2**60).to_bytes(8, "little") + b"{"),
            "not a checkpoint|not a safetensors",
        ),
    ],
)
def test_what_is_no_checkpoint_is_called_by_its_name(save: Callable[..., Any], says: str, tmp_path: Path) -> None:
    save(network(), tmp_path / "ckpt.pt2")
    with pytest.raises(UserError, match=says):
        load_weights(network(), tmp_path / "ckpt.pt2", field="--weights")


def test_infinities_are_refused_where_they_are_trained_and_taken_in_masks(tmp_path: Path) -> None:
    model = nn.Linear(3, 3)
    model.register_buffer("mask", torch.full((3, 3), -torch.inf).triu(1))
    torch.save(model.state_dict(), tmp_path / "ckpt.pt")
    assert load_weights(model, tmp_path / "ckpt.pt", field="--weights") == ()
    torch.save(model.state_dict() | {"bias": torch.full((3,), torch.inf)}, tmp_path / "ckpt.pt")
    with pytest.raises(UserError, match="bias holds infinities"):
        load_weights(model, tmp_path / "ckpt.pt", field="--weights")
