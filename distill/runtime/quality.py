"""How good a stage's answers are, with intervals: its metrics, its drop from the teacher, what changed sides."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Literal

import numpy as np

from distill.errors import UserError
from distill.intervals import Estimate, wilson
from distill.intervals import paired_drop as paired_drop  # others take it from here
from distill.outputs import Output, degenerate
from distill.runtime.budget import verdict
from distill.runtime.facts import Drop, Quality
from distill.types import Array
from distill.wording import first_of

Metrics = Callable[[Array, Array], dict[str, float]]

RESAMPLES = 400
CLASSES = Output("classes")


def judge_drop(drop: Estimate, limit: float) -> Drop:
    """Judge a drop by its interval: met, missed, or unresolved when the limit lies inside."""
    return Drop(drop.value, drop.low, drop.high, limit, verdict(drop, limit))


def quality(
    split: Literal["validation", "test"],
    logits: Array,
    target: Array,
    *,
    metrics: Metrics,
    metric: str,
    teacher: Array | None,
    limit: float,
    seed: int = 0,
) -> Quality:
    """Judge logits [N, C] against targets [N], and against the teacher's logits on the same samples.

    Accuracy has a Wilson interval and an exact pairing; other metrics and their drops have percentile intervals of
    ``RESAMPLES`` paired bootstrap resamples, equal for equal seeds.
    """
    n = len(target)
    answers = CLASSES.answers(logits)
    right = answers == target
    own = metrics(logits, target)
    theirs = metrics(teacher, target) if teacher is not None else {}
    # A task may call something else accuracy: top-5, or a weighted one. That has no binomial interval.
    counted = {name for name, value in own.items() if name == "accuracy" and abs(value - right.mean()) < 1e-9}
    samples = _resample(logits, teacher, target, metrics, seed) if set(own) - counted else []
    estimates = {
        name: wilson(float(right.sum()), n)
        if name in counted
        else _percentiles(value, [metrics[name] for metrics, _ in samples if name in metrics])
        for name, value in own.items()
    }
    if teacher is None:
        return Quality(split, n, estimates, None, None)
    expected = CLASSES.answers(teacher)
    teacher_right = expected == target
    lost, won = int((teacher_right & ~right).sum()), int((~teacher_right & right).sum())
    if metric in counted:
        drop = paired_drop(lost, won, n)
    else:
        drop = _percentiles(
            theirs[metric] - own[metric], [b[metric] - a[metric] for a, b in samples if metric in a and metric in b]
        )
    agreement = wilson(float((answers == expected).sum()), n)
    return Quality(
        split, n, estimates, agreement, judge_drop(drop, limit), lost, won, CLASSES.divergence(teacher, logits)
    )


def _resample(
    logits: Array, teacher: Array | None, target: Array, metrics: Metrics, seed: int
) -> list[tuple[dict[str, float], dict[str, float]]]:
    rng = np.random.default_rng(seed)
    resamples = []
    for _ in range(RESAMPLES):
        index = rng.integers(0, len(target), len(target))
        try:
            own = metrics(logits[index], target[index])
            theirs = metrics(teacher[index], target[index]) if teacher is not None else {}
        except (ValueError, UserError):  # a resample without one of the classes has no AUROC
            continue
        resamples.append((own, theirs))
    return resamples


def _percentiles(value: float, sample: list[float]) -> Estimate:
    finite = [figure for figure in sample if np.isfinite(figure)]
    if len(finite) < 20:
        return Estimate(float(value), float("nan"), float("nan"))
    low, high = np.percentile(finite, [2.5, 97.5])
    return Estimate(float(value), float(min(low, value)), float(max(high, value)))


def weak_splits(split: str, target: Array, labels: Sequence[str]) -> tuple[str, ...]:
    """Say which classes a split [N] does not show; the metrics say nothing about those."""
    there = set(np.unique(target).tolist())
    if len(there) == 1:
        name = labels[there.pop()]
        return (f"{split}: all {len(target)} samples are of one class ({name}), so no metric means anything there",)
    absent = [label for number, label in enumerate(labels) if number not in there]
    return (f"{split}: no sample of class {first_of(absent)}, so nothing is known about it",) if absent else ()


def weak_evidence(
    split: str,
    logits: Array,
    target: Array,
    *,
    metric: str,
    metrics: Collection[str],
    teacher: Array | None,
    names: tuple[str, str],
) -> tuple[str, ...]:
    """Say why a model's logits [N, C] prove little: all alike, or right no more often than the largest class is.

    ``names`` are what the teacher and the model are called; ``teacher`` is None where the model is the teacher.
    """
    warnings = []
    answers = logits.argmax(1)
    before = answers if teacher is None else teacher.argmax(1)
    alike = degenerate(before, None if teacher is None else answers, target, names=names)
    if alike is not None:
        warnings.append(f"{split}: {alike}")
    most = int(np.bincount(target).max())
    right = int((answers == target).sum())
    if metric == "accuracy" and right <= most < len(target):
        others = [name for name in metrics if name != "accuracy"]
        advice = f"data.metric={others[0]}" if others else "another metric of your own"
        more = f" ({' or '.join(others)})" if len(others) > 1 else ""
        warnings.append(
            f"{split}: {names[1]}'s accuracy of {100 * right / len(target):.1f} % is no more than the share of the "
            f"most frequent class, {100 * most / len(target):.1f} %: it proves nothing; judge by {advice}{more}"
        )
    return tuple(warnings)
