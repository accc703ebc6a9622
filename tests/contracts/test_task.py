"""What the pipeline relies on in every task: run over each built-in task and a custom one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import task_samples as samples
import torch

from distill.errors import UserError
from distill.tasks import SOURCES, DataSettings, data_settings, load_task
from distill.tasks.base import SPLITS, Task

MAKERS: dict[str, Callable[[Path], DataSettings]] = {
    "digits": lambda folder: data_settings(source="digits", augment="crop", padding=1),
    "breast-cancer": lambda folder: data_settings(source="breast-cancer"),
    "fashion-mnist": lambda folder: data_settings(
        source="fashion-mnist", path=samples.write_fashion(folder), augment="crop-flip"
    ),
    "cifar10": lambda folder: data_settings(source="cifar10", path=samples.write_cifar(folder), augment="crop-flip"),
    "csv": lambda folder: data_settings(source="csv", path=samples.write_csv(folder / "a.csv"), target="class"),
    "imagefolder": lambda folder: data_settings(source="imagefolder", path=samples.write_images(folder)),
    "custom": lambda folder: data_settings(source=f"{samples.write_custom(folder)}:make_data"),
}


def make(name: str, folder: Path, seed: int = 0) -> Task:
    return load_task(MAKERS[name](folder), seed=seed)


@pytest.fixture(params=list(MAKERS), scope="module")
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def folder(name: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp(name)


@pytest.fixture(scope="module")
def task(name: str, folder: Path) -> Task:
    return make(name, folder)


def same(one: object, other: object) -> bool:
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return isinstance(other, dict) and one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    if isinstance(one, tuple | list):
        return isinstance(other, tuple | list) and all(same(a, b) for a, b in zip(one, other, strict=True))
    return bool(one == other)


def test_every_built_in_task_is_covered() -> None:
    assert set(SOURCES) == set(MAKERS) - {"custom"}


def test_has_three_splits_of_use(task: Task) -> None:
    assert tuple(task.data) == SPLITS
    assert all(len(task.data[split]) >= 10 for split in SPLITS)


def test_describes_itself(task: Task) -> None:
    assert task.kind in ("image", "tabular", "custom")
    assert len(task.labels) == len(set(task.labels)) == task.facts["classes"] >= 2
    assert all(isinstance(one, str) for one in (*task.labels, *task.warnings, task.name, task.metric))


def test_batches_lead_to_inputs_and_targets(task: Task) -> None:
    for split in SPLITS:
        batch = task.data[split].fetch(torch.tensor([3, 0, 3]), None)
        args, kwargs = task.inputs(batch)
        tensors = [*args, *kwargs.values()]
        assert tensors
        assert all(len(one) == 3 and torch.equal(one[0], one[2]) for one in tensors)
        assert all(torch.isfinite(one).all() for one in tensors if one.is_floating_point())
        target = task.target(batch)
        assert target.dtype == torch.int64
        assert target.shape == (3,)
        assert 0 <= int(target.min()) <= int(target.max()) < len(task.labels)


def test_a_view_of_a_sample_is_the_same_in_any_batch(task: Task) -> None:
    data = task.data["train"]
    for view in (None, 0, 5):
        together = task.inputs(data.fetch(torch.tensor([4, 9, 1]), view))
        torch.rand(3)
        np.random.rand()
        alone = task.inputs(data.fetch(torch.tensor([9]), view))
        for one, other in zip([*together[0], *together[1].values()], [*alone[0], *alone[1].values()], strict=True):
            assert torch.equal(one[1], other[0])


def test_fetching_leaves_the_random_state_alone(task: Task) -> None:
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    task.data["train"].fetch(torch.tensor([0, 1]), 2)
    assert torch.equal(torch.rand(1), expected)


def test_the_same_seed_gives_the_same_task(name: str, folder: Path, task: Task) -> None:
    again = make(name, folder)
    index = torch.arange(10)
    for split in SPLITS:
        assert same(task.data[split].fetch(index, 1), again.data[split].fetch(index, 1))
    assert task.fingerprint() == again.fingerprint() == task.fingerprint()


def test_another_seed_gives_another_fingerprint(name: str, folder: Path, task: Task) -> None:
    assert make(name, folder, seed=1).fingerprint() != task.fingerprint()


def test_raw_feed_leads_to_what_the_model_is_given(task: Task) -> None:
    batch = task.data["test"].fetch(torch.arange(10), None)
    raw = task.raw(batch)
    if raw is None:
        assert task.graph_preprocess is None
        return
    assert task.graph_preprocess is not None
    specs = {spec.name: spec for spec in task.graph_preprocess.input_spec()}
    assert list(raw) == list(specs)
    for one, array in raw.items():
        assert array.shape == (10, *specs[one].shape[1:])
        assert array.dtype.kind in "UO" if specs[one].dtype == "str" else array.dtype == specs[one].dtype
    args, kwargs = task.inputs(batch)
    assert not kwargs
    assert np.array_equal(args[0].numpy(), task.graph_preprocess.apply(raw))


def test_loss_goes_down_towards_the_target(task: Task) -> None:
    target = torch.arange(10) % len(task.labels)
    right = 5 * torch.nn.functional.one_hot(target, len(task.labels)).float()
    logits = right.clone().requires_grad_()
    loss = task.loss(logits, target)
    assert loss.ndim == 0
    assert float(loss.detach()) < float(task.loss(-right, target))
    loss.backward()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()


def test_metrics_are_fractions_and_perfect_answers_score_one(task: Task) -> None:
    target = np.arange(4 * len(task.labels)) % len(task.labels)
    right = 5 * np.eye(len(task.labels), dtype=np.float32)[target]
    best, worst = task.metrics(right, target), task.metrics(-right, target)
    assert task.metric in best
    assert best.keys() == worst.keys()
    assert all(value == pytest.approx(1) for value in best.values())
    assert all(0 <= value < 1 for value in worst.values())


def test_wrong_outputs_are_refused_by_shape(task: Task) -> None:
    classes = len(task.labels)
    wrap = (lambda logits: {"scores": logits}) if task.kind == "custom" else (lambda logits: {"logits": logits})
    logits = torch.zeros(4, classes)
    assert torch.equal(task.logits(wrap(logits)), logits)
    for wrong in (
        torch.zeros(4, classes + 1),
        torch.zeros(4),
        torch.zeros(4, classes, 2),
        torch.zeros(4, classes).long(),
    ):
        with pytest.raises(UserError, match="logits"):
            task.logits(wrap(wrong))
