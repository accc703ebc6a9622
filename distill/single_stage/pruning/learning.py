"""What a pruned model learns from rows: batch-norm statistics, and again what the unpruned one answers."""

from __future__ import annotations

import copy
import math

import torch
from torch import nn

from distill.errors import UserError
from distill.prune import recalibrate
from distill.single_stage.pruning.losses import soft_loss
from distill.single_stage.pruning.rows import Rows, device_of, inputs_of
from distill.types import Progress

_WARM = 0.1  # share of the steps in which the rate rises
_DECAY = 0.01
_LONGEST = 1.0  # norm of a gradient


def settled(model: nn.Module, rows: Rows, seed: int, progress: Progress | None) -> nn.Module:
    """Return a copy whose batch-norm statistics are those of the rows."""
    return recalibrate(model, inputs_of(rows.batches(device_of(model), seed)), progress=progress)


def taught(
    model: nn.Module,
    rows: Rows,
    *,
    epochs: int,
    learning_rate: float,
    seed: int,
    progress: Progress | None,
    what: str = "distilling",
) -> nn.Module:
    """Return a copy trained on the unpruned model's soft logits, in eval mode; weights that are kept zero stay so.

    AdamW under a cosine with a short warm-up.

    Raises:
        UserError: the loss is no number any more.
    """
    work, device = copy.deepcopy(model), device_of(model)
    modes = {name: module.training for name, module in work.named_modules()}
    optimizer = torch.optim.AdamW(
        [one for one in work.parameters() if one.requires_grad], lr=learning_rate, weight_decay=_DECAY
    )
    total = epochs * math.ceil(len(rows.learn) / rows.size)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _share(step, total))
    done = 0
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(seed)
        work.train()
        for epoch in range(epochs):
            for batch in rows.batches(device, seed + epoch):
                optimizer.zero_grad(set_to_none=True)
                loss = soft_loss(work, batch, rows.labelled)
                if not torch.isfinite(loss):
                    raise UserError(
                        f"the loss is {loss.item()} in epoch {epoch + 1}; lower --learning-rate {learning_rate:g}"
                    )
                loss.backward()  # type: ignore[no-untyped-call]
                nn.utils.clip_grad_norm_(work.parameters(), _LONGEST)
                optimizer.step()
                schedule.step()
                done += 1
                if progress is not None:
                    progress(what, done, total)
    for name, module in work.named_modules():
        module.training = modes[name]
    work.zero_grad(set_to_none=True)
    return work


def _share(step: int, total: int) -> float:
    """Return the share of the peak rate: a line up, then half a cosine to zero."""
    warm = max(1, round(_WARM * total))
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warm) / max(1, total - warm))))
