"""A user's preprocessing module in front of a model, as one module for the exporter."""

from __future__ import annotations

from itertools import count
from typing import Any

import torch
from torch import Tensor, nn

from distill.errors import UserError

from .front_graph import BOUNDARY, DOMAIN

Arguments = tuple[tuple[Any, ...], dict[str, Any]]


class Preprocessed(nn.Module):
    """Calls the model on what the preprocessing makes of the inputs, and shows the exporter where one ends."""

    def __init__(self, preprocess: nn.Module, model: nn.Module) -> None:
        super().__init__()
        self.preprocess, self.model = preprocess, model

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return the model's output."""
        inner, named = self.inner(*args, **kwargs)
        places = count()
        inner = tuple(_bounded(value, places) for value in inner)
        return self.model(*inner, **{name: _bounded(value, places) for name, value in named.items()})

    def inner(self, *args: Any, **kwargs: Any) -> Arguments:
        """Return the model's own arguments."""
        return as_inputs(self.preprocess(*args, **kwargs))


def as_inputs(value: Any) -> Arguments:
    """Read what a preprocessing module returned as the arguments of the model: a tensor, a tuple or a dict."""
    if isinstance(value, dict):
        return (), value
    return (tuple(value), {}) if isinstance(value, tuple | list) else ((value,), {})


def _bounded(value: Any, places: count[int]) -> Any:
    """Write a boundary into the graph that is being exported; outside of that, return the value."""
    if not isinstance(value, Tensor):
        return value
    if value.is_complex():
        raise UserError("preprocess returns complex numbers; return .abs(), .angle() or torch.view_as_real of them")
    place = next(places)
    if not torch.compiler.is_exporting():
        return value
    return torch.onnx.ops.symbolic(
        f"{DOMAIN}::{BOUNDARY}", (value,), {"place": place}, dtype=value.dtype, shape=value.shape, version=1
    )
