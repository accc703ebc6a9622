"""The gate's rule: from the session pairs of two files to a verdict, live or again from a file.

Slow-downs are log ratios of the candidate to the baseline, of each session pair two: by the fastest calls of adjacent
turns, which differ least where nothing has changed, and by their medians, which see a file that only some calls are
slow with. The first decide; the second can only fail. The live gate looks after 4, 6, 8, 12 and 16 session pairs
and stops as soon as a verdict stands, so the error that a user allows is shared out among the looks (Bonferroni): a
bound at alpha / 5 each is what keeps five looks from crying wolf five times as often.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from distill.benchmarks import runner
from distill.benchmarks.verdict.statistics import t_quantile, t_tail

if TYPE_CHECKING:
    from distill.benchmarks.runner import Job

Verdict = Literal["pass", "fail", "improved", "inconclusive", "incomparable", "not measured"]
LOOKS = (4, 6, 8, 12, 16)
ALPHA = 0.01


@dataclass(frozen=True)
class Rule:
    """What a gate asks: `tolerance` is the slow-down that is allowed (0.05 is 5 %), `alpha` the error a side."""

    tolerance: float = 0.05
    alpha: float = ALPHA
    looks: tuple[int, ...] = LOOKS

    def critical(self, pairs: int) -> float:
        """Return t beyond which a look at `pairs` session pairs believes a difference."""
        return t_quantile(1 - self.alpha / len(self.looks), pairs - 1)

    def for_runner(self) -> Job:
        """Write the rule as `runner.py` takes it, which knows no t."""
        looks = {str(look): self.critical(look) for look in self.looks}
        return {"tolerance": self.tolerance, "looks": looks}


@dataclass(frozen=True)
class Judgement:
    """A verdict and what it rests on.

    `slowdown`, `low` and `high` are ratios of candidate to baseline, 1.05 for 5 % slower; the bounds are one-sided
    ones at the look's share of alpha. `pairs` is how many session pairs had been seen when it stood. `p_value` is that
    of a slow-down of at most half the tolerance. `catches` is the smallest slow-down, as a fraction, that would have
    failed with this spread. `by` says which calls all of this is about.
    """

    verdict: Verdict
    slowdown: float
    low: float
    high: float
    pairs: int
    p_value: float
    catches: float
    by: Literal["fastest", "median"] = "fastest"


def judge(fastest: Sequence[float], medians: Sequence[float], rule: Rule) -> Judgement:
    """Judge the session pairs' log ratios in the order in which they came, as the live gate does.

    Raises ValueError below two session pairs, or where there are not as many of one as of the other.
    """
    if len(fastest) < 2 or len(fastest) != len(medians):
        raise ValueError(f"{len(fastest)} and {len(medians)} session pairs: a verdict needs two, and as many of each")
    looks = [look for look in rule.looks if look < len(fastest)]
    # A run that its time limit ended between two looks is looked at once more: a look is left for it.
    for look in [*looks, min(len(fastest), max(rule.looks))]:
        critical = rule.critical(look)
        verdict = runner.verdict(list(fastest[:look]), list(medians[:look]), rule.tolerance, critical)
        if verdict != "inconclusive":
            break
    judgement = _judged(fastest[:look], rule, "fastest")
    return _judged(medians[:look], rule, "median") if verdict == "fail" and judgement.verdict != "fail" else judgement


def _judged(seen: Sequence[float], rule: Rule, by: Literal["fastest", "median"]) -> Judgement:
    """Judge one look by one kind of calls."""
    mean, error = runner.mean_and_error(list(seen))
    excess = mean - math.log1p(rule.tolerance) / 2
    p_value = t_tail(excess / error, len(seen) - 1) if error else float(excess <= 0)
    return judged_by(mean, rule.critical(len(seen)) * error, rule, len(seen), p_value, by)


def judged_by(
    mean: float, half: float, rule: Rule, pairs: int, p_value: float, by: Literal["fastest", "median"]
) -> Judgement:
    """Judge a mean log ratio, whose interval is twice `half` wide."""
    limit = math.log1p(rule.tolerance)
    return Judgement(
        verdict=runner.verdict_of(mean, half, rule.tolerance),  # type: ignore[arg-type]
        slowdown=math.exp(mean),
        low=math.exp(mean - half),
        high=math.exp(mean + half),
        pairs=pairs,
        p_value=p_value,
        catches=math.expm1(max(limit, limit / 2 + half)),
        by=by,
    )


def judge_budget(p50_s: Sequence[float], limit_s: float, alpha: float = ALPHA) -> Verdict:
    """Judge the medians of sessions against a budget in seconds: pass, fail or inconclusive, by their interval."""
    logs = [math.log(value / limit_s) for value in p50_s]
    if len(logs) < 2:
        return "inconclusive"
    mean, error = runner.mean_and_error(logs)
    half = t_quantile(1 - alpha, len(logs) - 1) * error
    return "fail" if mean - half > 0 else "pass" if mean + half < 0 else "inconclusive"


def holm(p_values: Sequence[float], alpha: float = ALPHA) -> list[bool]:
    """Tell which of many hypotheses are rejected so that any false rejection has a chance of at most alpha.

    Source: S. Holm, A simple sequentially rejective multiple test procedure, Scandinavian Journal of Statistics 1979.
    """
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    rejected = [False] * len(p_values)
    for rank, i in enumerate(order):
        if p_values[i] > alpha / (len(p_values) - rank):
            break
        rejected[i] = True
    return rejected
