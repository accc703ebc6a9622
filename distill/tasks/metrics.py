"""Classification metrics, as fractions; higher is better."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from distill.errors import UserError
from distill.tasks.wording import did_you_mean

Array = np.ndarray[Any, Any]


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
    from sklearn.metrics import f1_score

    if len(target) == 0:
        return float("nan")
    # -1 is no class: a row of NaN is a miss for its own class and a false alarm for none.
    predicted = np.where(np.isnan(logits).any(1), -1, logits.argmax(1))
    labels = np.unique(target) if positive is None else [positive]
    return float(f1_score(target, predicted, labels=labels, average="macro", zero_division=0.0))


def auroc(logits: Array, target: Array, *, positive: int | None = None) -> float:
    """Return the area under the ROC curve: of two classes, or the mean of one-vs-rest over the classes that occur.

    Ranks by the log-odds z_c - logsumexp(z_others), which orders rows as the probability does but does not saturate.
    NaN where it is undefined: one class only, or logits that are not finite.
    """
    from sklearn.metrics import roc_auc_score

    z = logits.astype(np.float64)
    present = np.unique(target)
    if len(present) < 2 or not np.isfinite(z).all():
        return float("nan")
    if z.shape[1] == 2:
        side = 1 if positive is None else positive
        return float(roc_auc_score(target == side, z[:, side] - z[:, 1 - side]))
    areas = []
    for label in present:
        others = np.delete(z, label, axis=1)
        top = others.max(1)
        odds = z[:, label] - top - np.log(np.exp(others - top[:, None]).sum(1))
        areas.append(float(roc_auc_score(target == label, odds)))
    return float(np.mean(areas))


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
