"""What a model loses when whole blocks go: measured by taking them out, not estimated from weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from distill.errors import UserError
from distill.prune.depth.skipped import Block, skip_blocks, skipping
from distill.prune.modules import reason
from distill.types import Progress

Loss = Callable[[nn.Module, Any], Tensor]

_DENSE_AXES = 4  # logits with that many axes are images of classes [N, C, H, W]


@dataclass(frozen=True)
class Removal:
    """A block that goes, and the damage once it and all before it are gone: nats of KL divergence, or loss."""

    block: Block
    damage: float


def block_importance(
    model: nn.Module,
    blocks: Sequence[Block],
    batches: Iterable[Any],
    *,
    logits: Callable[[Any], Tensor] | None = None,
    loss: Loss | None = None,
    limit: int = 8,
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[str, float]:
    """Return the damage that removing each block alone does, by its name; same arguments, same result.

    Without ``loss`` it is the mean KL divergence KL(model ‖ model without the block) of the logits in nats, over all
    rows (and positions); with one logit, that of the two answers of its sigmoid. With ``loss`` it is the rise of the
    mean loss, which may be negative. A model that does not run, or is not finite, without a block gives infinity.

    Args:
        model: any module; it is not changed, and runs in eval mode without gradients.
        blocks: from ``removable_blocks``.
        batches: (args, kwargs) of the model; with ``loss``, what the loss takes.
        logits: takes the logits from the model's output: classes in the last axis, of 4 axes and more in the second.
        loss: (model, batch) -> scalar.
        limit: batches that are read.
        seed: of torch while the model runs.
        progress: called with (what, done, total).

    Raises:
        UserError: neither loss nor logits, no batch, or the model does not run on one.
    """
    judge = _Judge(model, batches, logits, loss, limit, seed)
    found = {}
    for done, block in enumerate(blocks, start=1):
        found[block.name] = judge.damage([block])
        if progress is not None:
            progress("block importance", done, len(blocks))
    return found


def rank_blocks(
    model: nn.Module,
    blocks: Sequence[Block],
    batches: Iterable[Any],
    *,
    remove: int,
    logits: Callable[[Any], Tensor] | None = None,
    loss: Loss | None = None,
    limit: int = 8,
    max_evaluations: int = 200,
    seed: int = 0,
    progress: Progress | None = None,
) -> list[Removal]:
    """Return the ``remove`` blocks that go, cheapest first, each chosen with all before it gone.

    Blocks that do the same for each other look idle one by one, so the damage is measured again after each choice. At
    most ``max_evaluations`` are spent: later rounds share what the first one leaves, and measure the blocks again that
    did the least damage so far. Of equal ones the first goes. The other arguments are those of ``block_importance``.

    Raises:
        UserError: ``remove`` or ``max_evaluations`` is out of bounds; as ``block_importance``.
    """
    if not 1 <= remove <= len(blocks):
        raise UserError(f"remove={remove}: must be from 1 to the number of removable blocks, {len(blocks)}")
    least = len(blocks) + remove - 1
    if max_evaluations < least:
        raise UserError(f"max_evaluations={max_evaluations}: {remove} of {len(blocks)} blocks need at least {least}")
    judge = _Judge(model, batches, logits, loss, limit, seed)
    removed: list[Removal] = []
    known = dict.fromkeys((block.name for block in blocks), 0.0)
    done, total = 0, _evaluations(len(blocks), remove, max_evaluations)
    for number in range(remove):
        gone = {removal.block.name for removal in removed}
        left = sorted((b for b in blocks if b.name not in gone), key=lambda b: known[b.name])
        trials = left[: _share(len(left), number, remove, max_evaluations - done)]
        for block in trials:
            known[block.name] = judge.damage([*(removal.block for removal in removed), block])
            done += 1
            if progress is not None:
                progress("ranking blocks", done, total)
        order = {block.name: index for index, block in enumerate(blocks)}
        best = min(trials, key=lambda b: (known[b.name], order[b.name]))
        removed.append(Removal(best, known[best.name]))
    return removed


def _share(left: int, number: int, remove: int, evaluations: int) -> int:
    """Return how many blocks a round measures: all in the first, an equal part of the rest in the others."""
    return left if number == 0 else min(left, evaluations // (remove - number))


def _evaluations(blocks: int, remove: int, most: int) -> int:
    """Return how many measurements a ranking takes."""
    done = 0
    for number in range(remove):
        done += _share(blocks - number, number, remove, most - done)
    return done


class _Judge:
    """A copy of the model with its batches, and what it gives with all blocks in place."""

    def __init__(
        self,
        model: nn.Module,
        batches: Iterable[Any],
        logits: Callable[[Any], Tensor] | None,
        loss: Loss | None,
        limit: int,
        seed: int,
    ) -> None:
        if logits is None and loss is None:
            raise UserError("block importance needs the logits of the model's output, or a loss")
        self._model = skip_blocks(model, ()).eval()
        self._batches = list(islice(batches, limit))
        self._logits, self._loss, self._seed = logits, loss, seed
        if not self._batches:
            raise UserError(f"block importance got no batch (limit={limit}); give it at least one")
        try:
            self._reference = self._run()
        except UserError:
            raise
        except Exception as error:
            raise UserError(f"block importance: the model does not run on its batches: {reason(error)}") from error
        if not all(torch.isfinite(value).all() for value in self._reference):
            raise UserError("block importance: the model's answers are not finite; the model or a batch is broken")

    def damage(self, blocks: Sequence[Block]) -> float:
        """Return what the model loses without these blocks."""
        with skipping(self._model, blocks):
            try:
                found = self._run()
            except Exception:  # two blocks may not go together
                return float("inf")
        if any(a.shape != b.shape or not torch.isfinite(b).all() for a, b in zip(self._reference, found, strict=True)):
            return float("inf")
        if self._loss is not None:
            return float(torch.stack(found).mean() - torch.stack(self._reference).mean())
        rows = torch.cat([divergence(a, b).flatten() for a, b in zip(self._reference, found, strict=True)])
        return float(rows.mean())

    @torch.no_grad()
    def _run(self) -> list[Tensor]:
        """Return the loss or the logits of each batch, float64 on the CPU."""
        gpus = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()  # type: ignore[no-untyped-call]
        with torch.random.fork_rng(devices=list(gpus)):
            torch.manual_seed(self._seed)
            return [self._answer(batch).detach().double().cpu() for batch in self._batches]

    def _answer(self, batch: Any) -> Tensor:
        if self._loss is not None:
            value = self._loss(self._model, batch)
            if not isinstance(value, Tensor) or value.numel() != 1:
                raise UserError("loss(model, batch) must return a scalar tensor")
            return value.reshape(())
        assert self._logits is not None
        args, kwargs = batch
        return self._logits(self._model(*args, **kwargs))


def divergence(reference: Tensor, other: Tensor) -> Tensor:
    """Return KL(softmax(reference) ‖ softmax(other)) in nats for every row: Σ_c p_c (log p_c - log q_c).

    Both hold the classes in their last axis, [N, C] or [N, T, C]; with 4 axes and more in the second, [N, C, H, W]. A
    single class is one logit z of a yes, against a no of 0.
    """
    axis = 1 if reference.ndim >= _DENSE_AXES else -1
    if reference.ndim == 1 or reference.shape[axis] == 1:
        axis = -1
        reference, other = (torch.stack([z.flatten(), torch.zeros_like(z).flatten()], -1) for z in (reference, other))
    log_p, log_q = reference.log_softmax(axis), other.log_softmax(axis)
    return (log_p.exp() * (log_p - log_q)).sum(axis)
