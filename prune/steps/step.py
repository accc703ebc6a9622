"""One step of pruning: the model's groups with their scores, and what a choice among their units leaves."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal, NamedTuple

from torch import nn

from distill.errors import UserError
from distill.prune.attention.heads import AttentionGroup, Kind, attention_groups, verified_groups
from distill.prune.depth.skipped import Block
from distill.prune.graph.cutting import BrokenError, cut
from distill.prune.graph.groups import ROOTS, ChannelGroup, Graph, Member, is_depthwise
from distill.prune.graph.verify import Checks
from distill.prune.record import Decision, GroupRecord
from distill.prune.scores.evidence import FEW, Evidence
from distill.prune.scores.importance import IMPORTANCES
from distill.prune.scores.input_means import Means, with_constants
from distill.prune.scores.weights import Scores, unit_scores
from distill.prune.settings import PruneSettings
from distill.prune.widths.latency import Device, Ladder, LayerCosts, by_macs, ladder, shapes_of, snap
from distill.prune.widths.selection import Candidate, Units
from distill.prune.widths.sizes import Counts, Sizes
from distill.types import Progress

_BINS = 20  # of histograms of scores
_CLEARLY = 0.02  # of a loss is a difference


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

    ``unprunable`` says why groups stay as they are, ``makers`` which layers make their channels, ``kinds`` what a unit
    of each attention is. ``before_s`` and ``after_s`` are the whole model's on the device, ``blocks`` those that went.
    ``exhausted`` says that the most that may go leaves more than was asked for.
    """

    model: nn.Module
    unprunable: Mapping[str, str] = field(default_factory=dict)
    makers: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
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


def scored(state: Narrowed, job: Job, data: Evidence) -> Step:
    """Find the groups of the model as it is now, and score their units."""
    model, checks, heads = state.model, job.checks, job.settings.heads
    graph = Graph(model, checks.example, checks.logits)
    attention = attention_groups(model, kinds=state.kinds)
    kinds = dict(state.kinds)
    if heads and attention:
        attention = verified_groups(model, checks.example, checks.logits, kinds=kinds)
        kinds |= {group.name: group.kind for group in attention if isinstance(group, AttentionGroup)}
    # Its projections are cut head by head, or not at all.
    projections = {m.name for group in attention for m in group.members if m.side == "out"}
    layers = [g for g in graph.groups(without=projections) if not g.is_output and not _is_stream(g, projections)]
    groups = [group for group in (*layers, *(attention if heads else ())) if not _is_ignored(group, job.ignore)]
    widths = {group.name: Width(len(group.units), len(group.units), len(group.units[0])) for group in groups}
    unprunable = {**state.unprunable, **{group.name: group.unprunable for group in groups if group.unprunable}}
    hidden = graph.unseen() if not state.decisions else {}
    cut_by_heads = {member.name for group in attention for member in group.members}
    unprunable |= {name: why for name, why in hidden.items() if name not in {*cut_by_heads, *job.ignore}}
    prunable = [group for group in groups if not group.unprunable]
    importance = IMPORTANCES[job.importance]
    evidence = data.gathered(model, prunable, importance) if importance.needs_batches else {}
    means = data.means(model, prunable) if importance.backward == "logits" else {}
    scores = {}
    for group in prunable:
        if (of_units := unit_scores(group, importance, job.seed, evidence)) is not None:
            scores[group.name] = of_units
        else:
            silent = f"importance {job.importance!r} says nothing about it, or 0 throughout"
            unprunable.setdefault(group.name, silent)
    sizes = Sizes(model, groups, checks.example)
    return Step(job, model, groups, scores, means, sizes, kinds, {**widths, **state.widths}, unprunable)


