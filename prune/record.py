"""What a pruning did, as plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from typing_extensions import TypedDict  # typing's own can be read by pydantic from Python 3.12 on only

from distill.prune.goals import GOALS, Goal


class SkippedBlock(TypedDict):
    """A block that went: its name, and the argument, or the arguments and None, that are returned in its place."""

    name: str
    returns: str | list[str | None]


class Decision(TypedDict):
    """What one step did: the blocks that are ``skipped`` before it, and how many units of each group are ``gone``."""

    skipped: list[SkippedBlock]
    gone: dict[str, int]


@dataclass(frozen=True)
class GroupRecord:
    """Channels that go together: how many there were and are, and how their scores were spread.

    ``stayed`` and ``went`` count units in ``len(stayed)`` equal intervals of the score, from 0 to ``highest``; a score
    of 1 is the mean of the group, in the last step that looked at it.
    """

    name: str
    before: int
    after: int
    highest: float = 0.0
    stayed: tuple[int, ...] = ()
    went: tuple[int, ...] = ()


@dataclass(frozen=True)
class PruneRecord:
    """What pruning did. ``widths`` maps every Conv and Linear layer to its output channels before and after.

    ``asked`` is the goal's name and amount. ``ratio_achieved`` is the share of prunable channels that went;
    ``importance`` the kind that was used. ``latency_before_s`` and ``latency_after_s`` are of the exported model, where
    a device measured it, and ``layer_seconds`` those of each layer alone, before and after. ``blocks`` are whole blocks
    that went. ``decisions`` says which blocks and how many units of each group went in each step: with equal arguments
    they make the same model again without measuring. ``left`` says why layers had to stay as they are, the most costly
    first. ``shortfall`` says that the goal was not reached and what can be; the model is then the nearest to it.
    """

    macs_before: int
    macs_after: int
    parameters_before: int
    parameters_after: int
    widths: dict[str, tuple[int, int]]
    importance: str
    asked: tuple[str, float] = ("ratio", 0.0)
    ratio_achieved: float = 0.0
    latency_before_s: float | None = None
    latency_after_s: float | None = None
    layer_seconds: dict[str, tuple[float, float]] = field(default_factory=dict)
    groups: tuple[GroupRecord, ...] = ()
    blocks: tuple[str, ...] = ()
    decisions: tuple[Decision, ...] = ()
    left: dict[str, str] = field(default_factory=dict)
    shortfall: str | None = None
    warnings: tuple[str, ...] = ()

    @property
    def goal(self) -> Goal:
        """What was asked for."""
        return GOALS[self.asked[0]]

    @property
    def achieved(self) -> float | None:
        """What was reached of the goal, in its own unit; None for a speed-up that nothing measured."""
        return self.goal.achieved(self)


def by_reason(unprunable: Mapping[str, str], most: int | None = None) -> list[str]:
    """Say of layers that stay as they are why, each reason once: "NAME, NAME and 2 more: WHY", of names ``most``."""
    names: dict[str, list[str]] = {}
    for name, why in unprunable.items():
        names.setdefault(why, []).append(name)
    hidden = {why: len(several[most:]) if most else 0 for why, several in names.items()}
    return [
        f"{', '.join(several[:most])}{f' and {hidden[why]} more' if hidden[why] else ''}: {why}"
        for why, several in names.items()
    ]
