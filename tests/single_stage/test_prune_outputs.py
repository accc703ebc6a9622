"""The verb `prune` on models whose outputs are no logits [rows, classes]: judged and taught by what they are."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from prune_nets import forget, settle, typed
from torch import nn

from distill.distillation.settings import DistillSettings
from distill.outputs import Output
from distill.prune.scores.evidence import class_axis
from distill.single_stage.pruning.rows import Recovery
from distill.tasks.rows import RowBatch, RowsTask
from distill.training.taps import Answers

NETS = """
import torch
from torch import nn


def net(tail, columns):
    torch.manual_seed(0)
    body = [nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, columns)]
    return nn.Sequential(*body, *tail)


def chance():
    model = net([nn.Sigmoid()], 1)
    with torch.no_grad():
        x = torch.randn(500, 8)
        model[4].bias -= model[:5](x).median()  # half of all rows are yes
    return model


def several():
    return net([nn.Sigmoid()], 5)


def shares():
    return net([nn.Softmax(-1)], 3)


def number():
    return net([], 1)
"""
ROWS = np.random.default_rng(0).normal(size=(240, 8)).astype(np.float32)
PLACES = np.random.default_rng(0).normal(size=(240, 6, 8)).astype(np.float32)


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Give the current folder, which holds models."""
    settle(tmp_path, monkeypatch)
    (tmp_path / "net.py").write_text(NETS)
    yield tmp_path
    forget()


def pruned(function: str, *words: object, **arrays: Any) -> int:
    np.savez("rows.npz", **arrays)
    return typed(
        "--model", f"net.py:{function}", "--ratio", 0.4, "--data", "rows.npz", "--out", "out", *words, "--no-timing"
    )


def quality() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path("out/prune.json").read_text())["quality"]
    return found


@pytest.mark.parametrize(
    ("function", "x", "judged", "measure"),
    [
        ("chance", ROWS, "one yes or no a row (probabilities, above 0.5 is yes)", "accuracy"),
        ("several", ROWS, "several labels a row (probabilities, each above 0.5 is set)", "F1 of the labels"),
        ("shares", PLACES, "classes along axis 2", "accuracy"),
    ],
)
def test_the_graph_tells_what_is_judged(function: str, x: Any, judged: str, measure: str) -> None:
    assert pruned(function, "--epochs", 2, x=x) == 0
    found = quality()
    assert f"is judged as {judged}" in found["judged"]
    assert found["measure"] == measure
    assert 0 < found["drop"]["value"] < 0.5
    assert found["before"] is None


def test_one_number_needs_labels_or_a_word(capsys: Any) -> None:
    assert pruned("number", x=ROWS) == 2
    assert "--output binary" in capsys.readouterr().err
    assert pruned("number", "--epochs", 4, x=ROWS, y=ROWS[:, :1] * 2) == 0
    found = quality()
    assert (found["labelled"], found["measure"]) == (True, "R²")
    assert found["after"] > found["before"]  # the labels taught what its random weights did not know
    assert pruned("number", "--output", "numbers", x=ROWS) == 0
    assert quality()["labelled"] is False


def test_a_metric_of_the_users_judges_and_is_named_in_the_command() -> None:
    Path("own.py").write_text("def error(out, labels):\n    return -abs(out - labels).mean()\n")
    assert pruned("number", "--metric", "own.py:error", x=ROWS, y=ROWS[:, :1]) == 0
    assert quality()["measure"] == "error"
    assert "--metric own.py:error" in json.loads(Path("out/prune.json").read_text())["command"]


def test_answers_that_are_all_alike_are_warned_of(capsys: Any) -> None:
    with Path("net.py").open("a") as file:
        file.write(
            "\n\ndef stuck():\n    model = chance()\n    nn.init.constant_(model[4].bias, 9.0)\n    return model\n"
        )
    assert pruned("stuck", x=ROWS, y=(np.arange(240) % 40 > 0).astype(int)) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "the unpruned model and the pruned model give all 48 judged rows the same answer (class 1)" in said


@pytest.mark.parametrize("option", [("--output", "binary"), ("--axis", 1), ("--metric", "net.py:net")])
def test_what_judges_rows_needs_rows(option: tuple[object, ...], capsys: Any) -> None:
    assert typed("--model", "net.py:chance", "--ratio", 0.4, "--out", "out", *option, "--input", 8) == 2
    assert f"{option[0]}: needs --data" in capsys.readouterr().err


def task_of(output: Output, reference: torch.Tensor, truth: Any, x: torch.Tensor) -> RowsTask:
    rows = torch.arange(len(x))
    return RowsTask(
        {"x": x}, lambda tensors: ((tensors["x"],), {}), lambda values: values, reference, output, truth, rows, rows
    )


