"""Batch-norm statistics, computed anew after the weights around them changed."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from distill.errors import UserError


def recalibrate(
    model: nn.Module,
    inputs: Iterable[tuple[tuple[Any, ...], dict[str, Any]]],
    batches: int = 100,
    *,
    progress: Callable[[str, int, int], None] | None = None,
) -> nn.Module:
    """Return a copy whose batch-norm running statistics are the plain averages over up to ``batches`` batches.

    ``inputs`` yields (args, kwargs) of the model. Dropout and the rest stay in eval mode, so that the result depends
    on the inputs only. A layer that no batch reaches keeps its statistics; a model without any comes back as a copy.

    Raises:
        UserError: there is no batch, or a batch cannot be normalised (one sample and no spatial axes).
    """

    def run(copied: nn.Module, given: tuple[tuple[Any, ...], dict[str, Any]]) -> None:
        args, kwargs = given
        copied(*args, **kwargs)

    return refreshed(model, inputs, run, batches, progress=progress)


def refreshed(
    model: nn.Module,
    batches: Iterable[Any],
    run: Callable[[nn.Module, Any], object],
    limit: int = 100,
    *,
    progress: Callable[[str, int, int], None] | None = None,
) -> nn.Module:
    """Do as ``recalibrate`` with batches of any kind, which ``run`` puts through the model."""
    result = copy.deepcopy(model)
    norms = [m for m in result.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    if not norms:
        return result
    modes = [(module, module.training) for module in result.modules()]
    before = [(n.momentum, _copy_of(n)) for n in norms]
    result.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the cumulative average: every batch weighs the same
        norm.train()
    done = _run(result, islice(batches, limit), run, limit, progress)
    for norm, (momentum, statistics) in zip(norms, before, strict=True):
        norm.momentum = momentum
        if norm.num_batches_tracked == 0:
            norm.load_state_dict(statistics, strict=False)
    for module, training in modes:
        module.training = training
    if not done:
        raise UserError("batch-norm recalibration got no batch; give it at least one batch of training data")
    return result


def _copy_of(norm: _BatchNorm) -> dict[str, torch.Tensor]:
    return {name: buffer.clone() for name, buffer in norm.named_buffers(recurse=False)}


def _run(
    model: nn.Module,
    batches: Iterable[Any],
    run: Callable[[nn.Module, Any], object],
    limit: int,
    progress: Callable[[str, int, int], None] | None,
) -> int:
    done = 0
    with torch.no_grad():
        for batch in batches:
            try:
                run(model, batch)
            except ValueError as error:
                raise UserError(
                    f"batch-norm recalibration failed on batch {done}: {error}; "
                    "leave out batches of a single sample (drop_last=True)"
                ) from error
            done += 1
            if progress is not None:
                progress("batch-norm recalibration", done, limit)
    return done
