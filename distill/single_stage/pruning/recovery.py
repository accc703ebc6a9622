"""What a pruned model gets back from rows: batch-norm statistics, and what the unpruned one answers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from distill.distillation.settings import DistillSettings
from distill.prune import recalibrate
from distill.single_stage.pruning.rows import device_of
from distill.tasks.rows import RowsTask, moved
from distill.training.lesson import Lesson, Loss
from distill.training.loop import fit
from distill.training.taps import Answers, Tap
from distill.types import Progress


@dataclass(frozen=True)
class Recovery:
    """The rows that a pruned model recovers on, and how it learns from them."""

    task: RowsTask
    settings: DistillSettings
    seed: int
    progress: Progress | None

    def recalibrated(self, model: nn.Module) -> nn.Module:
        """Return a copy whose batch-norm statistics are those of the rows."""
        device = device_of(model)
        batches = self.task.batches(self.settings.batch_size, self.seed)
        return recalibrate(model, (moved(batch.inputs, device) for batch in batches), progress=self.progress)

    def taught(self, model: nn.Module, *, epochs: int, seed: int, title: str) -> nn.Module:
        """Return a copy, where the model is, that learnt what the unpruned one answers, and a little of the labels.

        Raises:
            UserError: the loss is no number any more.
        """
        device, task = device_of(model), self.task
        lesson = Lesson(lambda index, batch, view: Answers(task.reference_logits(batch)), self.loss)
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            trained, _ = fit(
                model,
                task,
                replace(self.settings, epochs=epochs),
                seed=seed,
                device=device,
                lesson=lesson,
                title=title,
                section="prune",
                progress=self.progress,
            )
        return trained.to(device)

    @property
    def loss(self) -> Loss:
        """What compares a pruned model's answers with the unpruned one's, and with labels where there are some."""
        settings = self.settings if self.task.truth is not None else replace(self.settings, weight=1.0)
        return (
            _NumbersLoss(self.task, settings.weight) if self.task.output.kind == "numbers" else settings.effective_loss
        )


@dataclass(frozen=True)
class _NumbersLoss:
    """(1 - weight)·hard + weight·squared error against the teacher's numbers, in units of their variance."""

    task: RowsTask
    weight: float
    taps: ClassVar[tuple[Tap, ...]] = ()

    def __call__(self, student: Answers, teacher: Answers, labels: Tensor, hard: Tensor) -> Tensor:
        return (1 - self.weight) * hard + self.weight * self.task.loss(student.logits, teacher.logits)
