"""Example inputs at another batch size, and the tensors inside any model's output."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from distill.prune.modules import seeded, unfused

Example: TypeAlias = tuple[tuple[Any, ...], dict[str, Any]]


def batch_of(example: Example) -> int | None:
    """Return the batch size: the first axis of the first tensor that has one; None when there is no such tensor."""
    tensors = (leaf for leaf in tree_leaves(example) if isinstance(leaf, Tensor) and leaf.ndim > 0)
    return next((tensor.shape[0] for tensor in tensors), None)


def at_batch(example: Example, batch: int) -> Example:
    """Return (args, kwargs) with ``batch`` rows, made by repeating or dropping rows of the tensors that have them."""
    rows = batch_of(example)
    if not rows:
        return example

    def resize(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or leaf.ndim == 0 or leaf.shape[0] != rows:
            return leaf
        return leaf.detach()[torch.arange(batch, device=leaf.device) % rows]

    args, kwargs = tree_map(resize, example)
    return tuple(args), dict(kwargs)


def run_alike(model: nn.Module, example: Example) -> Any:
    """Run a model so that two runs can be compared.

    Each has inputs of its own, which forward may write into, the same random numbers, and no fused attention, which
    treats padding in another way.
    """
    args, kwargs = tree_map(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, example)
    with unfused(), seeded(0):
        return model(*args, **kwargs)


def tensors_in(output: Any, name: str = "output") -> Iterator[tuple[str, Tensor]]:
    """Yield (name, tensor) for every tensor in nested tuples, lists, mappings and dataclasses."""
    if isinstance(output, Tensor):
        yield name, output
    elif isinstance(output, Mapping):
        for key, value in output.items():
            yield from tensors_in(value, f"{name}[{key!r}]")
    elif isinstance(output, list | tuple):
        for index, value in enumerate(output):
            yield from tensors_in(value, f"{name}[{index}]")
    elif dataclasses.is_dataclass(output) and not isinstance(output, type):
        for field in dataclasses.fields(output):
            yield from tensors_in(getattr(output, field.name), f"{name}.{field.name}")
