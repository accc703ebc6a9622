"""The built-in models by name, and every other by its reference."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from torch import nn

from distill.models.depthwise import DepthwiseCNN
from distill.models.mlp import MLP
from distill.models.resnet import ResNet
from distill.references import models as references

MODELS: dict[str, Callable[..., nn.Module]] = {
    "resnet": ResNet,
    "resnet8": partial(ResNet, blocks=(1, 1, 1)),
    "resnet20": partial(ResNet, blocks=(3, 3, 3)),
    "resnet56": partial(ResNet, blocks=(9, 9, 9)),
    "wide-resnet20": partial(ResNet, blocks=(3, 3, 3), widths=(64, 128, 256)),
    "depthwise": DepthwiseCNN,
    "mlp": MLP,
}


def build(
    reference: str, arguments: Mapping[str, Any], facts: Mapping[str, Any], *, field: str, seed: int
) -> nn.Module:
    """Build a model that a run can store: a built-in one by name, or any that ``references`` knows.

    All is as ``references.models.build`` takes it, but that ``field`` is the configuration's section.

    Raises:
        UserError: no such model, it refused its arguments, or it cannot be stored.
    """
    place = f"{field}.model"
    model = references.build(reference, arguments, field=place, builtin=MODELS, facts=facts, seed=seed)
    references.require_storable(model, reference, place)
    return model
