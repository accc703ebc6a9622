"""What a student learns from: a teacher, and the loss that compares their answers."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from distill.tasks.base import Batch, Trainable
from distill.training.forward import Autocast
from distill.training.taps import Answers, Tap, answer


class Teacher(Protocol):
    """Whatever answers for a batch of the training split."""

    def __call__(self, index: Tensor, batch: Batch, view: int) -> Answers:
        """Return the answers for samples ``index`` (int64 [B]), whose augmented ``view`` is ``batch``."""
        ...


class Loss(Protocol):
    """A loss that says what it listens to besides the logits."""

    @property
    def taps(self) -> tuple[Tap, ...]:
        """Return the pairs of modules whose tensors it compares."""
        ...

    def __call__(self, student: Answers, teacher: Answers, labels: Tensor, hard: Tensor) -> Tensor:
        """Return a scalar.

        Args:
            student: answers that carry gradients.
            teacher: answers for the same samples.
            labels: of the task; class numbers, int64 [B].
            hard: the task's own loss on the labels, a scalar.
        """
        ...


@dataclass(frozen=True)
class Lesson:
    """Who teaches, what compares the answers, and how many augmented views repeat in turn.

    ``views`` is 0 for a new view every epoch.
    """

    teacher: Teacher
    loss: Loss
    views: int = 0


def batch_loss(
    model: nn.Module,
    task: Trainable,
    index: Tensor,
    batch: Batch,
    device: torch.device,
    *,
    lesson: Lesson | None = None,
    view: int = 0,
    amp: Autocast = nullcontext,
    title: str = "model",
) -> Tensor:
    """Return the loss of a batch: the lesson's, or the task's own on the labels where there is no lesson.

    ``batch`` is the augmented view number ``view`` of the samples ``index`` (int64 [B]); the model is on ``device``.
    ``amp`` is the context of the forward pass, ``title`` opens the message of an error.
    """
    taps = lesson.loss.taps if lesson is not None else ()
    with amp():
        student = answer(model, task, batch, device, [(tap.student, tap.part) for tap in taps], title=title)
    labels = task.target(batch).to(device)
    hard = task.loss(student.logits, labels)
    return hard if lesson is None else lesson.loss(student, lesson.teacher(index, batch, view).to(device), labels, hard)
