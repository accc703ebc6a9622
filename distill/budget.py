"""Whether a stage earns its place, and whether the whole met its budget."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from distill.benchmarks import Comparison
from distill.records import Drop, Estimate, StageLatency, Verdict


@dataclass(frozen=True)
class Decision:
    """Why a stage was kept or reverted. What decided is written here before it acts, and can be replayed."""

    kept: bool
    reason: str
    drop: Drop | None = None
    speedup: Estimate | None = None
    bytes_before: int = 0
    bytes_after: int = 0
    warnings: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> Decision:
        """Read what ``to_dict`` wrote."""
        fields = dict(raw)
        fields["drop"] = Drop(**fields["drop"]) if fields.get("drop") else None
        fields["speedup"] = Estimate(**fields["speedup"]) if fields.get("speedup") else None
        fields["warnings"] = tuple(fields.get("warnings", ()))
        return cls(**fields)


def decide(
    drop: Drop,
    compare: Callable[[], Comparison | None],
    *,
    bytes_before: int,
    bytes_after: int,
    objective: Literal["latency", "size"],
) -> Decision:
    """Keep a stage if the drop from the teacher stays within the limit and the stage bought something.

    Args:
        drop: cumulative, from the teacher, on validation data.
        compare: times the artifact before against the one after; None where the target is not at hand.
        bytes_before: size of the artifact before the stage.
        bytes_after: size of the artifact after it.
        objective: with ``latency``, a stage must not be slower beyond the noise, and size breaks ties; with ``size`` it
            must be smaller, whatever its speed.
    """
    sizes = {"bytes_before": bytes_before, "bytes_after": bytes_after}
    warnings = () if drop.verdict != "unresolved" else (unresolved(drop),)
    if drop.value > drop.limit:
        reason = f"validation drop {_points(drop.value)} is above the limit of {_points(drop.limit)}"
        return Decision(False, reason, drop, None, warnings=warnings, **sizes)
    comparison = compare()
    speedup = None
    if comparison is not None:
        speedup = Estimate(comparison.speedup.value, comparison.speedup.low, comparison.speedup.high)
        warnings = (*warnings, *comparison.warnings)
    kept, reason = _verdict(speedup, bytes_before, bytes_after, objective)
    return Decision(kept, reason, drop, speedup, warnings=warnings, **sizes)


def _verdict(speedup: Estimate | None, before: int, after: int, objective: str) -> tuple[bool, str]:
    smaller = after < before
    change = f"{before / max(1, after):.2f}× smaller" if smaller else "not smaller"
    if objective == "size" or speedup is None:
        untimed = " (not timed: the target is not at hand)" if speedup is None and objective != "size" else ""
        return smaller, f"{change} within the drop{untimed}"
    interval = f"{speedup.value:.2f}× [{speedup.low:.2f}, {speedup.high:.2f}]"
    if speedup.high < 1:
        return False, f"slower beyond the noise: {interval}"
    if speedup.low > 1:
        return True, f"faster: {interval}, {change}"
    return smaller, f"as fast within the noise: {interval}, {change}"


def unresolved(drop: Drop) -> str:
    """Say what a split of this size cannot tell."""
    return (
        f"drop of {_points(drop.value)} [{100 * drop.low:.2f}, {100 * drop.high:.2f}] against a limit of "
        f"{_points(drop.limit)}: too few samples to tell; more validation or test data resolve it"
    )


def latency_verdict(limit_s: float | None, latency: tuple[StageLatency, ...]) -> Verdict | None:
    """Judge the shipped file's median at the first batch size against a budget in seconds; None without a budget."""
    if limit_s is None:
        return None
    if not latency:
        return "unresolved"
    return "met" if latency[0].p50_s <= limit_s else "missed"


def _points(value: float) -> str:
    return f"{100 * value:.2f} points"
