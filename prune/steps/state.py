"""Where pruning stands between two steps, and what stays the same over all of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import nn

from distill.prune.attention.heads import Kind
from distill.prune.depth.skipped import Block
from distill.prune.graph.verify import Checks
from distill.prune.record import Decision, GroupRecord
from distill.prune.settings import PruneSettings
from distill.prune.widths.counts import Counts
from distill.prune.widths.latency import Device
from distill.types import Progress


@dataclass(frozen=True)
class Job:
    """What stays the same over all steps: ``initial`` widths by layer, and ``before``, what the model counted.

    ``importance`` is the name of its kind. ``decided`` is done again, where it is given, and nothing is measured then.
    """

    settings: PruneSettings
    importance: str
    checks: Checks
    ignore: tuple[str, ...]
    initial: Mapping[str, int]
    before: Counts
    device: Device | None
    seed: int
    progress: Progress | None
    decided: Sequence[Decision] | None = None

    def tell(self, activity: str, completed: int, total: int) -> None:
        """Say how far a part of the work is, to whoever listens."""
        if self.progress is not None:
            self.progress(activity, completed, total)

    def goal_s(self, before_s: float, share: float) -> float:
        """Return the seconds that are asked for, at a share of the way there."""
        return float(before_s / self.settings.amount**share)


class Width(NamedTuple):
    """The units of a group before the first step and now, and the channels in one."""

    before: int
    now: int
    channels: int


@dataclass(frozen=True)
class Narrowed:
    """Where pruning stands: the model, and by the names of groups what is known of them.

    ``unprunable`` says why groups stay as they are, ``kinds`` what a unit of each attention is. ``before_s`` and
    ``after_s`` are the whole model's on the device, ``blocks`` those that went. ``exhausted`` says that the most that
    may go leaves more than was asked for.
    """

    model: nn.Module
    unprunable: Mapping[str, str] = field(default_factory=dict)
    kinds: Mapping[str, Kind] = field(default_factory=dict)
    widths: Mapping[str, Width] = field(default_factory=dict)
    groups: Mapping[str, GroupRecord] = field(default_factory=dict)
    before_s: float | None = None
    after_s: float | None = None
    blocks: tuple[Block, ...] = ()
    decisions: tuple[Decision, ...] = ()
    exhausted: bool = False

    @property
    def ratio(self) -> float:
        """The share of the prunable channels that went."""
        before = sum(width.before * width.channels for width in self.widths.values())
        return 1 - sum(width.now * width.channels for width in self.widths.values()) / before if before else 0.0
