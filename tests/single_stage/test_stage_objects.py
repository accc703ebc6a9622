"""`prune_model` and `quantize_model` on objects of Python: modules, functions, arrays, Datasets, metrics."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from prune_nets import skip_exports
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import distill
from distill.errors import UserError
from distill.export import run_onnx
from distill.prune import count

ROWS = np.random.default_rng(0).normal(size=(240, 8)).astype(np.float32)


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def make(width: int = 64) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 3))


def labels_of(model: nn.Module) -> np.ndarray[Any, Any]:
    with torch.no_grad():
        return np.asarray(model(torch.from_numpy(ROWS)).argmax(1).numpy())


def test_a_module_is_pruned_in_a_few_lines() -> None:
    model = make()
    labels = labels_of(model)

    result = distill.prune_model(model, data=(ROWS, labels), macs=0.5, epochs=20, timing=False)
    accuracy = (result.model(torch.from_numpy(ROWS)).argmax(1).numpy() == labels).mean()
    print(result.outcome.status, accuracy, result.outcome.record.widths)

    assert result.outcome.status == "done"
    assert accuracy > 0.85
    example = (torch.from_numpy(ROWS[:2]),)
    assert count(result.model, example, {}).macs <= 0.56 * count(model, example, {}).macs
    assert result.outcome.quality is not None
    assert result.outcome.quality.before == 1.0
    assert result.onnx is not None
    np.testing.assert_allclose(
        run_onnx(result.onnx, [{"input": ROWS[:5]}]),
        result.model(torch.from_numpy(ROWS[:5])).detach().numpy(),
        atol=1e-5,
    )
    assert not any(Path().iterdir())


def test_a_module_is_quantised_in_a_few_lines() -> None:
    model = make()
    labels = labels_of(model)

    result = distill.quantize_model(model, data=(ROWS, labels), max_drop=0.05, pairs=2, seconds=0.02)
    answers = run_onnx(result.onnx, [{"input": ROWS}]).argmax(1)
    print(result.choice.chosen.name, (answers == labels).mean())

    assert result.exit_code == 0
    assert (answers == labels).mean() >= 0.9
    assert not any(Path().iterdir())


def test_the_module_that_comes_in_is_not_changed() -> None:
    model = make().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    distill.prune_model(model, data=ROWS, ratio=0.4, epochs=1, timing=False)
    assert model.training
    assert all(value.equal(before[name]) for name, value in model.state_dict().items())
    assert torch.get_rng_state().equal(state)


class Named(Dataset[dict[str, Tensor]]):
    def __len__(self) -> int:
        return len(ROWS)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"input": torch.from_numpy(ROWS[index])}


PAIRS = TensorDataset(torch.from_numpy(ROWS), torch.from_numpy(labels_of(make())))
TENSORS = {"input": torch.from_numpy(ROWS)}


@pytest.mark.parametrize(
    ("data", "labelled"),
    [
        (ROWS, False),
        ({"input": ROWS}, False),
        (TENSORS, False),
        (Named(), False),
        (DataLoader(Named(), batch_size=7), False),
        ((ROWS, labels_of(make())), True),
        ({"input": ROWS, "y": labels_of(make())}, True),
        (PAIRS, True),
        (DataLoader(PAIRS, batch_size=7), True),
        ("rows.npz", True),
        (Path("rows.npz"), True),
    ],
)
def test_rows_of_any_form_say_the_same(data: Any, labelled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    skip_exports(monkeypatch)
    np.savez("rows.npz", input=ROWS, labels=labels_of(make()))
    quality = distill.prune_model(make, data=data, ratio=0.4, importance="group_norm", timing=False).outcome.quality
    assert quality is not None
    assert (quality.rows, quality.labelled, quality.before) == (48, labelled, 1.0 if labelled else None)


def test_a_graph_is_quantised_and_judged_by_a_function() -> None:
    exported = distill.prune_model(make, input="8", ratio=0.3, timing=False).onnx
    assert exported is not None

    def certainty(outputs: Any, labels: Any) -> float:
        return -float(np.abs(outputs).mean())

    words = {"metric": certainty, "max_drop": 1.0, "precision": "int8", "target": "arm"}
    result = distill.quantize_model(exported, data={"input": ROWS}, **words)
    assert result.choice.judged.endswith("is judged by certainty")
    assert result.choice.chosen.name.startswith("int8")
    onnx.save(exported, "float.onnx")
    again = distill.quantize_model("float.onnx", data=Named(), out="small.onnx", **words)
    assert Path("small.onnx").read_bytes() == again.onnx.SerializeToString() == result.onnx.SerializeToString()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"ratio": 0.3, "pairs": 1}, "--pairs 1: must be from 2 to 64"),
        ({"ratio": 0.3, "epochs": -1}, "--epochs -1: must be from 0 to 2147483647"),
        ({"ratio": 0.3, "out": "folder"}, "give model as package.module:function"),
        ({"ratio": 0.3, "data": (ROWS, ROWS, ROWS)}, "give (inputs, labels), or arrays by input name"),
        ({"ratio": 0.3, "data": ROWS, "loss": "none"}, "--loss"),
        ({"ratio": 0.3, "data": ROWS.astype(np.float64)}, "is float64"),
        ({}, "say how much is to go"),
    ],
)
def test_what_is_wrong_is_told_as_on_the_command_line(options: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError) as told:
        distill.prune_model(make(), timing=False, **options)
    assert says in str(told.value)


def test_an_unknown_option_is_pythons_own_error() -> None:
    with pytest.raises(TypeError, match="speed"):
        distill.prune_model(make(), speed=2)
