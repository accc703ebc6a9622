"""Batch-norm statistics, computed anew after the weights around them changed."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from distill.errors import UserError
from distill.prune.modules import Example, eval_mode
from distill.state_dicts import twin
from distill.types import Progress


def recalibrate(
    model: nn.Module, inputs: Iterable[Example], batches: int = 100, *, progress: Progress | None = None
) -> nn.Module:
    """Return a copy whose batch-norm running statistics are the plain averages over up to ``batches`` batches.

    ``inputs`` yields (args, kwargs) of the model. Dropout and the rest stay in eval mode, so that the result depends
    on the inputs only. A layer that no batch reaches keeps its statistics; a model without any comes back as a copy.

    Raises:
        UserError: there is no batch, or a batch cannot be normalised (one sample and no spatial axes).
    """
    return refreshed(model, inputs, lambda copied, call: copied(*call[0], **call[1]), batches, progress=progress)


def refreshed(
    model: nn.Module,
    batches: Iterable[Any],
    run: Callable[[nn.Module, Any], object],
    limit: int = 100,
    *,
    progress: Progress | None = None,
) -> nn.Module:
    """Do as ``recalibrate`` with batches of any kind, which ``run`` puts through the model."""
    result = twin(model)
    norms = [m for m in result.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    if not norms:
        return result
    before = [(n.momentum, {name: buffer.clone() for name, buffer in n.named_buffers(recurse=False)}) for n in norms]
    number = 0
    with eval_mode(result), torch.no_grad():
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # the cumulative average: every batch weighs the same
            norm.train()
        for number, batch in enumerate(islice(batches, limit), start=1):
            try:
                run(result, batch)
            except ValueError as error:
                raise UserError(
                    f"batch-norm recalibration failed on batch {number - 1}: {error}; "
                    "leave out batches of a single sample (drop_last=True)"
                ) from error
            if progress is not None:
                progress("batch-norm recalibration", number, limit)
    for norm, (momentum, statistics) in zip(norms, before, strict=True):
        norm.momentum = momentum
        if norm.num_batches_tracked == 0:
            norm.load_state_dict(statistics, strict=False)
    if not number:
        raise UserError("batch-norm recalibration got no batch; give it at least one batch of training data")
    return result
