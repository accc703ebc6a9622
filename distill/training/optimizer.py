"""The optimizer and the schedule of its learning rate."""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from distill.errors import UserError
from distill.training.settings import TrainSettings


def make_optimizer(model: nn.Module, settings: TrainSettings) -> torch.optim.Optimizer:
    """Return the optimizer of everything that can be trained.

    Raises:
        UserError: nothing can be.
    """
    decayed = [p for p in model.parameters() if p.requires_grad and p.dim() > 1]
    plain = [p for p in model.parameters() if p.requires_grad and p.dim() <= 1]
    groups = [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    groups = [group for group in groups if group["params"]]
    if not groups:
        raise UserError(
            f"model: {type(model).__name__} has no parameter that can be trained; unfreeze some, or set "
            "teacher.pretrained if it needs no training"
        )
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=settings.learning_rate)
    return torch.optim.SGD(groups, lr=settings.learning_rate, momentum=0.9, nesterov=True)


def make_schedule(optimizer: torch.optim.Optimizer, steps: int, warmup: float) -> LambdaLR:
    """Return a schedule over ``steps``: a linear warm-up, then half a cosine to zero.

    In closed form, so that a resumed training computes the very same rates; torch's LinearLR and CosineAnnealingLR
    multiply the last rate, and round differently.
    """
    rising = int(steps * warmup)

    def factor(step: int) -> float:
        if step < rising:
            return (step + 1) / (rising + 1)
        return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, steps - rising)))

    return LambdaLR(optimizer, factor)


def skip(schedule: LambdaLR, steps: int) -> None:
    """Set a schedule to where it was after so many steps; stepping it there would warn of an idle optimizer."""
    schedule.last_epoch = steps
    groups = schedule.optimizer.param_groups
    for group, base, factor in zip(groups, schedule.base_lrs, schedule.lr_lambdas, strict=True):
        group["lr"] = base * factor(steps)
