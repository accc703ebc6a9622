"""Batches in an order that can be replayed.

A view is a number: the same number gives the same pixels, whatever batch or process asks for them.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from distill.tasks.base import Batch, Data


def batches(data: Data, size: int, *, view: int | None = None) -> Iterator[tuple[Tensor, Batch]]:
    """Yield (sample numbers int64 [B], batch) in the split's own order, the last batch as short as it is."""
    for start in range(0, len(data), size):
        index = torch.arange(start, min(start + size, len(data)))
        yield index, data.fetch(index, view)


def shuffled(data: Data, size: int, *, seed: int, epoch: int, view: int | None) -> Iterator[tuple[Tensor, Batch]]:
    """Yield (sample numbers, batch) in an order that only ``seed`` and ``epoch`` decide.

    A last, short batch is left out, unless it is the only one: batch norm cannot train on one sample.
    """
    order = torch.from_numpy(np.random.default_rng([seed, epoch]).permutation(len(data)))
    for start in range(0, max(1, len(data) - size + 1), size):
        index = order[start : start + size]
        yield index, data.fetch(index, view)
