from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from distill.distillation.teachers import teacher_for
from distill.errors import UserError
from distill.tasks.base import Task
from distill.training.lesson import Lesson, batch_loss
from distill.training.loop import fit
from distill.training.settings import TrainSettings
from distill.training.taps import Answers, Part, Tap, answer

CPU = torch.device("cpu")


class Attentive(nn.Module):
    """Rows of a picture attend to each other."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head, self.idle = nn.Linear(64, 3), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.flatten(1).reshape(-1, 8, 8)
        mixed, _ = self.attention(rows, rows, rows, need_weights=False)
        out: Tensor = self.head(mixed.flatten(1))
        return out


class Hints:
    """The mean squared difference of tapped tensors, and the labels in class 0."""

    def __init__(self, *taps: Tap) -> None:
        self.taps = taps

    def __call__(self, student: Answers, teacher: Answers, labels: Tensor, hard: Tensor) -> Tensor:
        pairs = zip(student.tapped, teacher.tapped, strict=True)
        distances = [(mine - theirs).square().mean() for mine, theirs in pairs]
        return torch.stack(distances).sum() + 0 * (labels == 0).sum() + 0 * hard


def batch(task: Task, count: int = 4) -> tuple[Tensor, Any]:
    index = torch.arange(count)
    return index, task.data["train"].fetch(index, 0)


def test_taps_are_heard_in_their_order_and_leave_no_hook(tiny_task: Task) -> None:
    model = Attentive().eval()
    places: list[tuple[str, Part]] = [("head", "output"), ("attention", "attention"), ("attention", "output")]
    answers = answer(model, tiny_task, batch(tiny_task)[1], CPU, places)
    logits, weights, mixed = answers.tapped
    assert torch.equal(logits, answers.logits)
    assert weights.shape == (4, 2, 8, 8)
    torch.testing.assert_close(weights.sum(3), torch.ones(4, 2, 8))
    torch.testing.assert_close(model.head(mixed.flatten(1)), answers.logits)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize(
    ("place", "part", "message"),
    [
        ("heed", "output", r"the student.*no module 'heed'; did you mean head\?"),
        ("", "output", "no module ''"),
        ("idle", "output", "'idle' is not called"),
        ("head", "attention", "'head' returns no attention.*eager"),
    ],
)
def test_what_cannot_be_tapped_is_refused(tiny_task: Task, place: str, part: Part, message: str) -> None:
    with pytest.raises(UserError, match=message):
        answer(Attentive(), tiny_task, batch(tiny_task)[1], CPU, [(place, part)], title="the student")


def test_a_student_learns_the_tensors_that_its_loss_taps(tiny_task: Task, tmp_path: Path) -> None:
    torch.manual_seed(0)
    teacher, student = Attentive(), Attentive()
    loss = Hints(Tap("attention", "attention"), Tap("attention", "attention", "attention"))
    answers = teacher_for(teacher, tiny_task, views=2, key="k", folder=tmp_path, device=CPU, taps=loss.taps)
    lesson = Lesson(answers, loss, views=2)
    settings = TrainSettings(epochs=8, batch_size=32, learning_rate=0.01, optimizer="adamw")
    trained, _ = fit(student, tiny_task, settings, seed=0, device=CPU, lesson=lesson)
    before, after = (
        batch_loss(model, tiny_task, *batch(tiny_task, 32), CPU, lesson=lesson).item() for model in (student, trained)
    )
    assert after < 0.5 * before
