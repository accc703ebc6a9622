"""A run of models, data and a metric that are given as Python objects."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, WeightedRandomSampler

import distill
from distill.config.objects import config_of
from distill.errors import UserError
from distill.references.objects import held, reference_to
from distill.runtime.records import RunResult
from distill.tasks import load_task

QUICK = {"quantize": "off", "benchmark": "off", "export": "off", "prune": "off", "distill": "off"}


class Net(nn.Module):
    def __init__(self, width: int = 16, slope: float = 0.0) -> None:
        super().__init__()
        self.first, self.last, self.slope = nn.Linear(6, width), nn.Linear(width, 3), slope

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.last(nn.functional.leaky_relu(self.first(x), self.slope))
        return logits


def net(width: int = 16, slope: float = 0.0) -> Net:
    torch.manual_seed(0)
    return Net(width, slope)


def arrays(count: int = 150, seed: int = 0) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    random = np.random.default_rng(seed)
    y = random.integers(0, 3, count)
    x = random.normal(size=(count, 6)).astype(np.float32)
    x[np.arange(count), y] += 2
    return x, y


def data_set(count: int = 150, seed: int = 0) -> TensorDataset:
    x, y = arrays(count, seed)
    return TensorDataset(torch.from_numpy(x), torch.from_numpy(y))


def last_class(logits: np.ndarray[Any, Any], target: np.ndarray[Any, Any]) -> float:
    return float((logits.argmax(1) == target)[target == 2].mean())


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunResult, Path]:
    folder = tmp_path_factory.mktemp("objects") / "run"
    return distill.run(QUICK, teacher=net(), data=arrays(), metric=last_class, out=folder), folder


def test_a_module_is_a_trained_teacher_and_stays_as_it_is(first: tuple[RunResult, Path]) -> None:
    result, folder = first
    assert result.task == "mine"
    record = json.loads((folder / "run.json").read_text())
    assert record["config"]["teacher"]["model"].startswith("object:Net-")
    assert record["config"]["data"]["source"].startswith("object:arrays-")
    assert result.comparison.metric == "last_class"
    teacher = result.stage("teacher")
    assert teacher.detail.loaded
    assert teacher.test is not None
    assert {"last_class", "accuracy"} <= teacher.test.metrics.keys()
    from safetensors.torch import load_file

    weights = load_file(folder / "stages" / "01-teacher" / "model.safetensors")
    assert all(value.equal(weights[name]) for name, value in net().state_dict().items())


def test_the_same_objects_go_on_and_others_do_not(first: tuple[RunResult, Path]) -> None:
    folder = first[1]
    again = distill.run(QUICK, teacher=net().train(), data=arrays(), metric=last_class, out=folder)
    assert again.stage("teacher").reused
    other = distill.run(QUICK, teacher=net(slope=0.1), data=arrays(), metric=last_class, out=folder)
    assert not other.stage("teacher").reused


def test_what_was_an_object_is_needed_again(first: tuple[RunResult, Path]) -> None:
    config = json.loads((first[1] / "run.json").read_text())["config"]
    with pytest.raises(UserError, match=r"data\.source='object:arrays-\w+': stands for a Python object; give the same"):
        distill.run(config, out=first[1])


def test_ten_lines_compress_a_module_on_arrays(tmp_path: Path) -> None:
    teacher = net()
    before = copy.deepcopy(teacher.state_dict())
    result = distill.run(
        {"teacher": {"pretrained": False, "epochs": 3, "batch_size": 16}, **QUICK, "distill": {"epochs": 2}},
        teacher=teacher,
        student=lambda features, classes: nn.Linear(features, classes),
        data={"train": arrays(), "validation": arrays(60, 1), "test": arrays(60, 2)},
        out=tmp_path / "run",
    )
    training = result.stage("teacher").detail.training
    assert training is not None
    assert training.epochs == 3
    assert result.stage("student").parameters == 21
    assert all(value.equal(before[name]) for name, value in teacher.state_dict().items())


@pytest.mark.parametrize(
    ("data", "title", "splits"),
    [
        (arrays(), "arrays", ()),
        (data_set(), "TensorDataset", ()),
        (DataLoader(data_set(), batch_size=4, shuffle=True), "TensorDataset", ()),
        ((data_set(), data_set(60, 1), data_set(60, 2)), "TensorDataset", ("train", "validation", "test")),
        ([arrays(), arrays(60, 1), arrays(60, 2)], "arrays", ("train", "validation", "test")),
        ({"train": data_set(), "test": data_set(60), "labels": ["a", "b", "c"]}, "TensorDataset", ("train", "test")),
        (lambda: {"train": arrays()}, "lambda", ()),
    ],
)
def test_data_come_in_every_usual_form(data: Any, title: str, splits: tuple[str, ...]) -> None:
    config, objects = config_of(None, (), teacher=net(), data=data)
    assert str(config.data.source).startswith(f"object:{title}-")
    with held(objects):
        task = load_task(config.data, seed=0)
    assert len(task.labels) == 3
    assert sorted(task.given_splits) == sorted(splits)
    assert task.name == title


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ((data_set(), data_set()), "is 2 data sets; give train, validation, test"),
        (3, "is a int; expected a data set"),
        ({"x": arrays()[0], "y": arrays()[1]}, "returned the key 'x'"),
        (arrays()[0], "a batch is a Tensor of one part"),
        (DataLoader(data_set(), sampler=WeightedRandomSampler([1.0] * 150, 9)), "WeightedRandomSampler"),
    ],
)
def test_data_that_are_none_are_told(data: Any, says: str) -> None:
    with pytest.raises(UserError, match=says):
        config, objects = config_of(None, (), teacher=net(), data=data)
        with held(objects):
            load_task(config.data, seed=0)


def test_a_metric_is_a_function_of_any_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine_score.py").write_text("def score(logits, target):\n    return -abs(logits[:, 0] - target).mean()\n")
    config, _ = config_of("breast-cancer", ("data.metric=./mine_score.py:score",))
    task = load_task(config.data, seed=0)
    assert task.metric == "score"
    assert task.fingerprint() != load_task(config_of("breast-cancer", ())[0].data, seed=0).fingerprint()
    for text in ("return None", "return float('nan')"):
        wrong = tmp_path / f"mine_{len(text)}.py"
        wrong.write_text(f"def score(logits, target):\n    {text}\n")
        config, _ = config_of("breast-cancer", (f"data.metric=./{wrong.name}:score",))
        with pytest.raises(UserError, match="must return a finite number"):
            load_task(config.data, seed=0)


def test_the_user_s_settings_win(tmp_path: Path) -> None:
    assert config_of(QUICK, (), teacher=net(), data=arrays())[0].teacher.pretrained
    assert not config_of(QUICK, (), teacher=Net, data=arrays())[0].teacher.pretrained
    assert not config_of(QUICK, ("teacher.pretrained=false",), teacher=net(), data=arrays())[0].teacher.pretrained
    assert config_of("digits", (), student="mlp")[0].student == config_of("digits", ("student=mlp",))[0].student


def closure(scale: float) -> Any:
    return lambda x: scale * x


def test_equal_objects_and_those_only_share_a_name() -> None:
    assert reference_to(net()) == reference_to(copy.deepcopy(net()).eval())
    assert reference_to(DataLoader(data_set())) == reference_to(DataLoader(data_set(), batch_size=9, shuffle=True))
    x, y = arrays()
    values: list[Any] = [
        net(),
        net(width=8),
        net(slope=0.1),
        nn.Conv2d(1, 1, 3, stride=1, bias=False),
        nn.Conv2d(1, 1, 3, stride=2, bias=False),
        (x, y),
        (x, y + 1),
        (x[:90], y[:90]),
        data_set(),
        data_set(seed=1),
        closure(1.0),
        closure(2.0),
        last_class,
        net,
        Net,
    ]
    assert len({reference_to(value).rpartition("-")[2] for value in values}) == len(values)
