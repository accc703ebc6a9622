"""The only training loop: teachers, controls, distillation, recovery and training while rounding go through ``fit``."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from distill.documents import Sparse
from distill.errors import UserError
from distill.intervals import Real
from distill.references.calls import why_not_finite
from distill.references.functions import cause
from distill.state_dicts import load_state, twin
from distill.tasks.base import Batch, Trainable
from distill.training.batches import shuffled
from distill.training.checkpoint import TrainState, resume, save
from distill.training.forward import Autocast, autocast, predict
from distill.training.lesson import Lesson, batch_loss
from distill.training.optimizer import make_optimizer, make_schedule, skip
from distill.training.settings import TrainSettings
from distill.types import Progress

SAVE_EVERY_S = 20.0
"""Seconds between two checkpoints, at least: what a kill can cost."""


@dataclass(frozen=True)
class TrainRecord(Sparse):
    """What training did: the loss and the deciding validation metric of each epoch, and the epoch that was kept."""

    epochs: int
    steps: int
    kept_epoch: int
    precision: str
    device: str
    curves: dict[str, list[Real]] | None = None


class DivergedError(UserError):
    """Training left the finite numbers."""


def fit(
    model: nn.Module,
    task: Trainable,
    settings: TrainSettings,
    *,
    seed: int,
    device: torch.device,
    lesson: Lesson | None = None,
    title: str = "training",
    section: str = "train",
    checkpoint: Path | None = None,
    progress: Progress | None = None,
) -> tuple[nn.Module, TrainRecord]:
    """Train a copy of ``model``.

    Equal arguments give equal weights on the CPU, also when the training was killed and goes on from ``checkpoint``:
    order, augmentation and dropout are drawn anew for each epoch from ``seed`` and its number. The caller's own random
    numbers go on as if nothing had been trained.

    Args:
        model: what to start from; not changed.
        task: data, loss and the way through the model.
        settings: epochs, rates, precision.
        seed: of order, augmentation and dropout.
        device: where to train.
        lesson: teacher and loss; the labels alone where None.
        title: of the progress bar, and of errors.
        section: the configuration's section, for messages.
        checkpoint: file that the state is saved to between epochs; removed by whoever commits the result.
        progress: called as (title, steps over, steps in all).

    Raises:
        DivergedError: the loss or the validation logits are not finite.
        UserError: the model does not fit the task.
    """
    model = _copied(model).to(device)
    if device.type == "cuda":
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = make_optimizer(model, settings)
    steps = max(1, len(task.data["train"]) // settings.batch_size)
    schedule = make_schedule(optimizer, steps * settings.epochs, settings.warmup)
    state = resume(checkpoint, model, optimizer)
    if state.epoch:
        skip(schedule, state.epoch * steps)
    amp, precision = autocast(settings.precision, device)
    run = _Training(model, task, settings, seed, device, lesson, optimizer, schedule, amp, title, section, progress)
    saved = time.monotonic()
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        for epoch in range(state.epoch, settings.epochs):
            run.close(state, run.epoch(epoch, steps))
            if checkpoint and epoch + 1 < settings.epochs and time.monotonic() - saved >= SAVE_EVERY_S:
                save(checkpoint, model, optimizer, state)
                saved = time.monotonic()
    last = settings.epochs - 1
    if state.best is not None:
        load_state(model, state.best)
        last = state.best_epoch
    record = TrainRecord(settings.epochs, steps * settings.epochs, last + 1, precision, str(device), state.curves)
    return model.to(device="cpu", memory_format=torch.contiguous_format).eval(), record  # type: ignore[call-overload]


@dataclass(frozen=True)
class _Training:
    """One training: everything that stays the same from epoch to epoch."""

    model: nn.Module
    task: Trainable
    settings: TrainSettings
    seed: int
    device: torch.device
    lesson: Lesson | None
    optimizer: torch.optim.Optimizer
    schedule: LambdaLR
    amp: Autocast
    title: str
    section: str
    progress: Progress | None

    def epoch(self, epoch: int, steps: int) -> float:
        """Train for one epoch and return its mean loss."""
        view = epoch % self.lesson.views if self.lesson is not None and self.lesson.views else epoch
        torch.manual_seed(_mix(self.seed, epoch))
        self.model.train()
        total = 0.0
        numbered = shuffled(
            self.task.data["train"], self.settings.batch_size, seed=self.seed, epoch=epoch, view=view
        )  # a last, short batch is left out: batch norm cannot train on one sample
        for step, (index, batch) in enumerate(numbered, epoch * steps + 1):
            value = batch_loss(
                self.model, self.task, index, batch, self.device,
                lesson=self.lesson, view=view, amp=self.amp, title=self.title,
            )  # fmt: skip
            if not torch.isfinite(value):
                problem = f"the loss became {value.item()}"
                raise self.spoilt(problem, batch) if step == 1 else self.diverged(problem, epoch)
            if not value.requires_grad:
                raise UserError("loss: carries no gradient; compute it from the logits that it is given, with torch")
            self.optimizer.zero_grad(set_to_none=True)
            value.backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()
            self.schedule.step()
            total += value.item()
            if self.progress:
                self.progress(self.title, step, steps * self.settings.epochs)
        return total / steps

    def close(self, state: TrainState, loss: float) -> None:
        """Score the epoch on validation data, where there are any, and note it."""
        state.curves["loss"].append(loss)
        epoch, state.epoch = state.epoch, state.epoch + 1
        if "validation" not in self.task.data:
            return
        logits, targets = predict(self.model, self.task, self.task.data["validation"], self.device)
        score = float(self.task.metrics(logits, targets)[self.task.metric])
        if not np.isfinite(logits).all():
            raise self.diverged("the logits for the validation data are not finite", epoch)
        better = state.best is None or score >= max(state.curves["validation"])
        if self.settings.select == "best" and better:
            state.best = {name: value.detach().cpu().clone() for name, value in self.model.state_dict().items()}
            state.best_epoch = epoch
        state.curves["validation"].append(score)

    def spoilt(self, problem: str, batch: Batch) -> UserError:
        """Return what to raise when the first loss of all is not finite: no learning rate has had a part in that."""
        args, kwargs = self.task.inputs(batch)
        why = why_not_finite(self.model, args, kwargs) or (
            "neither its weights nor the first batch hold NaN, so look for a division, a root or a logarithm in "
            "forward or in the loss"
        )
        return UserError(f"{self.title}: {problem} before the first step of {type(self.model).__name__}: {why}")

    def diverged(self, problem: str, epoch: int) -> DivergedError:
        """Return what to raise when numbers are no longer finite."""
        return DivergedError(
            f"{self.section}.learning_rate={self.settings.learning_rate}: {problem} in epoch {epoch + 1} of "
            f"{self.title}; lower it, or look at the data"
        )


def _copied(model: nn.Module) -> nn.Module:
    try:
        return twin(model)
    except Exception as error:  # whatever the model holds decides
        raise UserError(
            f"model: {type(model).__name__} cannot be copied ({cause(error)}); keep what is no tensor, number or text "
            "out of its attributes"
        ) from error


def _mix(seed: int, number: int) -> int:
    """Make one seed of two numbers, such that neighbours have nothing in common."""
    return int(np.random.SeedSequence([seed, number]).generate_state(1, np.uint64)[0] >> 1)
