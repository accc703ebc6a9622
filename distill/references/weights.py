"""Weights from the user's file into a model: safetensors, or a checkpoint of plain tensors."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill.errors import UserError
from distill.references.functions import label

if TYPE_CHECKING:
    from torch import nn


def load_weights(model: nn.Module, path: Path, *, field: str) -> nn.Module:
    """Load a state dict from safetensors, or from a checkpoint that torch reads with ``weights_only=True``.

    A checkpoint may hold the state dict under ``state_dict``, ``model`` or ``model_state_dict``, and its keys may
    carry the ``module.`` of DistributedDataParallel. The model itself is changed and returned.

    Raises:
        UserError: no such file, not weights, or weights of another model; ``field`` opens the message.
    """
    import torch

    from distill.state_dicts import load_state

    subject = label(path, field)
    if not path.is_file():
        raise UserError(f"{subject}: no such file")
    state = _read_state(path, subject)
    for key in ("state_dict", "model_state_dict", "model"):
        if isinstance(state.get(key), dict):
            state = state[key]
    strange = [
        f"{name} is a {type(item).__name__}" for name, item in state.items() if not isinstance(item, torch.Tensor)
    ]
    strange += [f"{name!r} is no parameter's name" for name in state if not isinstance(name, str)]
    if strange:
        raise UserError(f"{subject}: {strange[0]}; must be a state dict, names to tensors, such as model.state_dict()")
    state = {name.removeprefix("module."): value for name, value in state.items()}
    expected = model.state_dict()
    missing, extra = sorted(expected.keys() - state.keys()), sorted(state.keys() - expected.keys())
    shapes = [
        f"{name} is {tuple(state[name].shape)}, the model has {tuple(value.shape)}"
        for name, value in expected.items()
        if name in state and state[name].shape != value.shape
    ]
    if missing or extra or shapes:
        parts = [
            f"missing: {', '.join(missing[:3])}{' …' if len(missing) > 3 else ''}" if missing else "",
            f"unknown: {', '.join(extra[:3])}{' …' if len(extra) > 3 else ''}" if extra else "",
            "; ".join(shapes[:3]),
        ]
        raise UserError(f"{subject}: weights of another model ({'; '.join(part for part in parts if part)})")
    bad = [name for name, value in state.items() if value.is_floating_point() and not bool(value.isfinite().all())]
    if bad:
        raise UserError(f"{subject}: {bad[0]} holds values that are not finite")
    load_state(model, state)
    return model


def _read_state(path: Path, subject: str) -> Mapping[str, Any]:
    import torch

    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return dict(load_file(path))
        except (SafetensorError, OSError) as error:
            raise UserError(f"{subject}: not a safetensors file ({error})") from error
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a pickle that is refused and a broken file raise many types
        raise UserError(
            f"{subject}: not a checkpoint of plain tensors, and nothing else is unpickled; save it again with "
            "torch.save(model.state_dict(), path) or as safetensors"
        ) from error
    if not isinstance(state, dict):
        raise UserError(f"{subject}: holds {type(state).__name__}, must hold a state dict")
    return state
