"""What a model loses when whole blocks go: measured by taking them out, not estimated from weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from distill.errors import UserError
from distill.prune.depth.skipped import Block, skip_blocks, skipping
from distill.prune.modules import Loss, explained, seeded
from distill.types import Progress


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

    Args:
        model: any module; it is not changed, and runs in eval mode without gradients.
        blocks: from ``removable_blocks``.
        batches: what the loss takes.
        loss: (model, batch) -> scalar.
        remove: number of blocks.
        max_evaluations: models that are measured at most.
        seed: of torch while the model runs.
        progress: called with (what, done, total).

    Raises:
        UserError: no batch, the model does not run on one, or ``remove`` or ``max_evaluations`` is out of bounds.
    """
    if not 1 <= remove <= len(blocks):
        raise UserError(f"remove={remove}: must be from 1 to the number of removable blocks, {len(blocks)}")
    least = len(blocks) + remove - 1
    if max_evaluations < least:
        raise UserError(f"max_evaluations={max_evaluations}: {remove} of {len(blocks)} blocks need at least {least}")
    judge = _Judge(model, batches, loss, seed)
    order = {block.name: index for index, block in enumerate(blocks)}
    removed: list[Removal] = []
    damages = dict.fromkeys(order, 0.0)
    completed, total = 0, _evaluations(len(blocks), remove, max_evaluations)
    for number in range(remove):
        names = {removal.block.name for removal in removed}
        left = sorted((b for b in blocks if b.name not in names), key=lambda b: damages[b.name])
        trials = left[: _share(len(left), number, remove, max_evaluations - completed)]
        for block in trials:
            damages[block.name] = judge.damage([*(removal.block for removal in removed), block])
            completed += 1
            if progress is not None:
                progress("ranking blocks", completed, total)
        best = min(trials, key=lambda b: (damages[b.name], order[b.name]))
        removed.append(Removal(best, damages[best.name]))
    return removed


def _share(left: int, number: int, remove: int, evaluations: int) -> int:
    """Return how many blocks a round measures: all in the first, an equal part of what is left in the others."""
    return left if number == 0 else min(left, evaluations // (remove - number))


def _evaluations(blocks: int, remove: int, most: int) -> int:
    """Return how many measurements a ranking takes."""
    spent = 0
    for number in range(remove):
        spent += _share(blocks - number, number, remove, most - spent)
    return spent


class _Judge:
    """A copy of the model with its batches, and the losses that it has with all blocks in place."""

    def __init__(self, model: nn.Module, batches: Sequence[Any], loss: Loss, seed: int) -> None:
        self._model = skip_blocks(model, ()).eval()
        self._batches, self._loss, self._seed = batches, loss, seed
        if not batches:
            raise UserError("block importance got no batch; give it at least one")
        with explained("block importance: the model does not run on its batches"):
            self._reference = self._losses()
        if not torch.isfinite(self._reference).all():
            raise UserError("block importance: the model's answers are not finite; the model or a batch is broken")

    def damage(self, blocks: Sequence[Block]) -> float:
        """Return what the model loses without these blocks."""
        with skipping(self._model, blocks):
            try:
                losses = self._losses()
            except Exception:  # two blocks may not go together
                return float("inf")
        if not torch.isfinite(losses).all():
            return float("inf")
        return float(losses.mean() - self._reference.mean())

    @torch.no_grad()
    def _losses(self) -> Tensor:
        """Return the loss of each batch, float64 on the CPU."""
        with seeded(self._seed):
            return torch.stack([self._loss_of(batch).detach().double().cpu() for batch in self._batches])

    def _loss_of(self, batch: Any) -> Tensor:
        value = self._loss(self._model, batch)
        if not isinstance(value, Tensor) or value.numel() != 1:
            raise UserError("loss(model, batch) must return a scalar tensor")
        return value.reshape(())
