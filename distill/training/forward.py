"""The way of a batch through a model: preprocessing, the call, the logits; and the predictions for a whole split."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from distill.errors import DistillError, UserError
from distill.export.preprocessed import as_inputs
from distill.references.calls import why_call_failed
from distill.references.functions import call_user
from distill.tasks.base import Batch, Data, Trainable
from distill.training.batches import batches
from distill.types import Array

Autocast = Callable[[], AbstractContextManager[Any]]


def forward(model: nn.Module, task: Trainable, batch: Batch, device: torch.device, *, title: str = "model") -> Tensor:
    """Return the logits [B, C] of a batch, through the task's own preprocessing and output adapter.

    ``title`` opens the message of an error.

    Raises:
        UserError: the model raised, or the logits have another shape than [B, classes].
    """
    args, kwargs = task.inputs(batch)
    if task.module_preprocess is not None:
        args, kwargs = as_inputs(call_user(task.module_preprocess, "preprocess", *args, **kwargs))
    args = tuple(_to(value, device) for value in args)
    kwargs = {name: _to(value, device) for name, value in kwargs.items()}
    output = _call(model, args, kwargs, title)
    try:
        logits = task.logits(output)
    except UserError as error:
        raise UserError(f"{title}: {error}") from error
    if not task.labels:
        return logits
    rows = next((v.shape[0] for v in (*args, *kwargs.values()) if isinstance(v, Tensor) and v.dim()), None)
    expected = (rows if rows is not None else logits.shape[0], len(task.labels))
    if not isinstance(logits, Tensor) or tuple(logits.shape) != expected:
        shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise UserError(
            f"{title}: {type(model).__name__} returned logits {shape}, must be {expected} "
            f"(a batch of {expected[0]} with {expected[1]} classes); a task's `logits(output)` can pick them"
        )
    return logits


def predict(
    model: nn.Module, task: Trainable, data: Data, device: torch.device, *, view: int | None = None
) -> tuple[Array, Array]:
    """Return float32 logits [N, C] and int64 targets [N] of a split, in its own order, in evaluation mode."""
    modes = [(module, module.training) for module in model.modules()]
    home = next((p.device for p in model.parameters()), device)
    model.eval().to(device)
    logits, targets = [], []
    with torch.no_grad():
        for _, batch in batches(data, 512, view=view):
            logits.append(forward(model, task, batch, device).float().cpu().numpy())
            targets.append(task.target(batch).cpu().numpy())
    model.to(home)
    for module, mode in modes:  # each by itself: a part may have been frozen on its own
        module.training = mode
    return np.concatenate(logits), np.concatenate(targets)


def autocast(precision: str, device: torch.device) -> tuple[Autocast, str]:
    """Return a context maker for mixed precision, and the name of the precision that it computes in."""
    if precision == "auto":
        precision = "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "fp32"
    if precision == "bf16":
        return lambda: torch.autocast(device.type, torch.bfloat16), "bf16"
    return nullcontext, "fp32"


def _call(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], title: str) -> Any:
    """Call the model; what it raises becomes one line that says where in the user's code."""
    try:
        return model(*args, **kwargs)
    except (DistillError, OSError, MemoryError):
        raise
    except (Exception, SystemExit) as error:
        if "out of memory" in str(error) or "can't allocate memory" in str(error):
            raise
        raise UserError(f"{title}: {why_call_failed(error, model, args, kwargs)}") from error


def _to(value: Any, device: torch.device) -> Any:
    if not isinstance(value, Tensor):
        return value
    if device.type == "cuda" and value.dim() == 4:
        return value.to(device, non_blocking=True, memory_format=torch.channels_last)
    return value.to(device, non_blocking=True)
