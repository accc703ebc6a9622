"""What one model costs on this machine: counted, and timed in a few real training steps on a copy."""

from __future__ import annotations

import dataclasses
import math
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import TypedDict

import torch
from torch import nn

from distill.benchmarks import usable_threads
from distill.prune import count
from distill.runtime.artifacts import example
from distill.runtime.smoke import First, with_data
from distill.state_dicts import twin
from distill.tasks.base import Task
from distill.training.forward import forward, predict
from distill.training.loop import fit
from distill.training.settings import TrainSettings

_STEPS = 3
_PATIENCE_S = 4.0
# Exporting by tracing, on a processor of 2023: a fixed part, and one for each layer.
_EXPORT_S, _EXPORT_LAYER_S = 1.5, 0.06


class ModelCost(TypedDict):
    """What a model is, and what a training step and a sample in evaluation mode take."""

    model: str
    parameters: int
    macs: int
    batch_size: int
    step_s: float
    sample_s: float


@dataclass(frozen=True)
class Cost:
    """Seconds for a training step (``step_s``) and for a sample in evaluation mode (``sample_s``), and sizes."""

    settings: TrainSettings
    parameters: int
    macs: int
    layers: int
    step_s: float
    sample_s: float
    memory_bytes: int | None

    def of(self, model: str) -> ModelCost:
        """Return what is told of the model of this reference."""
        return {
            "model": model,
            "parameters": self.parameters,
            "macs": self.macs,
            "batch_size": self.settings.batch_size,
            "step_s": self.step_s,
            "sample_s": self.sample_s,
        }

    def training_s(self, samples: int, held_out: int, epochs: int) -> float:
        """Return seconds of training, the validation after each epoch included."""
        steps = max(1, samples // self.settings.batch_size)
        return epochs * (steps * self.step_s + held_out * self.sample_s)

    @property
    def export_s(self) -> float:
        """Return seconds of one export."""
        return _EXPORT_S + _EXPORT_LAYER_S * self.layers

    @property
    def stage_bytes(self) -> int:
        """Return the size of a stage's folder: weights and two float graphs."""
        return 3 * 4 * self.parameters + 200 * 2**10


def measure_cost(
    model: nn.Module, task: Task, settings: TrainSettings, device: torch.device, role: str, title: str, *, steps: bool
) -> Cost:
    """Run a model once on the CPU, count it, and time it on ``device``; ``steps`` False times no training step.

    Raises:
        UserError: the model does not fit the task; ``title`` names it, and ``role`` its section.
    """
    two = task.data["train"].fetch(torch.arange(2), None)
    with torch.no_grad():
        forward(twin(model).eval(), task, two, torch.device("cpu"), title=title)
    counts = count(model, *example(task))
    layers = sum(1 for module in model.modules() if not any(module.children()))
    step_s = _step_s(model, task, settings, device, role) if steps else 0.0
    sample_s = _sample_s(twin(model), task, device)
    return Cost(settings, counts.parameters, counts.macs, layers, step_s, sample_s, _peak_bytes(device))


class _EnoughError(Exception):
    """Ends a training that was only begun to be timed."""


def _step_s(model: nn.Module, task: Task, settings: TrainSettings, device: torch.device, role: str) -> float:
    """Time real steps of the real loop, after one that warms up; ``fit`` works on a copy."""
    short = with_data(task, {**task.data, "train": First(task.data["train"], (_STEPS + 1) * settings.batch_size)})
    stamps = [time.perf_counter()]

    def stamp(_: str, step: int, steps: int) -> None:
        stamps.append(time.perf_counter())
        if step == steps or (step > 1 and stamps[-1] - stamps[0] > _PATIENCE_S):
            raise _EnoughError

    try:
        # The rate does not change a step's time; a small one cannot diverge.
        slow = dataclasses.replace(settings, epochs=1, learning_rate=min(settings.learning_rate, 1e-4))
        fit(model, short, slow, seed=0, device=device, title=role, section=role, progress=stamp)
    except _EnoughError:
        pass
    gaps = [after - before for before, after in pairwise(stamps)]
    # The quickest: what a busy machine adds to a step is not the step's.
    return min(gaps[1:] or gaps)


def _sample_s(model: nn.Module, task: Task, device: torch.device) -> float:
    """Time evaluation, fetching and augmentation included, seconds a sample; the model may be changed."""
    seconds, samples = math.inf, 1
    for wanted in (32, 256):
        samples = min(wanted, len(task.data["train"]))
        begun = time.perf_counter()
        predict(model, task, First(task.data["train"], samples), device, view=0)
        seconds = time.perf_counter() - begun
        if seconds > _PATIENCE_S / 8:
            break
    return seconds / samples


@contextmanager
def undisturbed(device: torch.device) -> Iterator[None]:
    """Use the threads that a run uses, and put them and torch's random state back."""
    threads = torch.get_num_threads()
    cards = range(torch.cuda.device_count()) if device.type == "cuda" else []
    with torch.random.fork_rng(devices=cards):
        torch.set_num_threads(usable_threads())
        try:
            yield
        finally:
            torch.set_num_threads(threads)


def _peak_bytes(device: torch.device) -> int | None:
    """Return the most memory that this process has held so far; None where the system does not tell."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)
