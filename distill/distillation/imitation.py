"""A module learns to answer as another on batches without labels: training while rounding, for one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from distill.distillation.teachers import LiveTeacher
from distill.tasks.base import Inputs
from distill.training.lesson import Lesson
from distill.training.loop import fit
from distill.training.settings import TrainSettings
from distill.training.taps import Answers, Tap, answer
from distill.types import Array, Feed, Progress

CPU = torch.device("cpu")


@dataclass(frozen=True, kw_only=True)
class Imitation:
    """How a module learns to answer as another.

    ``learning_rate`` falls to zero by a cosine; ``seed`` decides the order of batches, and ``checkpoint`` is the file
    that a killed training goes on from. ``progress`` is called with ("aware training", batches over, batches).
    """

    epochs: int = 8
    learning_rate: float = 1e-4
    seed: int = 0
    checkpoint: Path | None = None
    progress: Progress | None = None

    def __call__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        distance: Callable[[Tensor, Tensor], Tensor],
        batches: Sequence[Feed],
        /,
    ) -> nn.Module:
        """Return a trained copy of ``student``, whose ``distance(teacher's answer, student's answer)`` is less.

        Raises:
            DivergedError: the answers are no longer finite.
        """
        task = _Unlabelled(batches)
        settings = TrainSettings(
            epochs=self.epochs,
            batch_size=1,
            learning_rate=self.learning_rate,
            weight_decay=0,
            optimizer="adamw",
            warmup=0,
        )
        model, _ = fit(
            student,
            task,
            settings,
            seed=self.seed,
            device=CPU,
            lesson=Lesson(LiveTeacher(lambda batch: answer(teacher, task, batch, CPU)), _Distance(distance)),
            title="aware training",
            section="aware",
            checkpoint=self.checkpoint,
            progress=self.progress,
        )
        return model


@dataclass(frozen=True)
class _Distance:
    distance: Callable[[Tensor, Tensor], Tensor]
    taps: tuple[Tap, ...] = ()

    def __call__(self, student: Answers, teacher: Answers, labels: Tensor, hard: Tensor) -> Tensor:
        return self.distance(teacher.logits, student.logits)


class _Unlabelled:
    """Batches as a task without labels, whose samples are the batches, as large as they are."""

    labels: tuple[str, ...] = ()
    metric = ""
    module_preprocess = None

    def __init__(self, batches: Sequence[Feed]) -> None:
        self.data = {"train": self}
        self._batches = batches

    def __len__(self) -> int:
        return len(self._batches)

    def fetch(self, index: Tensor, view: int | None) -> Feed:
        return self._batches[int(index)]

    def inputs(self, batch: Feed) -> Inputs:
        return (), {name: torch.from_numpy(value) for name, value in batch.items()}

    def target(self, batch: Feed) -> Tensor:
        return torch.empty(0)

    def logits(self, output: Any) -> Tensor:
        assert isinstance(output, Tensor)
        return output

    def loss(self, logits: Tensor, target: Tensor) -> Tensor:
        return logits.new_zeros(())

    def metrics(self, logits: Array, target: Array) -> dict[str, float]:
        return {}
