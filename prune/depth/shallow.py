"""Narrower layers or fewer of them: for a speed, whatever loses less once both run equally fast.

At batch 1 a small network waits for its layers one after another, and narrower ones are hardly faster; a large one is
better off narrower everywhere. Which holds is measured: blocks go in order of the damage that they do, and after each
few of them the rest is narrowed until the speed is reached.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import accumulate

from torch import nn

from distill.errors import UserError
from distill.prune.depth.blocks import removable_blocks
from distill.prune.depth.damage import rank_blocks
from distill.prune.depth.skipped import Block, skip_blocks, skipped_of
from distill.prune.goals import FAR
from distill.prune.graph.groups import prepare
from distill.prune.scores.evidence import Evidence
from distill.prune.steps.narrow import NEAR_S, narrow
from distill.prune.steps.state import Job, Narrowed

_STEPS = (1, 1, 1, 2, 3)  # blocks that go at once
_EVALUATIONS = 60


def narrow_or_shallow(state: Narrowed, job: Job, data: Evidence, *, share: float) -> Narrowed:
    """Narrow as `narrow` does; where a speed is asked for and data can judge, try it with fewer blocks, too."""
    data.read_anew()
    settings = job.settings
    may_go = settings.goal.needs_timing and settings.depth == "auto" and job.decided is None and not state.decisions
    if not (may_go and data.is_complete):
        return narrow(state, job, data, share=share)
    best = narrow(_fork(state, state.model), job, data, share=share)
    best_loss = data.mean_loss(best.model)
    for blocks in _fewer(state.model, job, data):
        activity = f"without {len(blocks)} block{'s' if len(blocks) > 1 else ''}"
        job.tell(activity, 0, 1)
        shallow = _without(_fork(best, state.model), blocks, job)
        if shallow is None:
            break
        candidate = _to_speed(shallow, job, data, share=share)
        loss = data.mean_loss(candidate.model)
        job.tell(activity, 1, 1)
        if loss >= best_loss and _is_fast(best, job, share, slack=FAR):
            break  # fewer blocks are worse, and still fewer will be
        best, best_loss = candidate, loss
    return best


def _fork(state: Narrowed, model: nn.Module) -> Narrowed:
    """Return a state of its own that begins at a model, and knows how long the first one took."""
    return Narrowed(model, before_s=state.before_s, after_s=state.before_s)


def _fewer(model: nn.Module, job: Job, data: Evidence) -> Iterator[tuple[Block, ...]]:
    """Yield more and more blocks that could go, those that do least damage first."""
    try:
        blocks = removable_blocks(model, job.checks.example, job.checks.logits)
    except UserError:
        return  # none can go
    batches, loss = data.batches_and_loss
    ranked = rank_blocks(
        model,
        blocks,
        batches[:8],
        loss,
        remove=len(blocks),
        max_evaluations=_EVALUATIONS,
        seed=job.seed,
        progress=job.progress,
    )
    for number in accumulate(_STEPS):
        if number > len(ranked):
            return
        yield tuple(removal.block for removal in ranked[:number])


def _without(state: Narrowed, blocks: tuple[Block, ...], job: Job) -> Narrowed | None:
    """Take blocks out and measure what is left; None where that does not run as it should."""
    assert job.device is not None
    try:
        model = prepare(skip_blocks(state.model, blocks))
    except UserError:
        return None
    return replace(state, model=model, blocks=blocks, after_s=job.device.measure(model))


def _to_speed(state: Narrowed, job: Job, data: Evidence, *, share: float) -> Narrowed:
    """Narrow what is left to the speed, unless it has it already."""
    if _is_fast(state, job, share):
        return replace(state, decisions=({"skipped": skipped_of(state.model), "gone": {}},))
    return narrow(state, job, data, share=share)


def _is_fast(state: Narrowed, job: Job, share: float, slack: float = NEAR_S[1] - 1) -> bool:
    assert state.before_s is not None
    assert state.after_s is not None
    return bool(state.after_s <= job.goal_s(state.before_s, share) * (1 + slack))
