"""Data that are given as Python objects, in the form in which a function of the user's returns them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch.utils.data import DataLoader, Dataset

from distill.errors import UserError
from distill.tasks.base import SPLITS


def as_function(data: Any) -> tuple[Callable[..., Any], str]:
    """Return a function that returns the data as ``data.source`` does, and a name for them.

    Args:
        data: arrays such as (x, y), a data set, a DataLoader, a triple of these (train, validation, test), a mapping of
            these by split, with hooks beside them if need be, or a function that returns such a mapping.
    """
    if callable(data):
        return data, getattr(data, "__name__", type(data).__name__)
    splits = _splits(data)
    train = splits.get("train") if isinstance(splits, Mapping) else splits
    train = train.dataset if isinstance(train, DataLoader) else train
    return lambda: splits, "arrays" if isinstance(train, tuple | Mapping) else type(train).__name__


def _splits(data: Any) -> Any:
    if isinstance(data, Mapping):
        return data
    if (
        isinstance(data, tuple | list)
        and data
        and all(isinstance(part, tuple | Mapping | Dataset | DataLoader) for part in data)
    ):
        if len(data) != len(SPLITS):
            raise UserError(
                f"data: is {len(data)} data sets; give {', '.join(SPLITS)}, or a mapping such as {{'train': data}}"
            )
        return dict(zip(SPLITS, data, strict=True))
    if isinstance(data, tuple | Dataset | DataLoader) or not hasattr(data, "train"):
        return {"train": tuple(data) if isinstance(data, list) else data}
    return data
