from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import task_samples as samples
import torch

from distill.errors import UserError
from distill.tasks import data_settings, load_task
from distill.tasks.custom import CustomTask
from distill.tasks.outputs import refuse_probabilities


@pytest.fixture(autouse=True)
def own_modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    samples.forget(tmp_path)


def load(
    folder: Path, function: str = "make_data", text: str = samples.CUSTOM, seed: int = 0, **given: Any
) -> CustomTask:
    samples.write_custom(folder, text)
    task = load_task(data_settings(source=f"./mydata.py:{function}", **given), seed=seed, folder=folder)
    assert isinstance(task, CustomTask)
    return task


def make(body: str, tmp_path: Path, **given: Any) -> CustomTask:
    """Load a task from a function whose body is given; x, y are arrays [60, 5], [60]."""
    lines = "\n    ".join(body.strip().splitlines())
    text = (
        "import numpy as np, torch\n"
        "def make_data(**args):\n"
        "    x = torch.arange(300.0).reshape(60, 5)\n"
        "    y = torch.arange(60) % 3\n"
        f"    {lines}\n"
    )
    return load(tmp_path, text=text, **given)


def test_two_inputs_a_dict_output_and_every_hook(tmp_path: Path) -> None:
    task = load(tmp_path)
    batch = task.data["train"].fetch(torch.arange(6), 0)
    args, kwargs = task.inputs(batch)
    assert [one.shape for one in args] == [(6, 4)]
    assert {name: one.shape for name, one in kwargs.items()} == {"b": (6, 2)}
    assert task.target(batch).tolist() == [0, 1, 2, 0, 1, 2]
    assert torch.equal(task.logits({"scores": torch.zeros(6, 3)}), torch.zeros(6, 3))
    assert task.metric == "balanced"
    assert task.labels == ("x", "y", "z")
    assert task.given_splits == ("train", "validation", "test")
    assert task.warnings == ()
    assert task.name == "mydata"
    target = torch.tensor([0, 1])
    logits = torch.tensor([[0.0, 1.0, 0.0], [0.0, 1.0, 2.0]])
    expected = torch.nn.functional.cross_entropy(logits, target, weight=torch.tensor([1.0, 2.0, 1.0]))
    assert torch.equal(task.loss(logits, target), expected)


def test_the_users_random_augmentation_replays(tmp_path: Path) -> None:
    task = load(tmp_path)
    data, index = task.data["train"], torch.tensor([3, 8])
    views = {view: data.fetch(index, view)["a"] for view in (None, 0, 1)}
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    assert torch.equal(data.fetch(index.flip(0), 1)["a"].flip(0), views[1])
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1] == random.getstate()
    assert np.array_equal(states[2], np.random.get_state()[1])
    assert not torch.equal(views[0], views[1])
    assert not torch.equal(views[None], views[1])
    assert not torch.equal(load(tmp_path, seed=1).data["train"].fetch(index, 1)["a"], views[1])


def test_arrays_alone_are_enough(tmp_path: Path) -> None:
    task = load(tmp_path, "make_arrays")
    assert {split: len(data) for split, data in task.data.items()} == {"train": 70, "validation": 10, "test": 20}
    assert task.labels == ("0", "1", "2")
    assert task.facts == {"classes": 3, "features": 5}
    assert any("cut off train by seed" in one for one in task.warnings)
    assert any("float64" in one for one in task.warnings)
    (x,), kwargs = task.inputs(task.data["train"].fetch(torch.arange(4), 7))
    assert x.dtype == torch.float32
    assert not kwargs
    seen = torch.cat([data.fetch(torch.arange(len(data)), None)[0] for data in task.data.values()])
    assert len(torch.unique(seen, dim=0)) == 100


def test_an_object_may_carry_the_hooks(tmp_path: Path) -> None:
    task = make(
        "class Mine:\n"
        "    train = (x, x + 1, y)\n"
        "    labels = ['a', 'b', 'c']\n"
        "    preprocess = torch.nn.Identity()\n"
        "    facts = {'features': 10}\n"
        "    def loss(self, logits, target): return (logits.sum() * 0 + 7)\n"
        "return Mine()",
        tmp_path,
    )
    args, _ = task.inputs(task.data["train"].fetch(torch.arange(3), None))
    assert torch.equal(args[0] + 1, args[1])
    assert float(task.loss(torch.zeros(2, 3), torch.zeros(2, dtype=torch.long))) == 7
    assert isinstance(task.module_preprocess, torch.nn.Identity)
    assert task.facts == {"classes": 3, "features": 10}
    assert task.raw(task.data["test"].fetch(torch.arange(2), None)) is None


