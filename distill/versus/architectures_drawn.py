"""Architectures drawn from timm by a seed: nobody chose them, so what they show holds for those that nobody tried."""

from __future__ import annotations

import random
from collections.abc import Iterator
from functools import partial
from importlib import import_module

import torch

from distill.prune import count

from .apart import Limits, Result, apart
from .architectures_models import Case, _timm

MOST_PARAMETERS = 60e6
MOST_MACS = 5e9
_SIZES = (64, 96, 128)  # of an image's side, tried before the one that the model was made for
_LIMITS = Limits(seconds=120)


def drawn(number: int, seed: int) -> Iterator[Case]:
    """Yield so many of timm's models in the order that a seed shuffles them, at the least size that each takes.

    Left out are those above `MOST_PARAMETERS` or `MOST_MACS`.
    """
    timm = import_module("timm")
    names = sorted(timm.list_models())
    random.Random(seed).shuffle(names)
    for name in names:
        fitting = apart(partial(smallest, name), _LIMITS)
        if "size" not in fitting:
            continue
        settings = {"img_size": fitting["size"]} if fitting["resized"] else {}
        yield Case("timm", name, partial(_timm, name, **settings), (3, fitting["size"], fitting["size"]))
        number -= 1
        if number == 0:
            return


def smallest(name: str) -> Result:
    """Find the least size of image that a model of timm takes and gives 1000 logits for; empty where it is too large.

    ``resized`` says that the model has to be made for it.
    """
    with torch.device("meta"):
        parameters = sum(parameter.numel() for parameter in _timm(name).parameters())
    if parameters > MOST_PARAMETERS:
        return {}
    usual = import_module("timm").get_pretrained_cfg(name).input_size[-1]
    for size in dict.fromkeys((*_SIZES, usual)):
        for resized in (False, True):
            try:
                model = _timm(name, **({"img_size": size} if resized else {})).eval()
                with torch.no_grad():
                    if tuple(model(torch.randn(2, 3, size, size)).shape) != (2, 1000):
                        continue
                macs = count(model, (torch.randn(1, 3, size, size),), {}).macs
            except Exception:  # too small for its windows or strides, or made for any size
                continue
            return {"size": size, "resized": resized} if macs <= MOST_MACS else {}
    return {}
