"""What pruning can be asked for: each goal says what it needs, what was reached of it, and when that is a miss.

A goal's name is a field of `PruneSettings`, and its amount is the value of that field. A new goal is an entry of
``GOALS``, with its functions, and its field there. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from distill.prune.record import PruneRecord

FAR = 0.05
"""Shares this far from the amount that was asked for are missed."""


@dataclass(frozen=True)
class Bounds:
    """What widths were bound by, and whether the most that may go was still too little."""

    round_to: int
    max_ratio: float
    exhausted: bool

    def __str__(self) -> str:
        return f"round_to={self.round_to} and max_ratio={self.max_ratio:g}"


@dataclass(frozen=True)
class Miss:
    """A sentence on what was missed; ``is_final`` where no other choice of channels would come nearer."""

    text: str
    is_final: bool = False


@dataclass(frozen=True)
class Goal:
    """One way to say how much goes.

    Args:
        name: the field of the settings that holds its amount.
        idle: the amount that the unpruned model has already.
        advice: an amount that removes something, for messages.
        achieved: what a record reached, in the unit of the amount; None where nothing measured it.
        reached: says that, with ``{:}`` for the number.
        miss: (amount, achieved, bounds) -> what is missed; None where the amount is reached.
        counted: what the amount is a share of, where that is counted.
        needs_timing: only a device can tell what is reached.
        is_searched: a search may choose the amount, as ``search.ratio`` says.
    """

    name: str
    idle: float
    advice: str
    achieved: Callable[[PruneRecord], float | None]
    reached: str
    miss: Callable[[float, float, Bounds], Miss | None]
    counted: Literal["macs", "parameters"] | None = None
    needs_timing: bool = False
    is_searched: bool = False

    def without_timing(self, amount: float) -> tuple[str, float]:
        """Return a goal's name and an amount that remove about as much, and that need no device."""
        return ("macs", 1 / amount) if self.needs_timing else (self.name, amount)


def _channels_missed(amount: float, achieved: float, bounds: Bounds) -> Miss | None:
    if abs(achieved - amount) <= FAR:
        return None
    return Miss(
        f"{achieved:.0%} of the prunable channels went, {amount:.0%} were asked for: widths end on "
        f"multiples of round_to={bounds.round_to}, and some layers were not cut; a lower round_to comes closer"
    )


def _speed_missed(amount: float, achieved: float, bounds: Bounds) -> Miss | None:
    if achieved >= amount * (1 - FAR):
        return None
    return Miss(f"speedup={amount:g} cannot be reached with {bounds}: the best is {achieved:.2f}× as fast", True)


def _speed(record: PruneRecord) -> float | None:
    before_s, after_s = record.latency_before_s, record.latency_after_s
    return before_s / after_s if before_s is not None and after_s else None


def _count(name: Literal["macs", "parameters"]) -> Goal:
    def achieved(record: PruneRecord) -> float:
        return float(getattr(record, f"{name}_after") / max(1, getattr(record, f"{name}_before")))

    def miss(amount: float, achieved: float, bounds: Bounds) -> Miss | None:
        if abs(achieved - amount) <= FAR:
            return None
        if achieved < amount or not bounds.exhausted:
            return Miss(
                f"{achieved:.0%} of the {name} are left, {amount:.0%} were asked for: blocks of channels are large"
            )
        return Miss(
            f"{name}={amount:g} cannot be reached with {bounds}: the least that can be left is {achieved:.2f}", True
        )

    advice, reached = "0.5 or so, the share that stays", f"{{:.1%}} of the {name} are left"
    return Goal(name, 1, advice, achieved, reached, miss, counted=name)


GOALS = {
    "ratio": Goal(
        "ratio",
        0,
        "0.3 or so",
        lambda record: record.ratio_achieved,
        "{:.1%} of the prunable channels went",
        _channels_missed,
        is_searched=True,
    ),
    "macs": _count("macs"),
    "parameters": _count("parameters"),
    "speedup": Goal(
        "speedup", 1, "1.5 or so", _speed, "{:.2f}× as fast while widths were chosen", _speed_missed, needs_timing=True
    ),
}
