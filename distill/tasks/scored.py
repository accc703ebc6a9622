"""A task that is judged by a function of the user's."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np

from distill.errors import UserError
from distill.references.digest import Digest
from distill.references.loading import call_user, load_reference, source_hash
from distill.tasks.base import Task
from distill.types import Array


def scored(task: Task, metric: str, folder: Path) -> Task:
    """Return the task with the metric that a reference names beside its own, as what a budget is stated in.

    The function is called with logits, float32 [N, classes], and class numbers, int64 [N], and returns a finite number,
    of which more is better.

    Raises:
        UserError: there is no such function, or it does not return a number.
    """
    score = load_reference(metric, field="data.metric", folder=folder)
    judged = _Scored(task, score, source_hash(metric, folder=folder))
    target = np.tile(np.arange(len(task.labels)), 4)
    judged.metrics(10 * np.eye(len(task.labels), dtype=np.float32)[target], target)  # so that a mistake shows now
    return cast(Task, judged)


class _Scored:
    def __init__(self, task: Task, score: Callable[[Array, Array], float], identity: str) -> None:
        self._task, self._score, self._identity = task, score, identity
        name = getattr(score, "__name__", type(score).__name__)
        self.metric = name if name.isidentifier() else "metric"

    def __getattr__(self, name: str) -> Any:
        if name == "_task":  # of a copy in the making
            raise AttributeError(name)
        return getattr(self._task, name)

    def metrics(self, logits: Array, target: Array) -> dict[str, float]:
        """Return the task's own metrics, and the user's."""
        value = call_user(self._score, "data.metric", logits, target)
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = math.nan
        if not math.isfinite(number):
            raise UserError(f"data.metric: {self.metric} returned {value!r}; it must return a finite number")
        return {**self._task.metrics(logits, target), self.metric: number}

    def fingerprint(self) -> str:
        """Return a hash of the task's own, and of the function."""
        return Digest().add([self._task.fingerprint(), self._identity, self.metric]).hexdigest()