def test_nan_is_the_preprocessing_modules_business_if_there_is_one(tmp_path: Path) -> None:
    body = "x[3, 1] = float('nan')\nreturn {'train': (x, y), 'preprocess': torch.nn.Identity()}"
    assert make(body, tmp_path).module_preprocess is not None


def test_a_mapping_of_arrays_and_a_list_of_samples(tmp_path: Path) -> None:
    task = make("return {'train': {'x': x, 'y': y}, 'inputs': lambda b: b['x'], 'target': lambda b: b['y']}", tmp_path)
    assert task.facts["features"] == 5
    items = make("return {'train': list(zip(x, y))}", tmp_path / "items")
    batch = items.data["train"].fetch(torch.arange(4), None)
    assert torch.equal(items.inputs(batch)[0][0].sort(0).values[:1], items.inputs(batch)[0][0][:1])


def test_arguments_reach_the_function(tmp_path: Path) -> None:
    assert len(load(tmp_path, args={"count": 33}).data["train"]) == 33
    with pytest.raises(UserError, match=r"data.args=.*unexpected keyword argument 'cuont'"):
        load(tmp_path, args={"cuont": 33})


def test_the_fingerprint_follows_sources_arguments_and_data(tmp_path: Path) -> None:
    first = load(tmp_path).fingerprint()
    assert load(tmp_path).fingerprint() == first
    assert load(tmp_path, args={"count": 61}).fingerprint() != first
    assert load(tmp_path / "b", text=samples.CUSTOM.replace("SHIFT = 0", "SHIFT = 1")).fingerprint() != first
    one, other = (make(f"return {{'train': (x + {add}, y)}}", tmp_path / str(add)) for add in (0, 1))
    assert one.fingerprint() != other.fingerprint()


