"""Batches in a replayable order, and the teacher's logits for augmented views, computed once.

A cached logit is true for the identical view only. So a view is a number: the same number gives the same pixels,
whatever batch or process asks, and the cache's key holds everything else that the logits depend on.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from distill.sealed import Tell, sealed_array
from distill.tasks.base import Batch, Data, Task
from distill.types import Array


def batches(data: Data, size: int, *, view: int | None = None) -> Iterator[tuple[Tensor, Batch]]:
    """Yield (sample numbers int64 [B], batch) in the split's own order, the last batch as short as it is."""
    for start in range(0, len(data), size):
        index = torch.arange(start, min(start + size, len(data)))
        yield index, data.fetch(index, view)


def shuffled(data: Data, size: int, *, seed: int, epoch: int, view: int | None) -> Iterator[tuple[Tensor, Batch]]:
    """Yield (sample numbers, batch) in an order that only ``seed`` and ``epoch`` decide; a short rest is left out."""
    order = torch.from_numpy(np.random.default_rng([seed, epoch]).permutation(len(data)))
    for start in range(0, max(1, len(data) - size + 1), size):
        index = order[start : start + size]
        yield index, data.fetch(index, view)


def _quiet(text: str) -> None:
    """Say nothing."""


class CachedTeacher:
    """A teacher whose logits are computed once for each view and kept as fp16 beside the run.

    Call it with (sample numbers, batch, view); the batch is not looked at.

    Args:
        key: hash of everything that the logits depend on: teacher, data, preprocessing, seed.
        folder: where the files lie; one a view.
        compute: view -> float32 logits [N, C].
        tell: hears of a file that is not what was written, whose logits are computed again.
    """

    def __init__(self, key: str, folder: Path, compute: Callable[[int], Array], tell: Tell = _quiet) -> None:
        self._key, self._folder, self._compute, self._tell = key, folder, compute, tell
        self._views: dict[int, Tensor] = {}

    def __call__(self, index: Tensor, batch: Batch, view: int) -> Tensor:
        """Return the teacher's logits, float32 [B, C]."""
        if view not in self._views:
            self._views[view] = self._load(view)
        return self._views[view][index].float()

    def _load(self, view: int) -> Tensor:
        def halves() -> Array:
            # Half precision is about 3 decimal digits of a logit: far below what the temperature lets through.
            return np.clip(self._compute(view), -65000, 65000).astype(np.float16)

        return torch.from_numpy(
            sealed_array(self._folder / f"logits-{self._key}-{view}.safetensors", halves, self._tell)
        )


class LiveTeacher:
    """A teacher that answers for every batch as it comes; for data or class counts too large to cache."""

    def __init__(self, forward: Callable[[Batch], Tensor]) -> None:
        self._forward = forward

    def __call__(self, index: Tensor, batch: Batch, view: int) -> Tensor:
        """Return the teacher's logits, float32 [B, C]."""
        with torch.no_grad():
            return self._forward(batch).float()


CACHE_LIMIT_BYTES = 2 * 2**30


def fits_cache(task: Task, views: int) -> bool:
    """Tell whether the logits of ``views`` views fit the cache."""
    return views > 0 and len(task.data["train"]) * len(task.labels) * 2 * views <= CACHE_LIMIT_BYTES


def teacher_for(
    teacher: nn.Module, task: Task, *, views: int, key: str, folder: Path, device: torch.device, tell: Tell = _quiet
) -> CachedTeacher | LiveTeacher:
    """Return a cached teacher where the cache holds it, a live one elsewhere."""
    from distill.training.loop import forward, predict

    if fits_cache(task, views):
        train = task.data["train"]
        return CachedTeacher(key, folder, lambda view: predict(teacher, task, train, device, view=view)[0], tell)
    teacher = copy.deepcopy(teacher).to(device).eval()
    return LiveTeacher(lambda batch: forward(teacher, task, batch, device))