def soft_loss(model: nn.Module, task: RowsTask) -> float:
    batch = task.batch(task.train_rows)
    args, _ = task.inputs(batch)
    student, target = task.logits(model(*args)), task.target(batch)
    loss = Recovery(task, DistillSettings(temperature=2.0), 0, None).loss
    value = loss(Answers(student), Answers(task.reference_logits(batch)), target, task.loss(student, target))
    return value.item()


X = torch.from_numpy(PLACES)


@pytest.mark.parametrize(
    ("output", "columns", "tail", "x"),
    [
        (Output("classes"), 3, nn.Identity(), X[:, 0]),
        (Output("classes", 2), 3, nn.Identity(), X),
        (Output("classes", 2, True), 3, nn.Softmax(-1), X),
        (Output("binary"), 1, nn.Identity(), X[:, 0]),
        (Output("binary", probabilities=True), 1, nn.Sigmoid(), X[:, 0]),
        (Output("labels", probabilities=True), 5, nn.Sigmoid(), X[:, 0]),
        (Output("numbers"), 2, nn.Identity(), X[:, 0]),
    ],
)
def test_losses_are_least_at_what_is_right(output: Output, columns: int, tail: nn.Module, x: torch.Tensor) -> None:
    torch.manual_seed(0)
    teacher, student = (nn.Sequential(nn.Linear(8, columns), tail) for _ in range(2))
    with torch.no_grad():
        soft = teacher(x)
    answers = output.answers(soft.numpy())
    unlabelled = task_of(output, soft, None, x)
    assert soft_loss(teacher, unlabelled) == pytest.approx(0, abs=1e-4)
    assert soft_loss(student, unlabelled) > 0.01
    task = task_of(output, soft, answers, x)
    optimizer = torch.optim.Adam(student.parameters(), lr=0.05)
    for _ in range(150):
        optimizer.zero_grad()
        loss = task.loss_of(student, task.batch(task.train_rows))
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    agreed = output.answers(student(x).detach().numpy()) == answers
    assert output.kind == "numbers" or agreed.mean() > 0.93
    assert output.kind != "numbers" or loss.item() < 0.01


def test_the_loss_tells_importance_where_the_classes_lie() -> None:
    values = torch.randn(5, 4, 3, 2, requires_grad=True)
    for axis in (1, 2, 3):
        output = Output("classes", axis)
        task = task_of(output, values.detach(), None, values)
        batch = RowBatch(((values,), {}), task.batch(task.train_rows).target, task.reference)
        assert class_axis(task.loss_of(nn.Identity(), batch), values) == axis


WRITES = """
import torch
import torch.nn.utils.prune as masks
from torch import nn


class Written(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 48, 3), nn.ReLU())
        self.mix = nn.Conv2d(48, 16, 1)
        masks.l1_unstructured(self.mix, "weight", 0.5)
        self.head = nn.Linear(16, 4)

    def forward(self, x):
        return self.head(self.mix(self.net(x.sub_(0.5).div_(0.25))).mean((2, 3)))


def activated():
    return nn.Sequential(nn.LeakyReLU(0.1, inplace=True), Written())
"""


@pytest.mark.parametrize("function", ["Written", "activated"])
def test_an_input_that_is_written_in_place_and_a_mask_ship(function: str) -> None:
    Path("writes.py").write_text(WRITES)
    words = ("--input", "3,8,8", "--macs", 0.6, "--round-to", 4, "--out", "out", "--no-timing")
    assert typed("--model", f"writes.py:{function}", *words) == 0
    record = json.loads(Path("out/prune.json").read_text())["record"]
    mask = "mix" if function == "Written" else "1.mix"
    assert "is computed (by a mask" in record["left"][mask]


def test_a_missed_goal_names_the_layers_that_stay(capsys: pytest.CaptureFixture[str]) -> None:
    Path("turned.py").write_text(
        "from torch import nn\n\n\nclass Turn(nn.Module):\n    def forward(self, x):\n        return x.flip(1)\n\n\n"
        "def net():\n    return nn.Sequential(nn.Linear(8, 64), Turn(), nn.Linear(64, 4))\n"
    )
    words = ("--input", "8", "--macs", 0.6, "--out", "out", "--no-timing")
    assert typed("--model", "turned.py:net", *words) == 1
    printed = " ".join("".join(capsys.readouterr()).split())
    assert "macs=0.6: nothing was removed: 0: logits does not follow from its remaining channels" in printed
    assert "round_to" not in printed
