"""The statistics of files that took turns: numbers in, numbers out.

A turn is `(arm, seconds)`: the median time of a call in one short stretch of calls to one arm, 0 the baseline. Adjacent
turns share the mood of the core, so they are paired; what differs from one fresh session to the next is seen only
across session pairs, so those are the replicates. How turns are paired is in `runner.py`, which stops by it.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence

import numpy as np

from distill.benchmarks.runner import BIN, mean_and_error

Turn = tuple[int, float]
# Of a turn against the quiet ones of its arm. A busy sibling costs 20-50 %, the clock's own noise 1-3 %.
CONTENDED = 1.10
# Calls below which a quantile is left out: an estimate from fewer moves by more than it says.
LEAST_CALLS = {0.5: 1, 0.9: 64, 0.99: 662}


def t_within(t: float, degrees: int) -> float:
    """P(|T| <= t) of Student's t; the finite sums for whole degrees of freedom (Abramowitz and Stegun 26.7.3-4)."""
    angle = math.atan(t / math.sqrt(degrees))
    cosine, odd, total = math.cos(angle), degrees % 2, 0.0
    term = cosine if odd else 1.0
    for k in range(odd, degrees - 1, 2):
        total += term
        term *= cosine * cosine * (k + 1) / (k + 2)
    return 2 / math.pi * (angle + math.sin(angle) * total) if odd else math.sin(angle) * total


@functools.cache
def t_quantile(probability: float, degrees: int) -> float:
    """T with P(T <= t) = `probability`, by bisection. Raises ValueError outside (0, 1) and below 1 degree."""
    if not 0 < probability < 1 or degrees < 1:
        raise ValueError(f"no quantile of t at {probability} with {degrees} degrees of freedom")
    if probability < 0.5:
        return -t_quantile(1 - probability, degrees)
    within, low, high = 2 * probability - 1, 0.0, 1.0
    while t_within(high, degrees) < within and high < 1e15:
        high *= 2
    for _ in range(200):
        middle = (low + high) / 2
        if middle in (low, high):
            break
        low, high = (middle, high) if t_within(middle, degrees) < within else (low, middle)
    return (low + high) / 2


def t_tail(t: float, degrees: int) -> float:
    """P(T > t) of Student's t."""
    tail = (1 - t_within(abs(t), degrees)) / 2
    return tail if t >= 0 else 1 - tail


def t_bounds(effects: Sequence[float], alpha: float = 0.025) -> tuple[float, float, float]:
    """(theta, low, high): the mean of the session pairs' D, each bound one-sided at `alpha` with n - 1 degrees.

    0.025 a side makes the two-sided 95 % interval. Raises ValueError below two session pairs.
    """
    if len(effects) < 2:
        raise ValueError(f"{len(effects)} session pairs: an interval needs at least two")
    theta, error = mean_and_error(list(effects))
    half = t_quantile(1 - alpha, len(effects) - 1) * error
    return theta, theta - half, theta + half


def lowest_decile(seconds: Sequence[float]) -> float:
    """Take the time of a quiet call: the 10th percentile of the turns."""
    return float(np.quantile(np.asarray(seconds, dtype=np.float64), 0.1))


def contended_share(turns: Sequence[Turn], interrupted: Sequence[bool]) -> float:
    """Compute the share of turns, 0 to 1, that were `interrupted` or took over 1.1 times a quiet one of their arm."""
    limits = {
        arm: CONTENDED * lowest_decile([seconds for other, seconds in turns if other == arm])
        for arm in {arm for arm, _ in turns}
    }
    contended = [broken or seconds > limits[arm] for (arm, seconds), broken in zip(turns, interrupted, strict=True)]
    return sum(contended) / len(contended) if contended else 0.0


def call_quantile(calls: Mapping[int, int], probability: float) -> float | None:
    """Return a quantile of single calls in seconds, from counts by `runner.BIN`; None where too few were counted."""
    total = sum(calls.values())
    if total < LEAST_CALLS.get(probability, 1):
        return None
    below = 0
    for bin_ in sorted(calls):
        below += calls[bin_]
        if below >= probability * total:
            return math.exp(bin_ * BIN)
    return None