@dataclass(frozen=True, eq=False)
class Step:
    """A model's groups with their scores; ``means`` are those of what layers read, ``sizes`` tell what a cut leaves.

    ``kinds``, ``widths`` and ``unprunable`` are the state's, with what this step adds.
    """

    job: Job
    model: nn.Module
    groups: list[ChannelGroup]
    scores: dict[str, Scores]
    means: Means
    sizes: Sizes
    kinds: Mapping[str, Kind]
    widths: Mapping[str, Width]
    unprunable: Mapping[str, str]

    def without(self, culprits: Mapping[str, str]) -> Step:
        """Return the same step, in which some groups stay as they are, for a reason each."""
        return replace(self, unprunable={**self.unprunable, **culprits})

    @property
    def makers(self) -> dict[str, tuple[str, ...]]:
        """The layers whose outputs the channels of each group are."""
        return {group.name: tuple(m.name for m in group.members if _makes(m)) or (group.name,) for group in self.groups}

    @property
    def free(self) -> list[ChannelGroup]:
        """The groups that may be cut."""
        return [group for group in self.groups if group.name not in self.unprunable]

    def candidates(self) -> list[Candidate]:
        """Describe the free groups for the choice.

        Layers of one pattern compete; where scores can be compared and what is to be saved is known, all layers do.
        """
        whole, counted = self.job.settings.global_, self.job.settings.goal.counted
        candidates = []
        for group in self.free:
            scores, scope = self.scores[group.name].units, group.pattern if whole else group.name
            mean = self.scores[group.name].mean
            if whole and counted is not None and mean is not None:
                worth = mean / self._saving(group, counted)
                scores, scope = tuple(score * worth for score in scores), ""
            initial = self.widths[group.name].before
            candidates.append(Candidate(group.name, scope, scores, len(group.units[0]), initial))
        return candidates

    def _saving(self, group: ChannelGroup, counted: Literal["macs", "parameters"]) -> float:
        """Return the share of the MACs or parameters that goes with a unit, when half of the group goes."""
        half = max(1, len(group.units) // 2)
        return max(1e-12, (1 - self.sizes.left({group.name: half})[counted]) / half)

    def ladders(self) -> dict[str, Ladder]:
        """Describe how each candidate is narrowed, by what its kernels like."""
        settings = self.job.settings
        weights = {group.name: self._weight(group) for group in self.free}
        return {
            candidate.name: ladder(
                candidate, weights[candidate.name], round_to=settings.round_to, max_ratio=settings.max_ratio
            )
            for candidate in self.candidates()
        }

    def _weight(self, group: ChannelGroup) -> float:
        """Return what a group is worth to others: all its scores where they compare, else the layers that make it."""
        mean = self.scores[group.name].mean
        if self.job.settings.global_ and mean is not None:
            return mean * len(group.units)
        return max(1, sum(map(_makes, group.members)))

    @cached_property
    def costs(self) -> LayerCosts:
        """What the layers cost on the device, or in multiply-accumulates where it cannot tell."""
        device = self.job.device
        assert device is not None
        shapes = shapes_of(self.model, self.job.checks.example, device.batch)
        return LayerCosts(shapes, self.sizes, device.layers or by_macs)

    def snapped(self, units: Units) -> Units:
        """Move widths to the ends of the device's stairs, where it can tell."""
        if not self.snaps or not units:
            return units
        ladders = self.ladders()
        removed = snap([*ladders.values()], self.costs, {name: len(chosen) for name, chosen in units.items()})
        return cheapest(ladders, removed)

    @property
    def snaps(self) -> bool:
        """Whether the device can tell where its steps end."""
        return self.job.device is not None and self.job.device.layers is not None

    def ratio(self, units: Units) -> float:
        """Return the share of the prunable channels that these units are."""
        before = sum(width.before * width.channels for width in self.widths.values())
        return sum(len(chosen) * self.widths[name].channels for name, chosen in units.items()) / max(1, before)

    def cut(self, units: Units) -> nn.Module:
        """Return a checked copy without these units."""
        return cut(self.model, self._channels(units), self.job.checks, self.job.progress)

    def compensated(self, units: Units, pruned: nn.Module, data: Evidence) -> nn.Module:
        """Return what was cut, with the means of what went in its biases where the loss is lower for it.

        The first order says that it is, but what went may be more than that holds for.
        """
        channels = self._channels(units)
        wide = with_constants(self.model, self.groups, channels, self.means)
        if wide is None:
            return pruned
        try:
            narrow = cut(wide, channels, self.job.checks, self.job.progress)
            plain, made_up_for = (data.mean_loss(model, FEW) for model in (pruned, narrow))
        except (BrokenError, UserError):
            return pruned  # it cannot be compared: batch norms have no statistics of a batch of one row, say
        # Less is chance, or rounding: where batch norms follow, a constant changes nothing.
        return narrow if made_up_for < plain - _CLEARLY * abs(plain) else pruned

    def _channels(self, units: Units) -> dict[str, list[int]]:
        of = {group.name: group.units for group in self.groups}
        return {name: [i for unit in chosen for i in of[name][unit]] for name, chosen in units.items()}

    def narrowed(self, units: Units) -> dict[str, Width]:
        """Return the widths of all groups without these units."""
        return {name: width._replace(now=width.now - len(units.get(name, ()))) for name, width in self.widths.items()}

    def histograms(self, units: Units) -> dict[str, GroupRecord]:
        """Return how the scores of these units and of those that stay are spread, by free group."""
        records = {}
        for group in self.free:
            removed = set(units.get(group.name, ()))
            scores = self.scores[group.name].units
            highest = max(scores) or 1.0
            bins = [min(_BINS - 1, int(score / highest * _BINS)) for score in scores]
            records[group.name] = GroupRecord(
                name=group.name,
                before=self.widths[group.name].before,
                after=len(scores) - len(removed),
                highest=highest,
                stayed=tuple(sum(b == n and i not in removed for i, b in enumerate(bins)) for n in range(_BINS)),
                went=tuple(sum(b == n and i in removed for i, b in enumerate(bins)) for n in range(_BINS)),
            )
        return records


def cheapest(ladders: Mapping[str, Ladder], removed: Mapping[str, int]) -> Units:
    """Name the cheapest units, so many of each group."""
    return {name: tuple(sorted(ladders[name].ranked[:number])) for name, number in removed.items() if number}


def _is_stream(group: ChannelGroup, projections: Collection[str]) -> bool:
    """Tell the width that attention reads: every layer adds to it, it costs most, and few models run without it whole.

    Heads and the widths in between hold nearly all multiply-accumulates of a transformer anyway.
    """
    return any(member.side == "in" and member.name in projections for member in group.members)


def _makes(member: Member) -> bool:
    return member.side == "out" and isinstance(member.module, ROOTS) and not is_depthwise(member.module)


def _is_ignored(group: ChannelGroup, ignore: tuple[str, ...]) -> bool:
    return any(member.side == "out" and member.name in ignore for member in group.members)
