"""Bags of embeddings as one gather and one reduction, where torch's exporter writes a loop over the bags."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


@contextmanager
def bags_reduced() -> Iterator[None]:
    """Let ``embedding_bag``, and so ``nn.EmbeddingBag``, reduce bags of one length [N, L] without a loop, inside."""
    original = F.embedding_bag

    def embedding_bag(input: Tensor, weight: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        names = ("offsets", "max_norm", "norm_type", "scale_grad_by_freq", "mode", "sparse", "per_sample_weights")
        options = dict(zip((*names, "include_last_offset", "padding_idx"), args, strict=False)) | kwargs
        if input.ndim != 2 or options.get("max_norm") is not None:  # the norms are written into the weights
            return original(input, weight, *args, **kwargs)
        scales, padding = options.get("per_sample_weights"), options.get("padding_idx")
        return _reduced(input, weight, options.get("mode", "mean"), scales, padding)

    F.embedding_bag = embedding_bag
    try:
        yield
    finally:
        F.embedding_bag = original


def _reduced(ids: Tensor, weight: Tensor, mode: str, scales: Tensor | None, padding: int | None) -> Tensor:
    """Return the sum, mean or maximum [N, D] of rows of weight [V, D]; 0 for a bag of nothing but padding."""
    rows = F.embedding(ids, weight)
    if scales is not None:
        rows = rows * scales.unsqueeze(-1)
    if padding is None:
        return rows.amax(dim=1) if mode == "max" else rows.sum(dim=1) if mode == "sum" else rows.mean(dim=1)
    counted = (ids != padding % len(weight)).unsqueeze(-1)
    if mode == "max":
        largest = rows.masked_fill(~counted, -torch.inf).amax(dim=1)
        return torch.where(counted.any(dim=1), largest, torch.zeros_like(largest))
    total = (rows * counted).sum(dim=1)
    return total if mode == "sum" else total / counted.sum(dim=1).clamp(min=1)
