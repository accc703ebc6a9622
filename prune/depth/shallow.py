"""Narrower layers or fewer of them: for a speed, whatever loses less once both run equally fast.

At batch 1 a small network waits for its layers one after another, and narrower ones are hardly faster; a large one is
better off narrower everywhere. Which holds is measured: blocks go in order of the damage that they do, and after each
few of them the rest is narrowed until the speed is reached.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

from distill.errors import UserError
from distill.prune.depth.blocks import removable_blocks
from distill.prune.depth.skipped import Block, skip_blocks, skipped_of, skipping
from distill.prune.goals import FAR
from distill.prune.graph.groups import prepare
from distill.prune.modules import Loss, explained, seeded
from distill.prune.scores.evidence import Evidence
from distill.prune.steps.narrow import NEAR_S, narrow
from distill.prune.steps.step import Job, Narrowed
from distill.types import Progress

_STEPS = (1, 1, 1, 2, 3)  # blocks that go at once
_EVALUATIONS = 60
_BROKEN = float("inf")  # the loss of a model that does not run, or is not finite


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


@dataclass(frozen=True)
class Removal:
    """A block that goes, and the rise of the mean loss once it and all before it are gone."""

    block: Block
    damage: float


def rank_blocks(
    model: nn.Module,
    blocks: Sequence[Block],
    batches: Sequence[Any],
    loss: Loss,
    *,
    remove: int,
    max_evaluations: int = 200,
    seed: int = 0,
    progress: Progress | None = None,
) -> list[Removal]:
    """Return the ``remove`` blocks that go, cheapest first, each chosen with all before it gone.

    The damage is the rise of the mean loss, which may be negative; a model that does not run, or is not finite, without
    a block gives infinity. Blocks that do the same for each other look idle one by one, so the damage is measured again
    after each choice. At most ``max_evaluations`` are spent: later rounds share what the first one leaves, and measure
    the blocks again that did the least damage so far. Of equal ones the first goes. Same arguments, same result.
    The model is not changed; it runs in eval mode, without gradients, with torch seeded.

    Raises:
        UserError: no batch, the model does not run on one, or ``remove`` or ``max_evaluations`` is out of bounds.
    """
    if not 1 <= remove <= len(blocks):
        raise UserError(f"remove={remove}: must be from 1 to the number of removable blocks, {len(blocks)}")
    least = len(blocks) + remove - 1
    if max_evaluations < least:
        raise UserError(f"max_evaluations={max_evaluations}: {remove} of {len(blocks)} blocks need at least {least}")
    work = skip_blocks(model, ()).eval()
    if not batches:
        raise UserError("block importance got no batch; give it at least one")
    with explained("block importance: the model does not run on its batches"):
        reference = _mean_loss(work, batches, loss, seed)
    if reference == _BROKEN:
        raise UserError("block importance: the model's answers are not finite; the model or a batch is broken")
    removed: list[Removal] = []
    damages = {block.name: 0.0 for block in blocks}
    completed, rounds = 0, _rounds(len(blocks), remove, max_evaluations)
    for trials_of_round in rounds:
        gone_before = [removal.block for removal in removed]
        left = sorted((block for block in blocks if block not in gone_before), key=lambda block: damages[block.name])
        trials = left[:trials_of_round]
        for block in trials:
            with skipping(work, [*gone_before, block]):
                try:
                    damages[block.name] = _mean_loss(work, batches, loss, seed) - reference
                except Exception:  # two blocks may not go together
                    damages[block.name] = _BROKEN
            completed += 1
            if progress is not None:
                progress("ranking blocks", completed, sum(rounds))
        best = min((block for block in blocks if block in trials), key=lambda block: damages[block.name])
        removed.append(Removal(best, damages[best.name]))
    return removed


@torch.no_grad()
def _mean_loss(model: nn.Module, batches: Sequence[Any], loss: Loss, seed: int) -> float:
    """Return the mean of the batches' losses, infinite where one of them is not finite."""
    with seeded(seed):
        values = [loss(model, batch) for batch in batches]
    if any(not isinstance(value, Tensor) or value.numel() != 1 for value in values):
        raise UserError("loss(model, batch) must return a scalar tensor")
    losses = torch.stack([value.detach().reshape(()).double().cpu() for value in values])
    return float(losses.mean()) if losses.isfinite().all() else _BROKEN


def _rounds(blocks: int, remove: int, evaluations: int) -> list[int]:
    """Return how many blocks each round measures: all in the first, an equal part of what is left in the others."""
    rounds = [blocks]
    for number in range(1, remove):
        rounds.append(min(blocks - number, (evaluations - sum(rounds)) // (remove - number)))
    return rounds
