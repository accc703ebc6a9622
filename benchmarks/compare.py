"""The statistics of two arms that took turns: numbers in, numbers out.

A turn is `(arm, seconds)`: the median time of a call in one short stretch of calls to one arm, 0 the baseline and 1
the candidate. Adjacent turns share the mood of the core, so they are paired; what differs from one fresh session to
the next is seen only across session pairs, so those are the replicates.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Turn = tuple[int, float]
# Of a turn against the quiet ones of its arm. A busy sibling costs 20-50 %, the clock's own noise 1-3 %.
CONTENDED = 1.10


def paired_log_ratios(turns: Sequence[Turn]) -> NDArray[np.float64]:
    """ln(baseline / candidate) of each two adjacent turns, in order; a last turn without a partner is left out.

    Raises ValueError where two turns that belong together are of one arm.
    """
    ratios = []
    for (arm, seconds), (other_arm, other_seconds) in zip(turns[0::2], turns[1::2], strict=False):
        if {arm, other_arm} != {0, 1}:
            raise ValueError(f"two adjacent turns are of the arms {arm} and {other_arm}, not of both")
        ratio = math.log(seconds / other_seconds)
        ratios.append(ratio if arm == 0 else -ratio)
    return np.asarray(ratios, dtype=np.float64)


def session_log_ratio(turns: Sequence[Turn]) -> float:
    """D, the median paired log ratio of one session pair. Raises ValueError without a pair of turns."""
    ratios = paired_log_ratios(turns)
    if not len(ratios):
        raise ValueError("a session pair without two turns")
    return float(np.median(ratios))


def t_within(t: float, degrees: int) -> float:
    """P(|T| <= t) of Student's t; the finite sums for whole degrees of freedom (Abramowitz and Stegun 26.7.3-4)."""
    angle = math.atan(t / math.sqrt(degrees))
    cosine, term, total = math.cos(angle), 1.0, 0.0
    if degrees % 2:
        term = cosine
        for k in range(1, degrees - 1, 2):
            total += term
            term *= cosine * cosine * (k + 1) / (k + 2)
        return 2 / math.pi * (angle + math.sin(angle) * total)
    for k in range(0, degrees - 1, 2):
        total += term
        term *= cosine * cosine * (k + 1) / (k + 2)
    return math.sin(angle) * total


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


def t_bounds(effects: Sequence[float], alpha: float = 0.025) -> tuple[float, float, float]:
    """(theta, low, high): the mean of the session pairs' D, each bound one-sided at `alpha` with n - 1 degrees.

    0.025 a side makes the two-sided 95 % interval. Raises ValueError below two session pairs.
    """
    values = np.asarray(effects, dtype=np.float64)
    if len(values) < 2:
        raise ValueError(f"{len(values)} session pairs: an interval needs at least two")
    theta = float(values.mean())
    half = t_quantile(1 - alpha, len(values) - 1) * float(values.std(ddof=1)) / math.sqrt(len(values))
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
