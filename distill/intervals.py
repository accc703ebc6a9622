"""Estimates with their 95 % intervals: of shares, of differences of shares, of ratios of times.

This module imports nothing of the product; every package of it may import this one.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from typing import Annotated

from pydantic import BeforeValidator

Z = 1.959963984540054
"""The normal quantile of a two-sided 95 % interval."""


Real = Annotated[float, BeforeValidator(lambda value: float("nan") if value is None else value)]
"""A number of a record: what is no number is null in JSON, and is read as one that is no number."""


@dataclass(frozen=True)
class Estimate:
    """A value with its two-sided 95 % interval, in the value's own unit."""

    value: Real
    low: Real
    high: Real


def wilson(successes: float, n: int) -> Estimate:
    """Return a share with its Wilson score interval (Wilson 1927), which stays inside [0, 1].

    ``successes`` may be a sum of shares, one a sample: the interval is then wide enough, as no other variable between
    0 and 1 varies as much as one that is either.
    """
    if n == 0:
        return Estimate(float("nan"), 0.0, 1.0)
    share, z2 = successes / n, Z * Z
    middle = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = Z / (1 + z2 / n) * sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    # At the ends the bound is exactly 0 or 1, which the sum misses by a rounding error.
    low = 0.0 if successes == 0 else max(0.0, middle - half)
    high = 1.0 if successes == n else min(1.0, middle + half)
    return Estimate(share, low, high)


def paired_drop(lost: float, won: float, n: int) -> Estimate:
    """Return the difference of two accuracies on the same samples, with its interval.

    ``lost`` samples were right and became wrong, ``won`` the reverse; as in `wilson` either may be a sum of shares. The
    interval is Wald's on counts with one added to each (Bonett and Price 2012), which covers 95 % also where few
    samples change sides.
    """
    b, c, m = lost + 1, won + 1, n + 2
    middle = (b - c) / m
    half = Z * sqrt((b + c) / m - middle**2) / sqrt(m)
    return Estimate((lost - won) / n, max(-1.0, middle - half), min(1.0, middle + half))
