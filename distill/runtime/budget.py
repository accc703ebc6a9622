"""Whether a stage earns its place, and whether the whole met its budget."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from distill.benchmarks import units
from distill.intervals import Estimate
from distill.runtime.facts import Decision, Drop, Verdict


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


Figures = Mapping[str, Callable[[], Estimate | Drop | float | None]]
"""What measures a file on each axis of the budget; None where that is not at hand.

Called only where the axis has a limit, since timing takes seconds.
"""


def verdict(figure: Estimate | Drop, limit: float) -> Verdict:
    """Judge a figure by its interval: met, missed, or unresolved when the limit lies inside."""
    return "met" if figure.high <= limit else "missed" if figure.low > limit else "unresolved"


@dataclass(frozen=True)
class Constraint:
    """One axis of the budget: what is measured, where its limit is set, and the most that it may be.

    Attributes:
        name: of the axis, in run.json and in reports.
        noun: what the figure is called in a sentence.
        field: of the configuration, which sets the limit.
        write: writes a figure with its unit.
        firm: a stage that meets this limit is never undone for the sake of another, as no later stage wins it back.
        limit: the most that the figure may be.
    """

    name: str
    noun: str
    field: str
    write: Callable[[float], str]
    firm: bool = False
    limit: float = math.inf

    def figure(self, figures: Figures) -> Estimate | Drop | None:
        """Measure a file on this axis."""
        value = figures[self.name]() if self.name in figures else None
        return Estimate(value, value, value) if isinstance(value, int | float) else value

    def verdict(self, figures: Figures) -> Verdict:
        """Judge a file by the interval of its figure; unresolved where there is none."""
        figure = self.figure(figures)
        return "unresolved" if figure is None else verdict(figure, self.limit)

    def limit_in(self, config: object) -> float | None:
        """Return the limit that a configuration sets; None where it sets none."""
        for part in self.field.split("."):
            config = getattr(config, part, None)
        return config if isinstance(config, int | float) else None


BUDGET = (
    Constraint("drop", "validation drop", "max_drop", units.points, firm=True),
    Constraint("latency", "p50", "benchmark.max_latency_s", units.duration),
    Constraint("size", "file size", "max_file_bytes", units.size),
    Constraint("memory", "peak memory", "max_memory_bytes", units.size),
)
"""Every axis that a budget may have, in the order in which they are told."""


def limited(limits: Mapping[str, float | None]) -> tuple[Constraint, ...]:
    """Return the constraints of the axes that have a limit; ``limits`` are by the axes' names."""
    pairs = [(constraint, limits.get(constraint.name)) for constraint in BUDGET]
    return tuple(dataclasses.replace(constraint, limit=limit) for constraint, limit in pairs if limit is not None)


def budget_of(config: object) -> tuple[Constraint, ...]:
    """Return the constraints that a configuration sets."""
    return limited({constraint.name: constraint.limit_in(config) for constraint in BUDGET})


@dataclass(frozen=True)
class Reading:
    """A figure of a file, and the constraint that it is held against."""

    constraint: Constraint
    value: float

    @property
    def met(self) -> bool:
        """Whether the value is within the limit; one that is no number is not."""
        return self.value <= self.constraint.limit

    @property
    def ratio(self) -> float:
        """Value over limit; without end where nothing is allowed and something is there, or nothing is known."""
        if self.constraint.limit > 0:
            return self.value / self.constraint.limit if math.isfinite(self.value) else math.inf
        return 0.0 if self.met else math.inf

    def __str__(self) -> str:
        """Say whether value and limit go together, and how far apart they are."""
        write, limit = self.constraint.write, self.constraint.limit
        side = "within" if self.met else "above"
        text = f"{self.constraint.noun} {write(self.value)} is {side} the limit of {write(limit)}"
        return text if self.met or not math.isfinite(self.ratio) else f"{text} ({self.ratio:.2f} times it)"


@dataclass(frozen=True)
class Standing:
    """How an artifact stands to the budget: a reading a constraint; one that was not measured is left out."""

    readings: tuple[Reading, ...]

    @property
    def missed(self) -> tuple[Reading, ...]:
        """Return the readings that are beyond their limit."""
        return tuple(reading for reading in self.readings if not reading.met)

    @property
    def accurate(self) -> bool:
        """Whether every firm constraint is met: the drop is within its limit."""
        return not any(reading.constraint.firm for reading in self.missed)

    @property
    def distance(self) -> tuple[float, ...]:
        """Return what orders artifacts by how far they are from the budget: the worst ratio, then the values."""
        values = (math.inf if math.isnan(reading.value) else reading.value for reading in self.readings)
        return (max((reading.ratio for reading in self.readings), default=0.0), *values)

    def __str__(self) -> str:
        """Name what is missed, or all where nothing is."""
        return "; ".join(str(reading) for reading in self.missed or self.readings)


def standing(budget: Sequence[Constraint], figures: Figures) -> Standing:
    """Return how a file stands to the budget; figures that nothing limits are not measured."""
    measured = [(constraint, constraint.figure(figures)) for constraint in budget]
    return Standing(tuple(Reading(constraint, figure.value) for constraint, figure in measured if figure is not None))


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
        keep, reason = by_budget
        return Decision(keep, reason, drop, None, warnings=warnings, **sizes)
    timed = compare()
    warnings = (*warnings, *(timed.warnings if timed else ()))
    keep, reason = _by_gain(timed, bytes_before, bytes_after, objective)
    return Decision(keep, reason, drop, timed.first if timed else None, warnings=warnings, **sizes)


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
    nearer = after.distance < before.distance
    return nearer, f"both miss the budget, and this is {'nearer' if nearer else 'farther'}: {after} (before: {before})"


def _by_gain(timed: Timed | None, before: int, after: int, objective: str) -> tuple[bool, str]:
    smaller = after < before
    change = f"{before / max(1, after):.2f}× smaller" if smaller else "not smaller"
    if objective == "size" or timed is None:
        untimed = " (not timed: the target is not at hand)" if timed is None and objective != "size" else ""
        return smaller, f"{change} within the drop{untimed}"
    slower = {batch: speedup for batch, speedup in timed.speedups.items() if speedup.high < 1}
    if slower:
        return False, f"slower beyond the noise: {_intervals(slower, timed)}"
    gain = f"{_intervals(timed.speedups, timed)}, {change}"
    if any(speedup.low > 1 for speedup in timed.speedups.values()):
        return True, f"faster: {gain}"
    return smaller, f"as fast within the noise: {gain}"


def _intervals(speedups: Mapping[int, Estimate], timed: Timed) -> str:
    """Write speed-ups with their intervals; the batch size is named where there are several."""
    named = len(timed.speedups) > 1
    return " and ".join(
        f"{speedup.value:.2f}× [{speedup.low:.2f}, {speedup.high:.2f}]{f' at batch {batch}' if named else ''}"
        for batch, speedup in speedups.items()
    )


def unresolved(drop: Drop) -> str:
    """Say what a split of this size cannot tell."""
    return (
        f"drop of {units.points(drop.value)} [{100 * drop.low:.2f}, {100 * drop.high:.2f}] against a limit of "
        f"{units.points(drop.limit)}: too few samples to tell; more validation or test data resolve it"
    )
