"""One step of pruning: score the groups, choose how many units of each go, cut, look at what came of it, correct."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypeAlias

from torch import nn

from distill.errors import UserError
from distill.prune.depth.skipped import skip_blocks
from distill.prune.goals import FAR
from distill.prune.graph.cutting import BrokenError
from distill.prune.graph.groups import prepare
from distill.prune.graph.verify import output_shapes
from distill.prune.scores.evidence import Evidence
from distill.prune.steps.step import Job, Narrowed, Step, Units
from distill.prune.widths.counts import count
from distill.prune.widths.latency import choose_seconds, given_back, snap
from distill.prune.widths.selection import choose, choose_until

_CORRECTIONS = 5  # cuts at most, until what was reached is what was asked for
_CLOSE = 0.01  # shares this near are reached
_FAR_FAST = 0.1  # speeds this much too high cost channels that nobody asked for
NEAR_S = (0.94, 1.01)  # seconds over those asked for that are reached

Tried: TypeAlias = tuple[float, Units, nn.Module]
"""Seconds of a cut, the units that went, and the model that came of it."""


def narrow(done: Narrowed, job: Job, data: Evidence, *, share: float) -> Narrowed:
    """Cut a model to ``share`` of the way to the target, and return where it stands then."""
    if job.decided is not None:
        done.model = _skipped_as_decided(done, job)
    step = Step(done, job, data)
    if job.device is not None and done.before_s is None and job.decided is None:
        done.before_s = done.after_s = job.device.measure(done.model)
    while True:
        try:
            units, pruned = _chosen(step, share)
            break
        except BrokenError as error:
            if job.decided is not None:
                raise UserError(f"decisions: they do not fit this model, they break {error}") from error
            done.kept |= error.culprits
    step.note(units)
    done.decisions.append(done.decision({name: len(chosen) for name, chosen in units.items()}))
    done.model = step.compensated(units, pruned, data)
    return done


def _skipped_as_decided(done: Narrowed, job: Job) -> nn.Module:
    """Take out the blocks that were decided to go in this step.

    Raises:
        UserError: the decisions are of fewer steps, or of another model.
    """
    assert job.decided is not None
    if len(done.decisions) >= len(job.decided):
        raise UserError(f"decisions: they are of {len(job.decided)} steps, {job.settings.steps} are asked for")
    model = prepare(skip_blocks(done.model, job.decided[len(done.decisions)]["skipped"]))
    if output_shapes(model, job.checks.example, job.checks.logits) != job.checks.shapes:
        raise UserError("decisions: without the blocks that are to go, the model returns something else")
    return model


def _chosen(step: Step, share: float) -> tuple[Units, nn.Module]:
    """Choose and cut; what was decided before is done again without measuring."""
    job = step.job
    if job.decided is not None:
        rungs = {one.name: one for one in step.ladders(step.candidates())}
        gone = job.decided[len(step.done.decisions)]["gone"]
        for name, number in gone.items():
            most = max(rungs[name].fine, default=0) if name in rungs else 0
            if number > most:
                raise UserError(f"decisions: {number} units of {name!r} are to go, at most {most} of this model's can")
        units = step.units(rungs, gone)
        return units, step.cut(units)
    return _by_seconds(step, share) if job.settings.goal.needs_timing else _by_share(step, share)


def _by_share(step: Step, share: float) -> tuple[Units, nn.Module]:
    """Cut to a share of channels, multiply-accumulates or parameters; on the ends of steps where that keeps near it."""
    found = _nearest(step, share, step.snapped)
    if found[0] > FAR and step.snaps:
        found = min(found, _nearest(step, share, lambda units: units), key=lambda one: one[0])
    _, units, pruned = found
    if step.job.device is not None:
        step.done.after_s = step.job.device.measure(pruned)
    return units, pruned


def _nearest(step: Step, share: float, move: Callable[[Units], Units]) -> tuple[float, Units, nn.Module]:
    """Return what comes nearest to the share, and how far from it; the aim is corrected by what a cut really leaves."""
    settings = step.job.settings
    counted, amount = settings.goal.counted, settings.amount
    candidates = step.candidates()
    limits = {"round_to": settings.round_to, "max_ratio": settings.max_ratio}
    if counted is None:
        units = move(choose(candidates, ratio=amount * share, **limits))  # type: ignore[arg-type]
        # Only a move may be far from what was chosen: that is as near as blocks allow.
        chosen = choose(candidates, ratio=amount * share, **limits)  # type: ignore[arg-type]
        return abs(step.gone(units) - step.gone(chosen)), units, step.cut(units)
    whole = getattr(step.job.before, counted)
    goal = (1 - (1 - amount) * share) * whole / max(1, getattr(step.sizes, counted))

    def left(units: Units) -> float:
        return step.sizes.left({group: len(chosen) for group, chosen in units.items()})[counted]

    most = choose(candidates, ratio=settings.max_ratio, **limits)  # type: ignore[arg-type]
    step.done.exhausted = left(most) > goal
    aim, tried = goal, dict[tuple[tuple[str, int], ...], tuple[float, Units, nn.Module]]()
    for _ in range(_CORRECTIONS):
        units = move(choose_until(candidates, goal=aim, left=left, **limits))  # type: ignore[arg-type]
        key = tuple(sorted((group, len(chosen)) for group, chosen in units.items()))
        if key in tried:
            break
        pruned = step.cut(units)
        now = getattr(count(pruned, *step.job.checks.example), counted) / max(1, getattr(step.sizes, counted))
        tried[key] = abs(now - goal), units, pruned
        if abs(now - goal) <= _CLOSE:
            break
        aim += goal - now
    return min(tried.values(), key=lambda one: one[0])


def _by_seconds(step: Step, share: float) -> tuple[Units, nn.Module]:
    """Cut until the whole model is as fast as asked: choose by the layers, measure the whole, correct the aim."""
    device, before_s = step.job.device, step.done.before_s
    if device is None or before_s is None:
        raise UserError("prune.speedup needs a device that measures")
    goal_s = before_s / step.job.settings.amount**share
    ladders = step.ladders(step.candidates())
    rungs = {one.name: one for one in ladders}
    now_s = step.done.after_s or before_s
    # Pairs of what the layers take together, and what the whole took.
    known = [(step.costs.total({}), now_s)]
    tried = dict[tuple[tuple[str, int], ...], Tried]()
    for attempt in range(_CORRECTIONS):
        step.job.tell("cutting and timing", attempt, _CORRECTIONS)
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
        if _is_near(seconds, goal_s):
            # One reading in reach may be luck: the more files are tried, the likelier one of them is.
            seconds = math.sqrt(seconds * device.measure(pruned))
        tried[key] = seconds, units, pruned
        if _is_near(seconds, goal_s):
            break
        known.append((step.costs.total(gone), seconds))
    step.job.tell("cutting and timing", _CORRECTIONS, _CORRECTIONS)
    seconds, units, pruned = _kept(list(tried.values()), goal_s)
    step.done.after_s = seconds
    return units, pruned


def _kept(tried: Sequence[Tried], goal_s: float) -> Tried:
    """Choose a cut by its seconds, among those that were tried."""
    fast = [one for one in tried if one[0] <= goal_s * NEAR_S[1]]
    # Of those that are fast enough the slowest lost least; one that is far too fast lost more than was asked for.
    slowest = max(fast, key=lambda one: one[0], default=None)
    if slowest is not None and slowest[0] >= goal_s / (1 + _FAR_FAST):
        return slowest
    reached = [one for one in tried if one[0] <= goal_s * (1 + FAR)]
    if reached:
        return min(reached, key=lambda one: abs(math.log(one[0] / goal_s)))
    return min(tried, key=lambda one: one[0])


def _is_near(seconds: float, goal_s: float) -> bool:
    return NEAR_S[0] <= seconds / goal_s <= NEAR_S[1]


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
