"""State dicts that come without the versions of their modules."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn


def load_state(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Load tensors into a model as ``load_state_dict`` does.

    A file of safetensors keeps tensors only, and so does a dict of them. Some modules also look for the version of the
    class that wrote them, and torchvision's MNASNet refuses to load without: it is taken to be the model's own.

    Raises:
        RuntimeError: they are not this model's tensors.
    """
    state = OrderedDict(tensors)
    state._metadata = getattr(model.state_dict(), "_metadata", {})  # type: ignore[attr-defined]
    model.load_state_dict(state)


def hash_tensors(tensors: Mapping[str, Any]) -> str:
    """Return the sha256 of tensors with their names and types, hexadecimal; what is no tensor does not count."""
    hashed = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name]
        if isinstance(value, Tensor):
            plain = value.detach().cpu().contiguous()
            hashed.update(f"{name} {plain.dtype} {tuple(plain.shape)}".encode())
            hashed.update(plain.reshape(-1).view(torch.uint8).numpy().data)
    return hashed.hexdigest()
