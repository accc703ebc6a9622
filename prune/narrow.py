"""One step of pruning: score the groups, choose how many units of each go, cut, look at what came of it, correct."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn
from torch.nn.modules.conv import _ConvNd

from distill.errors import UserError
from distill.prune.attention.check import verified_groups
from distill.prune.attention.heads import AttentionGroup, Kind, attention_groups
from distill.prune.counts import Counts, count
from distill.prune.cutting import BrokenError, Checks, Progress, cut
from distill.prune.depth.skipped import Block, skip_blocks, skipped_of
from distill.prune.evidence import Evidence
from distill.prune.graph import ChannelGroup, Graph, is_depthwise, prepare
from distill.prune.importance import FROM_BATCHES, unit_scores
from distill.prune.latency import (
    Device,
    Ladder,
    LayerCosts,
    by_macs,
    choose_seconds,
    given_back,
    ladder,
    shapes_of,
    snap,
)
from distill.prune.record import GroupRecord
from distill.prune.selection import Candidate, choose, choose_until
from distill.prune.settings import PruneSettings
from distill.prune.sizes import Sizes

_CORRECTIONS = 5  # cuts at most, until what was reached is what was asked for
_CLOSE = 0.01  # shares this near are reached
FAR = 0.05  # shares this far are missed
NEAR_S = (0.94, 1.01)  # seconds over those asked for that are reached
_BINS = 20

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


def narrow(done: Narrowed, job: Job, data: Evidence, *, share: float) -> Narrowed:
    """Cut a model to ``share`` of the way to the target, and return where it stands then."""
    if job.decided is not None:
        done.model = prepare(skip_blocks(done.model, job.decided[len(done.decisions)]["skipped"]))
    step = _Step(done, job, data)
    if job.device is not None and done.before_s is None and job.decided is None:
        done.before_s = done.after_s = job.device.measure(done.model)
    while True:
        try:
            units, pruned = _chosen(step, share)
            break
        except BrokenError as error:
            done.kept |= error.culprits
    step.note(units)
    done.decisions.append(done.decision({name: len(chosen) for name, chosen in units.items()}))
    done.model = pruned
    return done


def _chosen(step: _Step, share: float) -> tuple[Units, nn.Module]:
    """Choose and cut; what was decided before is done again without measuring."""
    job = step.job
    if job.decided is not None:
        rungs = {one.name: one for one in step.ladders(step.candidates())}
        gone = {name: n for name, n in job.decided[len(step.done.decisions)]["gone"].items() if name in rungs}
        units = step.units(rungs, gone)
        return units, step.cut(units)
    return _by_seconds(step, share) if job.settings.asked[0] == "speedup" else _by_share(step, share)


class _Step:
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
        evidence = data.gathered(self.model, known, job.kind) if job.kind in FROM_BATCHES else {}
        self.scores: dict[str, list[float]] = {}
        for group in known:
            found = unit_scores(group, job.kind, job.seed, evidence)
            if found is None:
                done.kept.setdefault(group.name, f"importance {job.kind!r} says nothing about it, or 0 throughout")
            else:
                self.scores[group.name] = found
        self.sizes = Sizes(self.model, self.groups, checks.example)
        self._costs: LayerCosts | None = None

    @property
    def free(self) -> list[ChannelGroup]:
        """The groups that may be cut."""
        return [group for group in self.groups if group.name not in self.done.kept]

    def candidates(self) -> list[Candidate]:
        """Describe the free groups for the choice."""
        whole = self.job.settings.global_
        return [
            Candidate(
                name=group.name,
                scope=group.pattern if whole else group.name,
                scores=tuple(self.scores[group.name]),
                unit=len(group.units[0]),
                initial=self.done.widths[group.name][0],
            )
            for group in self.free
        ]

    def ladders(self, candidates: list[Candidate]) -> list[Ladder]:
        """Describe how each candidate is narrowed, by what its kernels like."""
        settings = self.job.settings
        makers = {group.name: max(1, sum(map(_makes, group.members))) for group in self.free}
        return [
            ladder(one, makers[one.name], round_to=settings.round_to, max_ratio=settings.max_ratio)
            for one in candidates
        ]

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
        of = {group.name: group.units for group in self.groups}
        channels = {name: [i for unit in chosen for i in of[name][unit]] for name, chosen in units.items()}
        return cut(self.model, channels, self.job.checks, self.job.progress)

    def note(self, units: Units) -> None:
        """Keep how the scores of those that went and of those that stayed are spread."""
        for group in self.free:
            gone = set(units.get(group.name, ()))
            self.done.widths[group.name][1] -= len(gone)
            scores = self.scores[group.name]
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


def _by_share(step: _Step, share: float) -> tuple[Units, nn.Module]:
    """Cut to a share of channels, multiply-accumulates or parameters; on the ends of steps where that keeps near it."""
    found = _nearest(step, share, step.snapped)
    if found[0] > FAR and step.snaps:
        found = min(found, _nearest(step, share, lambda units: units), key=lambda one: one[0])
    _, units, pruned = found
    if step.job.device is not None:
        step.done.after_s = step.job.device.measure(pruned)
    return units, pruned


def _nearest(step: _Step, share: float, move: Callable[[Units], Units]) -> tuple[float, Units, nn.Module]:
    """Return what comes nearest to the share, and how far from it; the aim is corrected by what a cut really leaves."""
    settings = step.job.settings
    name, asked = settings.asked
    candidates = step.candidates()
    limits = {"round_to": settings.round_to, "max_ratio": settings.max_ratio}
    if name == "ratio":
        units = move(choose(candidates, ratio=asked * share, **limits))  # type: ignore[arg-type]
        # Only a move may be far from what was chosen: that is as near as blocks allow.
        chosen = choose(candidates, ratio=asked * share, **limits)  # type: ignore[arg-type]
        return abs(step.gone(units) - step.gone(chosen)), units, step.cut(units)
    whole = getattr(step.job.before, name)
    goal = (1 - (1 - asked) * share) * whole / max(1, getattr(step.sizes, name))

    def left(units: Units) -> float:
        return step.sizes.left({group: len(chosen) for group, chosen in units.items()})[name]

    most = choose(candidates, ratio=settings.max_ratio, **limits)  # type: ignore[arg-type]
    step.done.exhausted = left(most) > goal
    aim, tried = goal, dict[tuple[tuple[str, int], ...], tuple[float, Units, nn.Module]]()
    for _ in range(_CORRECTIONS):
        units = move(choose_until(candidates, goal=aim, left=left, **limits))  # type: ignore[arg-type]
        key = tuple(sorted((group, len(chosen)) for group, chosen in units.items()))
        if key in tried:
            break
        pruned = step.cut(units)
        now = getattr(count(pruned, *step.job.checks.example), name) / max(1, getattr(step.sizes, name))
        tried[key] = abs(now - goal), units, pruned
        if abs(now - goal) <= _CLOSE:
            break
        aim += goal - now
    return min(tried.values(), key=lambda one: one[0])


def _by_seconds(step: _Step, share: float) -> tuple[Units, nn.Module]:
    """Cut until the whole model is as fast as asked: choose by the layers, measure the whole, correct the aim."""
    device, before_s = step.job.device, step.done.before_s
    if device is None or before_s is None:
        raise UserError("prune.speedup needs a device that measures")
    goal_s = before_s / step.job.settings.asked[1] ** share
    ladders = step.ladders(step.candidates())
    rungs = {one.name: one for one in ladders}
    now_s = step.done.after_s or before_s
    # Pairs of what the layers take together, and what the whole took.
    known = [(step.costs.total({}), now_s)]
    tried = dict[tuple[tuple[str, int], ...], tuple[float, Units, nn.Module]]()
    for _ in range(_CORRECTIONS):
        aim_s = _aim(known, goal_s, exact=device.layers is not None)
        gone = choose_seconds(ladders, step.costs, aim_s)
        if device.layers is not None:
            gone = given_back(ladders, step.costs, snap(ladders, step.costs, gone), aim_s)
        key = tuple(sorted(gone.items()))
        if key in tried:
            break
        units = step.units(rungs, gone)
        pruned = step.cut(units)
        seconds = device.measure(pruned)
        tried[key] = seconds, units, pruned
        if NEAR_S[0] <= seconds / goal_s <= NEAR_S[1]:
            break
        known.append((step.costs.total(gone), seconds))
    fast = [one for one in tried.values() if one[0] <= goal_s * NEAR_S[1]]
    # Of those that are fast enough the slowest lost least; where none is, the fastest comes nearest.
    seconds, units, pruned = max(fast, key=lambda one: one[0]) if fast else min(tried.values(), key=lambda one: one[0])
    step.done.after_s = seconds
    return units, pruned


def _aim(known: Sequence[tuple[float, float]], goal_s: float, *, exact: bool) -> float:
    """Say what the layers have to take together so that the whole takes ``goal_s``.

    Args:
        known: pairs of both that were seen, in the order of the tries.
        goal_s: what the whole is to take.
        exact: whether the former are seconds, too, so that what lies between layers can be told from one pair.
    """
    above = min((one for one in known if one[1] > goal_s), default=None)
    below = max((one for one in known if one[1] <= goal_s), default=None)
    if above is not None and below is not None and above[0] > below[0]:
        share = (goal_s - below[1]) / (above[1] - below[1])
        return below[0] + share * (above[0] - below[0])
    layers, whole = known[-1]
    return layers + goal_s - whole if exact else layers * goal_s / whole


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
