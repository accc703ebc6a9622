"""A model on its way to a target: its groups with their scores, and what a choice among them would leave."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn
from torch.nn.modules.conv import _ConvNd

from distill.errors import UserError
from distill.prune.attention.check import verified_groups
from distill.prune.attention.heads import AttentionGroup, Kind, attention_groups
from distill.prune.depth.skipped import Block, skipped_of
from distill.prune.graph.cutting import BrokenError, Checks, cut
from distill.prune.graph.groups import ChannelGroup, Graph, is_depthwise
from distill.prune.record import GroupRecord
from distill.prune.scores.evidence import FEW, Evidence
from distill.prune.scores.importance import IMPORTANCES
from distill.prune.scores.means import with_constants
from distill.prune.scores.weights import Scores, unit_scores
from distill.prune.settings import PruneSettings
from distill.prune.widths.counts import Counts
from distill.prune.widths.latency import Device, Ladder, LayerCosts, by_macs, ladder, shapes_of, snap
from distill.prune.widths.selection import Candidate
from distill.prune.widths.sizes import Sizes
from distill.types import Progress

_BINS = 20  # of histograms of scores
_CLEARLY = 0.02  # of a loss is a difference

Units = Mapping[str, tuple[int, ...]]
Decision = Mapping[str, Any]
"""What one step did: "skipped" blocks, as `skipped_of` has them, and "gone", units by group."""


@dataclass(frozen=True)
class Job:
    """What stays the same over all steps: ``initial`` widths by layer, and ``before``, what the model counted."""

    settings: PruneSettings
    kind: str
    checks: Checks
    ignore: tuple[str, ...]
    initial: Mapping[str, int]
    before: Counts
    device: Device | None
    seed: int
    progress: Progress | None
    decided: Sequence[Decision] | None = None

    def tell(self, what: str, done: int, total: int) -> None:
        """Say how far a part of the work is, to whoever asked."""
        if self.progress is not None:
            self.progress(what, done, total)


@dataclass
class Narrowed:
    """Where pruning stands: the model, and the groups that stay and why.

    ``kinds`` says what a unit of each attention is; ``widths`` has each group's units before and now, and the channels
    in one. ``before_s`` and ``after_s`` are the whole model's on the device, ``blocks`` those that went.
    """

    model: nn.Module
    kept: dict[str, str] = field(default_factory=dict)
    kinds: dict[str, Kind] = field(default_factory=dict)
    widths: dict[str, list[int]] = field(default_factory=dict)
    before_s: float | None = None
    after_s: float | None = None
    blocks: list[Block] = field(default_factory=list)
    groups: dict[str, GroupRecord] = field(default_factory=dict)
    exhausted: bool = False  # the most that may go leaves more than was asked for
    decisions: list[Decision] = field(default_factory=list)

    @property
    def ratio(self) -> float:
        """The share of the prunable channels that went."""
        before = sum(first * size for first, _, size in self.widths.values())
        return 1 - sum(now * size for _, now, size in self.widths.values()) / before if before else 0.0

    def decision(self, gone: Mapping[str, int]) -> Decision:
        """Describe a step: the blocks that went before it, and how many units of each group."""
        return {"skipped": skipped_of(self.model), "gone": dict(gone)}


class Step:
    """A model's groups with their scores, and what a choice among them would leave."""

    def __init__(self, done: Narrowed, job: Job, data: Evidence) -> None:
        self.done, self.job, self.model = done, job, done.model
        checks = job.checks
        graph = Graph(self.model, checks.example, checks.logits)
        attention = attention_groups(self.model, kinds=done.kinds)
        if job.settings.heads and attention:
            attention = verified_groups(self.model, checks.example, checks.logits, kinds=done.kinds)
            done.kinds |= {group.name: group.kind for group in attention if isinstance(group, AttentionGroup)}
        # Its projections are cut head by head, or not at all.
        projections = {m.name for group in attention for m in group.members if m.side == "out"}
        layers = [g for g in graph.groups(without=projections) if not g.is_output and not _is_stream(g, projections)]
        self.groups = [
            g for g in (*layers, *(attention if job.settings.heads else ())) if not _is_ignored(g, job.ignore)
        ]
        for group in self.groups:
            done.widths.setdefault(group.name, [len(group.units)] * 2 + [len(group.units[0])])
        done.kept |= {group.name: group.kept for group in self.groups if group.kept}
        known = [group for group in self.groups if not group.kept]
        importance = IMPORTANCES[job.kind]
        evidence = data.gathered(self.model, known, importance) if importance.needs_batches else {}
        self._channel_means = data.means(self.model, known) if importance.backward == "logits" else {}
        self.scores: dict[str, Scores] = {}
        for group in known:
            scores = unit_scores(group, importance, job.seed, evidence)
            if scores is None:
                done.kept.setdefault(group.name, f"importance {job.kind!r} says nothing about it, or 0 throughout")
            else:
                self.scores[group.name] = scores
        self.sizes = Sizes(self.model, self.groups, checks.example)
        self._costs: LayerCosts | None = None

    @property
    def free(self) -> list[ChannelGroup]:
        """The groups that may be cut."""
        return [group for group in self.groups if group.name not in self.done.kept]

    def candidates(self) -> list[Candidate]:
        """Describe the free groups for the choice.

        Layers of one pattern compete; where scores can be compared and what is to be saved is known, all layers do.
        """
        whole, counted = self.job.settings.global_, self.job.settings.goal.counted
        found = []
        for group in self.free:
            scores, scope = self.scores[group.name].units, group.pattern if whole else group.name
            mean = self.scores[group.name].mean
            if whole and counted is not None and mean is not None:
                worth = mean / self._saving(group, counted)
                scores, scope = tuple(score * worth for score in scores), ""
            found.append(
                Candidate(
                    name=group.name,
                    scope=scope,
                    scores=scores,
                    unit=len(group.units[0]),
                    initial=self.done.widths[group.name][0],
                )
            )
        return found

    def _saving(self, group: ChannelGroup, what: str) -> float:
        """Return the share of the MACs or parameters that goes with a unit, when half of the group goes."""
        half = max(1, len(group.units) // 2)
        return max(1e-12, (1 - self.sizes.left({group.name: half})[what]) / half)

    def ladders(self, candidates: list[Candidate]) -> list[Ladder]:
        """Describe how each candidate is narrowed, by what its kernels like."""
        settings = self.job.settings
        weights = {group.name: self._weight(group) for group in self.free}
        return [
            ladder(one, weights[one.name], round_to=settings.round_to, max_ratio=settings.max_ratio)
            for one in candidates
        ]

    def _weight(self, group: ChannelGroup) -> float:
        """Return what a group is worth to others: all its scores where they compare, else the layers that make it."""
        mean = self.scores[group.name].mean
        if self.job.settings.global_ and mean is not None:
            return mean * len(group.units)
        return max(1, sum(map(_makes, group.members)))

    @property
    def costs(self) -> LayerCosts:
        """What the layers cost on the device, or in multiply-accumulates where it cannot tell."""
        device = self.job.device
        assert device is not None
        if self._costs is None:
            shapes = shapes_of(self.model, self.job.checks.example, device.batch)
            self._costs = LayerCosts(shapes, self.sizes, device.layers or by_macs)
        return self._costs

    def snapped(self, units: Units) -> Units:
        """Move widths to the ends of the device's stairs, where it can tell."""
        if not self.snaps or not units:
            return units
        rungs = self.ladders(self.candidates())
        gone = snap(rungs, self.costs, {name: len(chosen) for name, chosen in units.items()})
        return self.units({one.name: one for one in rungs}, gone)

    @property
    def snaps(self) -> bool:
        """Whether the device can tell where its steps end."""
        return self.job.device is not None and self.job.device.layers is not None

    def gone(self, units: Units) -> float:
        """Return the share of the prunable channels that these units are."""
        before = sum(first * size for first, _, size in self.done.widths.values())
        return sum(len(chosen) * self.done.widths[name][2] for name, chosen in units.items()) / max(1, before)

    @staticmethod
    def units(rungs: Mapping[str, Ladder], gone: Mapping[str, int]) -> Units:
        """Name the cheapest units, so many of each group."""
        return {name: tuple(sorted(rungs[name].ranked[:number])) for name, number in gone.items() if number}

    def cut(self, units: Units) -> nn.Module:
        """Return a checked copy without these units."""
        return cut(self.model, self._channels(units), self.job.checks, self.job.progress)

    def compensated(self, units: Units, pruned: nn.Module, data: Evidence) -> nn.Module:
        """Return what was cut, with the means of what went in its biases where the loss is lower for it.

        The first order says that it is, but what went may be more than that holds for.
        """
        channels = self._channels(units)
        wide = with_constants(self.model, self.groups, channels, self._channel_means)
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

    def note(self, units: Units) -> None:
        """Keep how the scores of those that went and of those that stayed are spread."""
        for group in self.free:
            gone = set(units.get(group.name, ()))
            self.done.widths[group.name][1] -= len(gone)
            scores = self.scores[group.name].units
            highest = max(scores) or 1.0
            bins = [min(_BINS - 1, int(score / highest * _BINS)) for score in scores]
            known = self.done.groups.get(group.name)
            self.done.groups[group.name] = GroupRecord(
                name=group.name,
                before=len(scores) if known is None else known.before,
                after=len(scores) - len(gone),
                highest=highest,
                stayed=tuple(sum(b == n and i not in gone for i, b in enumerate(bins)) for n in range(_BINS)),
                went=tuple(sum(b == n and i in gone for i, b in enumerate(bins)) for n in range(_BINS)),
            )


def _is_stream(group: ChannelGroup, projections: Collection[str]) -> bool:
    """Tell the width that attention reads: every layer adds to it, it costs most, and few models run without it whole.

    Heads and the widths in between hold nearly all multiply-accumulates of a transformer anyway.
    """
    return any(member.side == "in" and member.name in projections for member in group.members)


def _makes(member: object) -> bool:
    side, module = getattr(member, "side", ""), getattr(member, "module", None)
    return side == "out" and isinstance(module, _ConvNd | nn.Linear) and not is_depthwise(module)


def _is_ignored(group: ChannelGroup, ignore: tuple[str, ...]) -> bool:
    return any(member.side == "out" and member.name in ignore for member in group.members)


def widths_of_layers(model: nn.Module) -> dict[str, int]:
    """Return the output channels of every Conv and Linear layer."""
    widths = {}
    for name, module in model.named_modules():
        if isinstance(module, _ConvNd):
            widths[name] = module.out_channels
        elif isinstance(module, nn.Linear):
            widths[name] = module.out_features
    return widths
