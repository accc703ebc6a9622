from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from prune_zoo import HARD, MAIN, make
from safetensors.torch import load_file, save_file
from torch import nn

from distill.errors import UserError
from distill.prune import PruneSettings, apply_structure, apply_structure_, prune_channels, structure_of
from distill.prune.modules import tensors_in

SETTINGS = PruneSettings(importance="group_norm", ratio=0.4, round_to=4)
ALL = {**MAIN, **HARD}

RELOAD = """
import json, sys
sys.path.insert(0, sys.argv[1])
import torch
from prune_zoo import MAIN, make
from safetensors.torch import load_file, save_file
from distill.prune import apply_structure
from distill.prune.modules import tensors_in
torch.set_num_threads(1)
found = {}
for index, (name, case) in enumerate(MAIN.items()):
    structure = json.load(open(f"{sys.argv[2]}/{index}.json"))
    model = apply_structure(make(case, seed=1), structure).eval()
    model.load_state_dict(load_file(f"{sys.argv[2]}/{index}.safetensors"))
    args, kwargs = case.example()
    with torch.no_grad():
        for key, tensor in tensors_in(model(*args, **kwargs)):
            found[f"{index} {key}"] = tensor
save_file(found, f"{sys.argv[2]}/found.safetensors")
"""


def cut(name: str) -> nn.Module:
    case = ALL[name]
    model, _ = prune_channels(make(case), SETTINGS, example=case.example(), batches=None, loss=None, logits=case.logits)
    return model.eval()


@pytest.mark.parametrize("name", ALL)
def test_a_fresh_build_takes_the_structure_and_the_weights(name: str) -> None:
    case = ALL[name]
    pruned = cut(name)
    structure = json.loads(json.dumps(structure_of(pruned)))
    fresh = make(case, seed=1)
    shapes = {key: tensor.shape for key, tensor in fresh.state_dict().items()}
    rebuilt = apply_structure(fresh, structure)
    assert {key: tensor.shape for key, tensor in fresh.state_dict().items()} == shapes
    rebuilt.load_state_dict(pruned.state_dict())
    args, kwargs = case.example()
    with torch.no_grad():
        want = dict(tensors_in(pruned(*args, **kwargs)))
        got = dict(tensors_in(rebuilt.eval()(*args, **kwargs)))
    assert all(torch.equal(want[key], got[key]) for key in want)
    assert structure_of(rebuilt) == structure


def test_weights_come_back_in_a_fresh_process_without_pickle(tmp_path: Path) -> None:
    expected = {}
    for index, name in enumerate(MAIN):
        pruned = cut(name)
        save_file(pruned.state_dict(), tmp_path / f"{index}.safetensors")
        (tmp_path / f"{index}.json").write_text(json.dumps(structure_of(pruned)))
        args, kwargs = MAIN[name].example()
        with torch.no_grad():
            for key, tensor in tensors_in(pruned(*args, **kwargs)):
                expected[f"{index} {key}"] = tensor
    command = [sys.executable, "-c", RELOAD, str(Path(__file__).parent), str(tmp_path)]
    subprocess.run(command, check=True, cwd=Path(__file__).parents[2])
    found = load_file(tmp_path / "found.safetensors")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], tensor) for key, tensor in expected.items())


def test_an_unpruned_model_is_its_own_structure() -> None:
    model = make(MAIN["resnet"])
    same = apply_structure(model, structure_of(model))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), same.parameters(), strict=True))


def test_dtype_and_frozen_parameters_of_the_fresh_model_stay() -> None:
    structure = structure_of(cut("mlp"))
    fresh = make(MAIN["mlp"]).double()
    fresh[0].weight.requires_grad_(False)
    rebuilt = apply_structure(fresh, structure)
    assert not rebuilt[0].weight.requires_grad
    assert all(parameter.dtype == torch.float64 for parameter in rebuilt.parameters())


def test_in_place_gives_the_same_object_and_a_refusal_leaves_it_unchanged() -> None:
    structure = structure_of(cut("mlp"))
    model = make(MAIN["mlp"])
    assert apply_structure_(model, structure) is model
    assert structure_of(model) == structure
    broken = copy.deepcopy(structure)
    broken["modules"]["5"]["shapes"]["weight"] = [99, 99]
    with pytest.raises(UserError, match=r"5\.weight"):
        apply_structure_(model, broken)
    assert structure_of(model) == structure


@pytest.mark.parametrize(
    ("structure", "message"),
    [
        ({}, "format"),
        ({"format": 99, "modules": {}}, "format"),
        ({"format": 1, "modules": {}}, "another model"),
        ("resnet", "another model"),
    ],
)
def test_a_structure_of_another_model_is_refused(structure: object, message: str) -> None:
    given = structure_of(make(MAIN["resnet"])) if structure == "resnet" else structure
    with pytest.raises(UserError, match=message):
        apply_structure(make(MAIN["mlp"]), given)


def test_a_structure_never_widens() -> None:
    wide = structure_of(nn.Sequential(nn.Linear(4, 9)))
    with pytest.raises(UserError, match="only narrows"):
        apply_structure(nn.Sequential(nn.Linear(4, 8)), wide)
