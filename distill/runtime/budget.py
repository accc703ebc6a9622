"""Whether a stage earns its place, and whether the whole met its budget."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from distill.benchmarks import units
from distill.intervals import Estimate
from distill.runtime.facts import Decision, Drop, StageLatency, Verdict


@dataclass(frozen=True)
class Timed:
    """How much faster the artifact after a stage is than the one before, which took turns, and what was remarked.

    `speedups` are by batch size, in the order in which the target names them.
    """

    speedups: Mapping[int, Estimate]
    warnings: tuple[str, ...] = ()

    @property
    def first(self) -> Estimate:
        """Return the speed-up at the target's first batch size."""
        return next(iter(self.speedups.values()))


@dataclass(frozen=True)
class Constraint:
    """One axis of the budget: what was found on validation data or on the target, and the most that it may be."""

    name: Literal["drop", "latency"]
    value: float
    limit: float

    @property
    def met(self) -> bool:
        """Whether the value is within the limit; one that is no number is not."""
        return self.value <= self.limit

    @property
    def ratio(self) -> float:
        """Value over limit; without end where nothing is allowed and something is there, or nothing is known."""
        if self.limit > 0:
            return self.value / self.limit if math.isfinite(self.value) else math.inf
        return 0.0 if self.met else math.inf

    def __str__(self) -> str:
        """Say whether value and limit go together, and how far apart they are."""
        write = units.points if self.name == "drop" else units.duration
        what = "validation drop" if self.name == "drop" else "p50"
        text = f"{what} {write(self.value)} is {'within' if self.met else 'above'} the limit of {write(self.limit)}"
        return text if self.met or not math.isfinite(self.ratio) else f"{text} ({self.ratio:.2f} times it)"


@dataclass(frozen=True)
class Standing:
    """How an artifact stands to the budget: its constraints, the drop first; one that was not measured is left out."""

    constraints: tuple[Constraint, ...]

    @property
    def missed(self) -> tuple[Constraint, ...]:
        """Return the constraints that are not met."""
        return tuple(one for one in self.constraints if not one.met)

    @property
    def accurate(self) -> bool:
        """Whether the drop is within its limit."""
        return all(one.met for one in self.constraints if one.name == "drop")

    @property
    def distance(self) -> tuple[float, ...]:
        """Return what orders artifacts by how far they are from the budget: the worst ratio, then the values."""
        values = (one.value if one.value == one.value else math.inf for one in self.constraints)
        return (max((one.ratio for one in self.constraints), default=0.0), *values)

    def __str__(self) -> str:
        """Name what is missed, or all where nothing is."""
        return "; ".join(str(one) for one in self.missed or self.constraints)


def standing(drop: float, max_drop: float, p50_s: float | None = None, max_latency_s: float | None = None) -> Standing:
    """Return how an artifact stands: its drop as a fraction, its median in seconds where that is limited and known."""
    constraints = [Constraint("drop", drop, max_drop)]
    if p50_s is not None and max_latency_s is not None:
        constraints.append(Constraint("latency", p50_s, max_latency_s))
    return Standing(tuple(constraints))


def nearest(standings: Mapping[str, Standing], chosen: str) -> str:
    """Return which artifact ships: ``chosen`` where it meets the budget, else the one that comes nearest to it.

    Of several that are equally near it is the chosen one, then the last.
    """
    if not standings[chosen].missed:
        return chosen
    order = [chosen, *reversed([name for name in standings if name != chosen])]
    return min(order, key=lambda name: standings[name].distance)


def decide(
    before: Standing,
    after: Standing,
    drop: Drop,
    compare: Callable[[], Timed | None],
    *,
    bytes_before: int,
    bytes_after: int,
    objective: Literal["latency", "size"],
) -> Decision:
    """Keep a stage if it keeps the budget, or comes nearer to one that is missed anyhow, and bought something.

    A drop that was within its limit is never given up, since later stages win time but no accuracy; where both drops
    are above it, the smaller worst ratio of value to limit is kept.

    Args:
        before: how the artifact before the stage stands to the budget.
        after: how the one after it stands.
        drop: cumulative, from the teacher, on validation data.
        compare: times the artifact before against the one after; None where the target is not at hand.
        bytes_before: size of the artifact before the stage.
        bytes_after: size of the artifact after it.
        objective: with ``latency``, a stage must not be slower beyond the noise at any batch size, and size breaks
            ties; with ``size`` it must be smaller, whatever its speed.
    """
    sizes = {"bytes_before": bytes_before, "bytes_after": bytes_after}
    warnings = () if drop.verdict != "unresolved" else (unresolved(drop),)
    by_budget = _by_budget(before, after)
    if by_budget is not None:
        kept, reason = by_budget
        return Decision(kept, reason, drop, None, warnings=warnings, **sizes)
    timed = compare()
    warnings = (*warnings, *(timed.warnings if timed else ()))
    kept, reason = _verdict(timed, bytes_before, bytes_after, objective)
    return Decision(kept, reason, drop, timed.first if timed else None, warnings=warnings, **sizes)


def _by_budget(before: Standing, after: Standing) -> tuple[bool, str] | None:
    """Decide by the budget alone; None where both keep it, or are as far from it, and what the stage bought decides."""
    if (before.accurate and not after.accurate) or (not before.missed and after.missed):
        return False, f"{after}; the stage before keeps it"
    if before.missed and not after.missed:
        return True, f"meets the budget, which the stage before does not ({before})"
    if before.accurate or before.distance == after.distance:
        return None
    if after.accurate:
        return True, f"the drop is within its limit, which that of the stage before is not ({before})"
    kept = after.distance < before.distance
    return kept, f"both miss the budget, and this is {'nearer' if kept else 'farther'}: {after} (before: {before})"


def _verdict(timed: Timed | None, before: int, after: int, objective: str) -> tuple[bool, str]:
    smaller = after < before
    change = f"{before / max(1, after):.2f}× smaller" if smaller else "not smaller"
    if objective == "size" or timed is None:
        untimed = " (not timed: the target is not at hand)" if timed is None and objective != "size" else ""
        return smaller, f"{change} within the drop{untimed}"
    slower = {batch: speedup for batch, speedup in timed.speedups.items() if speedup.high < 1}
    if slower:
        return False, f"slower beyond the noise: {_intervals(slower, timed)}"
    found = f"{_intervals(timed.speedups, timed)}, {change}"
    if any(speedup.low > 1 for speedup in timed.speedups.values()):
        return True, f"faster: {found}"
    return smaller, f"as fast within the noise: {found}"


def _intervals(speedups: Mapping[int, Estimate], timed: Timed) -> str:
    """Write speed-ups with their intervals; the batch size is named where there are several."""
    named = len(timed.speedups) > 1
    return " and ".join(
        f"{one.value:.2f}× [{one.low:.2f}, {one.high:.2f}]{f' at batch {batch}' if named else ''}"
        for batch, one in speedups.items()
    )


def unresolved(drop: Drop) -> str:
    """Say what a split of this size cannot tell."""
    return (
        f"drop of {units.points(drop.value)} [{100 * drop.low:.2f}, {100 * drop.high:.2f}] against a limit of "
        f"{units.points(drop.limit)}: too few samples to tell; more validation or test data resolve it"
    )


def latency_verdict(limit_s: float | None, latency: tuple[StageLatency, ...]) -> Verdict | None:
    """Judge the shipped file's median at the first batch size against a budget in seconds; None without a budget."""
    if limit_s is None:
        return None
    if not latency:
        return "unresolved"
    return "met" if latency[0].p50_s <= limit_s else "missed"
