"""Narrower layers or fewer of them: for a speed, whatever loses less once both run equally fast.

At batch 1 a small network waits for its layers one after another, and narrower ones are hardly faster; a large one is
better off narrower everywhere. Which holds is measured: blocks go in order of the damage that they do, and after each
few of them the rest is narrowed until the speed is reached.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import accumulate, islice

from torch import nn

from distill.errors import UserError
from distill.prune.depth.blocks import removable_blocks
from distill.prune.depth.damage import rank_blocks
from distill.prune.depth.skipped import Block, skip_blocks
from distill.prune.goals import FAR
from distill.prune.graph.groups import prepare
from distill.prune.scores.evidence import Evidence
from distill.prune.steps.narrow import NEAR_S, narrow
from distill.prune.steps.step import Job, Narrowed

_STEPS = (1, 1, 1, 2, 3)  # blocks that go at once
_EVALUATIONS = 60


def narrow_or_shallow(done: Narrowed, job: Job, data: Evidence, *, share: float) -> Narrowed:
    """Narrow as `narrow` does; where a speed is asked for and data can judge, try it with fewer blocks, too."""
    data.read_anew()
    tries = job.settings.goal.needs_timing and job.settings.depth == "auto" and job.decided is None
    if not (tries and data.is_complete) or done.decisions:
        return narrow(done, job, data, share=share)
    original = done.model
    best = narrow(_fork(done, original), job, data, share=share)
    lost = data.mean_loss(best.model)
    for blocks in _fewer(original, job, data):
        what = f"without {len(blocks)} block{'s' if len(blocks) > 1 else ''}"
        job.tell(what, 0, 1)
        shallow = _without(_fork(best, original), blocks, job)
        if shallow is None:
            break
        found = _to_speed(shallow, job, data, share=share)
        now = data.mean_loss(found.model)
        job.tell(what, 1, 1)
        if now >= lost and _is_fast(best, job, share, slack=FAR):
            break  # fewer blocks are worse, and still fewer will be
        best, lost = found, now
    return best


def _fork(done: Narrowed, model: nn.Module) -> Narrowed:
    """Return a state of its own that begins at a model, and knows how long the first one took."""
    return Narrowed(model, kept={}, before_s=done.before_s, after_s=done.before_s)


def _fewer(model: nn.Module, job: Job, data: Evidence) -> Iterator[list[Block]]:
    """Yield more and more blocks that could go, those that do least damage first."""
    try:
        blocks = removable_blocks(model, job.checks.example, job.checks.logits)
    except UserError:
        return  # none can go
    batches, loss = data.batches_and_loss
    ranked = rank_blocks(
        model,
        blocks,
        list(islice(batches, 8)),
        remove=len(blocks),
        loss=loss,
        max_evaluations=_EVALUATIONS,
        seed=job.seed,
        progress=job.progress,
    )
    for count in accumulate(_STEPS):
        if count > len(ranked):
            return
        yield [removal.block for removal in ranked[:count]]


def _without(done: Narrowed, blocks: list[Block], job: Job) -> Narrowed | None:
    """Take blocks out and measure what is left; None where that does not run as it should."""
    assert job.device is not None
    try:
        done.model = prepare(skip_blocks(done.model, blocks))
    except UserError:
        return None
    done.blocks = list(blocks)
    done.after_s = job.device.measure(done.model)
    return done


def _to_speed(done: Narrowed, job: Job, data: Evidence, *, share: float) -> Narrowed:
    """Narrow what is left to the speed, unless it has it already."""
    if _is_fast(done, job, share):
        return replace(done, decisions=[done.decision({})])
    return narrow(done, job, data, share=share)


def _is_fast(done: Narrowed, job: Job, share: float, slack: float = NEAR_S[1] - 1) -> bool:
    assert done.before_s is not None
    assert done.after_s is not None
    goal_s = done.before_s / job.settings.amount**share
    return bool(done.after_s <= goal_s * (1 + slack))
