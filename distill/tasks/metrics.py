"""Classification metrics, as fractions, and those of the user's own; higher is better."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np

from distill.errors import UserError
from distill.references.digest import Digest
from distill.references.functions import call_user, load_reference, source_hash
from distill.tasks.base import Task
from distill.types import Array
from distill.wording import did_you_mean


def accuracy(logits: Array, target: Array) -> float:
    """Return the share of rows whose largest logit is the target's; a row with NaN counts as wrong."""
    if len(target) == 0:
        return float("nan")
    right = (logits.argmax(1) == target) & ~np.isnan(logits).any(1)
    return float(right.mean())


def f1(logits: Array, target: Array, *, positive: int | None = None) -> float:
    """Return F1 of class ``positive``, or with None the mean of F1 over the classes that occur (macro).

    A class that does not occur in ``target`` is left out; a row with NaN is a miss.
    """
    if len(target) == 0:
        return float("nan")
    classes = logits.shape[1]
    # One class more takes the rows of NaN: a miss for their own class and a false alarm for none.
    predicted = np.where(np.isnan(logits).any(1), classes, logits.argmax(1))
    hits = np.bincount(target[predicted == target], minlength=classes)
    occurs = np.bincount(target, minlength=classes)
    named = np.bincount(predicted, minlength=classes + 1)[:classes]
    scores = 2 * hits / np.maximum(occurs + named, 1)
    return float(scores[occurs > 0].mean() if positive is None else scores[positive])


def auroc(logits: Array, target: Array, *, positive: int | None = None) -> float:
    """Return the area under the ROC curve: of two classes, or the mean of one-vs-rest over the classes that occur.

    Ranks by the log-odds z_c - logsumexp(z_others), which orders rows as the probability does but does not saturate.
    NaN where it is undefined: one class only, or logits that are not finite.
    """
    z = logits.astype(np.float64)
    present = np.unique(target)
    if len(present) < 2 or not np.isfinite(z).all():
        return float("nan")
    if z.shape[1] == 2:
        side = 1 if positive is None else positive
        return _area(target == side, z[:, side] - z[:, 1 - side])
    areas = []
    for label in present:
        others = np.delete(z, label, axis=1)
        top = others.max(1)
        odds = z[:, label] - top - np.log(np.exp(others - top[:, None]).sum(1))
        areas.append(_area(target == label, odds))
    return float(np.mean(areas))


def _area(positive: Array, score: Array) -> float:
    """Return the share of (positive, negative) pairs that the score puts in order; a tie counts half (Mann-Whitney)."""
    # By hand: intervals resample this hundreds of times a stage, and scikit-learn's checks cost 40 times the sum.
    _, place, counts = np.unique(score, return_inverse=True, return_counts=True)
    rank = np.cumsum(counts) - (counts - 1) / 2
    ours = int(positive.sum())
    return float((rank[place][positive].sum() - ours * (ours + 1) / 2) / (ours * (len(score) - ours)))


def positive_number(positive: str | None, labels: Sequence[str]) -> int | None:
    """Return the number of the class that f1 counts as positive: the last of two by default, None for more classes.

    Raises:
        UserError: no such label, or there are more than two.
    """
    if positive is None:
        return 1 if len(labels) == 2 else None
    if len(labels) != 2:
        raise UserError(f"data.positive={positive!r}: there are {len(labels)} classes; it is for two, remove it")
    if positive not in labels:
        raise UserError(f"data.positive={positive!r}: no such label{did_you_mean(positive, labels)}")
    return list(labels).index(positive)


def chosen_metric(metric: str | None, available: Iterable[str]) -> str:
    """Return the metric that decides: accuracy by default.

    Raises:
        UserError: the task has no such metric.
    """
    names = list(available)
    if metric is None:
        return "accuracy" if "accuracy" in names else names[0]
    if metric not in names:
        raise UserError(f"data.metric={metric!r}: the task has no such metric{did_you_mean(metric, names)}")
    return metric


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