def test_data_drawn_at_random_are_the_same_for_a_seed(tmp_path: Path) -> None:
    body = "return {'train': (torch.rand(60, 5) + float(np.random.rand()), y)}"
    prints = [make(body, tmp_path / str(place), seed=seed).fingerprint() for place, seed in ((0, 0), (1, 0), (2, 1))]
    assert prints[0] == prints[1] != prints[2]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("return {'train': (x, y), 'val': (x, y)}", "returned the key 'val'"),
        ("return {'train': (x, y), 'vallidation': (x, y)}", "did you mean 'validation'"),
        ("return {'test': (x, y)}", "returned no 'train'"),
        ("return x", "returned no 'train'"),
        ("return (x, y)", "returned a tuple; expected a dict"),
        ("return None", "returned a NoneType"),
        ("return torch.utils.data.TensorDataset(x, y)", "returned a TensorDataset; expected a dict"),
        ("return {'train': torch.utils.data.DataLoader([1])}", "a batch is a Tensor of one part"),
        (
            "d = torch.utils.data; return {'train': d.DataLoader([1], sampler=d.WeightedRandomSampler([1], 1))}",
            "is a DataLoader with a WeightedRandomSampler, which nothing follows",
        ),
        ("return {'train': iter([1])}", "expected a data set with __len__ and __getitem__"),
        ("return {'train': []}", "the data set is empty"),
        ("return {'train': (x, y[:50])}", "differ in length: 0: 60, 1: 50"),
        ("return {'train': (x,)}", r"holds 1 array\(s\)"),
        ("return {'train': (x, np.array(['a'] * 60))}", r"train\[1\]: an array of type <U1"),
        ("x[7, 2] = float('nan')\nreturn {'train': (x, y), 'test': (x[:20], y[:20]), 'validation': (x[:20], y[:20])}",
         "the test data, sample 7|the validation data, sample 7|the train data, sample 7: input 0 holds NaN"),
        ("return {'train': (x, y - 1)}", "the train data, sample 0: labels out of range: the target is -1"),
        ("return {'train': (x, y), 'labels': ['a', 'b']}", "labels out of range: the target is 2, expected 0 to 1"),
        ("return {'train': (x, y * 1000)}", "labels out of range"),
        ("return {'train': (x, y * 0)}", "every target of the train data is 0"),
        ("return {'train': (x, y.float())}", "the target is of type torch.float32"),
        ("return {'train': (x, y[:, None])}", r"use y.squeeze\(1\)"),
        ("return {'train': (x, y), 'labels': ['a']}", "at least two different names"),
        ("return {'train': (x, y), 'labels': 3}", "expected a list of names"),
        ("return {'train': (x, y), 'loss': 3}", "loss is a int; expected a function"),
        ("return {'train': (x, y), 'preprocess': lambda x: x}", "expected an nn.Module"),
        ("return {'train': (x, y), 'metric': 'f2'}", "data.metric='f2': the task has no such metric"),
        ("return {'train': (x, y), 'metrics': lambda z, t: 0.5}", "metrics returned a float; expected a dict"),
        ("return {'train': (x, y), 'metrics': lambda z, t: {}}", "metrics returned no metric"),
        ("return {'train': (x, y), 'inputs': lambda b: (b[0], 3)}", "input 1 of the model is a int"),
        ("return {'train': {'x': x, 'y': y}}", "a batch is a dict with the keys x, y; expected"),
        ("raise RuntimeError('no disk')", r"raised RuntimeError: no disk \(.*mydata.py:5\)"),
        ("return {'train': list(zip(x, y)), 'collate': lambda items: items[0]['x']}", "collate raised .*mydata.py:5"),
        ("return {'train': (x[:20], y[:20])}", "the train split has 0 samples, fewer than 10"),
        ("return {'train': (x, y), 'test': (x[:5], y[:5])}", "the test split has 5 samples, fewer than 10"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(tmp_path: Path, body: str, said: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        make(body, tmp_path)
    assert "\n" not in str(caught.value)


def test_a_sample_that_is_wrong_later_is_named_when_it_is_fetched(tmp_path: Path) -> None:
    task = make(
        "items = [(x[i % 60], int(i % 3)) for i in range(1000)]\n"
        "items[501] = (x[0] * float('nan'), 0)\n"
        "items[503] = (x[0], 9)\n"
        "return {'train': items, 'test': items[:20], 'validation': items[20:40], 'labels': ['a', 'b', 'c']}",
        tmp_path,
    )
    data = task.data["train"]
    data.fetch(torch.arange(490, 501), None)
    with pytest.raises(UserError, match=r"the train data, sample 501: input 0 holds NaN"):
        data.fetch(torch.tensor([500, 501]), 3)
    with pytest.raises(UserError, match=r"the train data, sample 503: labels out of range: the target is 9"):
        data.fetch(torch.tensor([500, 503]), None)


def test_an_item_that_cannot_be_read_names_itself_and_the_line(tmp_path: Path) -> None:
    text = (
        "class Faulty:\n"
        "    def __len__(self): return 500\n"
        "    def __getitem__(self, i):\n"
        "        if i == 250: raise OSError('cannot read')\n"
        "        return [float(i)], i % 2\n"
        "def make_data(): return {'train': Faulty()}\n"
    )
    with pytest.raises(UserError, match=r"item 250 raised OSError: cannot read \(.*mydata.py:4\)"):
        load(tmp_path, text=text)


def test_a_loss_that_is_no_scalar_is_refused(tmp_path: Path) -> None:
    task = make("return {'train': (x, y), 'loss': lambda z, t: z}", tmp_path)
    with pytest.raises(UserError, match=r"loss returned a tensor of shape \[2, 3\]"):
        task.loss(torch.zeros(2, 3), torch.zeros(2, dtype=torch.long))


def test_a_model_that_returns_something_else_is_refused(tmp_path: Path) -> None:
    task = make("return {'train': (x, y)}", tmp_path)
    for output, said in (
        (torch.zeros(4, 5), r"shape 4x5; expected \[batch, 3\]"),
        ((torch.zeros(4, 3),), "returned a tuple"),
        ({"out": torch.zeros(4, 3)}, "a dict with the keys out"),
    ):
        with pytest.raises(UserError, match=said):
            task.logits(output)


def test_probabilities_are_no_logits() -> None:
    probabilities = torch.tensor([[0.2, 0.3, 0.5], [0.1, 0.8, 0.1]])
    with pytest.raises(UserError, match=r"teacher: the model returned probabilities.*its last softmax"):
        refuse_probabilities(probabilities, "teacher")
    for logits in (probabilities.log(), torch.full((2, 4), 0.25), torch.eye(2) * 2, probabilities[:1]):
        refuse_probabilities(logits, "teacher")
