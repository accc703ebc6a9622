"""One step of pruning: score the groups, choose how many units of each go, cut, look at what came of it, correct."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from torch import nn

from distill.errors import UserError
from distill.prune.depth.skipped import skip_blocks, skipped_of
from distill.prune.goals import FAR
from distill.prune.graph.cutting import BrokenError
from distill.prune.graph.groups import prepare
from distill.prune.graph.verify import output_shapes
from distill.prune.scores.evidence import Evidence
from distill.prune.steps.step import Job, Narrowed, Step, cheapest, scored
from distill.prune.widths.latency import choose_seconds, given_back, snap
from distill.prune.widths.selection import Units, choose, choose_until
from distill.prune.widths.sizes import count

_CORRECTIONS = 5  # cuts at most, until what was reached is what was asked for
_CLOSE = 0.01  # shares this near are reached
_FAR_FAST = 0.1  # speeds this much too high cost channels that nobody asked for
NEAR_S = (0.94, 1.01)
"""Seconds over those that were asked for, between which these are reached."""


@dataclass(frozen=True)
class Cut:
    """Units that went, the model that came of it, and how far it is from a share, or the seconds that it takes.

    ``exhausted`` says that the most that may go leaves more than was asked for.
    """

    units: Units
    model: nn.Module
    distance: float = 0.0
    seconds: float | None = None
    exhausted: bool = False


def narrow(state: Narrowed, job: Job, data: Evidence, *, share: float) -> Narrowed:
    """Cut a model to ``share`` of the way to the goal, and return where it stands then."""
    if job.decided is not None:
        state = replace(state, model=_skipped_as_decided(state, job))
    step = scored(state, job, data)
    if job.device is not None and state.before_s is None:
        seconds = job.device.measure(state.model)
        state = replace(state, before_s=seconds, after_s=seconds)
    while True:
        try:
            cut = _cut(step, state, share)
            break
        except BrokenError as error:
            if job.decided is not None:
                raise UserError(f"decisions: they do not fit this model, they break {error}") from error
            step = step.without(error.culprits)
    removed = {name: len(chosen) for name, chosen in cut.units.items()}
    return replace(
        state,
        model=step.compensated(cut.units, cut.model, data),
        unprunable=step.unprunable,
        makers={**state.makers, **step.makers},
        kinds=step.kinds,
        widths=step.narrowed(cut.units),
        groups={**state.groups, **step.histograms(cut.units)},
        after_s=cut.seconds,
        decisions=(*state.decisions, {"skipped": skipped_of(state.model), "gone": removed}),
        exhausted=cut.exhausted,
    )


def _skipped_as_decided(state: Narrowed, job: Job) -> nn.Module:
    """Take out the blocks that were decided to go in this step.

    Raises:
        UserError: the decisions are of fewer steps, or of another model.
    """
    assert job.decided is not None
    if len(state.decisions) >= len(job.decided):
        raise UserError(f"decisions: they are of {len(job.decided)} steps, {job.settings.steps} are asked for")
    model = prepare(skip_blocks(state.model, job.decided[len(state.decisions)]["skipped"]))
    if output_shapes(model, job.checks.example, job.checks.logits) != job.checks.shapes:
        raise UserError("decisions: without the blocks that are to go, the model returns something else")
    return model


def _cut(step: Step, state: Narrowed, share: float) -> Cut:
    """Choose and cut; what was decided before is done again without measuring."""
    if step.job.decided is not None:
        return _cut_as_decided(step, step.job.decided[len(state.decisions)]["gone"])
    return _by_seconds(step, state, share) if step.job.settings.goal.needs_timing else _by_share(step, share)


def _cut_as_decided(step: Step, removed: dict[str, int]) -> Cut:
    ladders = step.ladders()
    for name, number in removed.items():
        most = max(ladders[name].fine, default=0) if name in ladders else 0
        if number > most:
            raise UserError(f"decisions: {number} units of {name!r} are to go, at most {most} of this model's can")
    units = cheapest(ladders, removed)
    return Cut(units, step.cut(units))


def _by_share(step: Step, share: float) -> Cut:
    """Cut to a share of channels, multiply-accumulates or parameters; on the ends of steps where that keeps near it."""
    nearest = _channels if step.job.settings.goal.counted is None else _counted
    cut = nearest(step, share, step.snapped)
    if cut.distance > FAR and step.snaps:
        cut = min(cut, nearest(step, share, lambda units: units), key=lambda cut: cut.distance)
    return cut if step.job.device is None else replace(cut, seconds=step.job.device.measure(cut.model))


def _channels(step: Step, share: float, move: Callable[[Units], Units]) -> Cut:
    """Cut to a share of the channels. Only a move may be far from it: what is chosen is as near as blocks allow."""
    settings = step.job.settings
    chosen = choose(
        step.candidates(), ratio=settings.amount * share, round_to=settings.round_to, max_ratio=settings.max_ratio
    )
    units = move(chosen)
    return Cut(units, step.cut(units), abs(step.ratio(units) - step.ratio(chosen)))


def _counted(step: Step, share: float, move: Callable[[Units], Units]) -> Cut:
    """Cut to what comes nearest to a share of a count; the aim is corrected by what a cut really leaves."""
    settings, counted = step.job.settings, step.job.settings.goal.counted
    assert counted is not None
    candidates, round_to, max_ratio = step.candidates(), settings.round_to, settings.max_ratio
    now = max(1, getattr(step.sizes, counted))
    goal = (1 - (1 - settings.amount) * share) * getattr(step.job.before, counted) / now

    def left(units: Units) -> float:
        return step.sizes.left({group: len(chosen) for group, chosen in units.items()})[counted]

    most = choose(candidates, ratio=max_ratio, round_to=round_to, max_ratio=max_ratio)
    exhausted = left(most) > goal
    aim, cuts = goal, dict[object, Cut]()
    for _ in range(_CORRECTIONS):
        units = move(choose_until(candidates, goal=aim, left=left, round_to=round_to, max_ratio=max_ratio))
        key = frozenset(units.items())
        if key in cuts:
            break
        pruned = step.cut(units)
        reached = getattr(count(pruned, *step.job.checks.example), counted) / now
        cuts[key] = Cut(units, pruned, abs(reached - goal), exhausted=exhausted)
        if abs(reached - goal) <= _CLOSE:
            break
        aim += goal - reached
    return min(cuts.values(), key=lambda cut: cut.distance)


def _by_seconds(step: Step, state: Narrowed, share: float) -> Cut:
    """Cut until the whole model is as fast as asked: choose by the layers, measure the whole, correct the aim."""
    device, before_s = step.job.device, state.before_s
    if device is None or before_s is None:
        raise UserError("prune.speedup needs a device that measures")
    goal_s = step.job.goal_s(before_s, share)
    by_name = step.ladders()
    ladders = [*by_name.values()]
    # Pairs of what the layers take together, and what the whole took.
    readings = [(step.costs.total({}), state.after_s or before_s)]
    cuts = dict[object, Cut]()
    for attempt in range(_CORRECTIONS):
        step.job.tell("cutting and timing", attempt, _CORRECTIONS)
        aim_s = _aim(readings, goal_s, exact=device.layers is not None)
        removed = choose_seconds(ladders, step.costs, aim_s)
        if device.layers is not None:
            removed = given_back(ladders, step.costs, snap(ladders, step.costs, removed), aim_s)
        if (key := frozenset(removed.items())) in cuts:
            break
        units = cheapest(by_name, removed)
        pruned = step.cut(units)
        seconds = device.measure(pruned)
        if _is_near(seconds, goal_s):
            # One reading in reach may be luck: the more files are tried, the likelier one of them is.
            seconds = math.sqrt(seconds * device.measure(pruned))
        cuts[key] = Cut(units, pruned, seconds=seconds)
        if _is_near(seconds, goal_s):
            break
        readings.append((step.costs.total(removed), seconds))
    step.job.tell("cutting and timing", _CORRECTIONS, _CORRECTIONS)
    return _best([*cuts.values()], goal_s)


def _best(cuts: Sequence[Cut], goal_s: float) -> Cut:
    """Choose a cut by its seconds."""
    # Of those that are fast enough the slowest lost least; one that is far too fast lost more than was asked for.
    slowest = max((cut for cut in cuts if _took(cut) <= goal_s * NEAR_S[1]), key=_took, default=None)
    if slowest is not None and _took(slowest) >= goal_s / (1 + _FAR_FAST):
        return slowest
    reached = [cut for cut in cuts if _took(cut) <= goal_s * (1 + FAR)]
    if reached:
        return min(reached, key=lambda cut: abs(math.log(_took(cut) / goal_s)))
    return min(cuts, key=_took)


def _took(cut: Cut) -> float:
    assert cut.seconds is not None
    return cut.seconds


def _is_near(seconds: float, goal_s: float) -> bool:
    return NEAR_S[0] <= seconds / goal_s <= NEAR_S[1]


def _aim(readings: Sequence[tuple[float, float]], goal_s: float, *, exact: bool) -> float:
    """Say what the layers have to take together so that the whole takes ``goal_s``.

    Args:
        readings: pairs of what the layers took together and what the whole took, in the order of the tries.
        goal_s: what the whole is to take.
        exact: whether the former are seconds, too, so that what lies between layers can be told from one pair.
    """
    above = min((reading for reading in readings if reading[1] > goal_s), default=None)
    below = max((reading for reading in readings if reading[1] <= goal_s), default=None)
    if above is not None and below is not None and above[0] > below[0]:
        share = (goal_s - below[1]) / (above[1] - below[1])
        return below[0] + share * (above[0] - below[0])
    layers, whole = readings[-1]
    return layers + goal_s - whole if exact else layers * goal_s / whole
