"""What an interrupted training goes on from: a file between epochs, sealed with its hash."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from distill import files
from distill.state_dicts import hash_tensors, load_state


@dataclass
class TrainState:
    """How far a training is, its curves, and the best epoch's weights where those are asked for."""

    epoch: int = 0
    curves: dict[str, list[float]] = field(default_factory=lambda: {"loss": [], "validation": []})
    best: dict[str, Tensor] | None = None
    best_epoch: int = -1


def save(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, state: TrainState) -> None:
    """Write everything that decides how the training goes on."""
    from safetensors.torch import save_file

    tensors = {f"model/{name}": value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    tensors |= {f"best/{name}": value.contiguous() for name, value in (state.best or {}).items()}
    for number, slots in optimizer.state_dict()["state"].items():
        for name, value in slots.items():
            tensors[f"optimizer/{number}/{name}"] = torch.as_tensor(value).detach().cpu().contiguous()
    about = json.dumps({"epoch": state.epoch, "curves": state.curves, "best_epoch": state.best_epoch})
    notes = {"state": about, "seal": _seal(about, tensors)}
    with files.replacing(path) as partial:
        save_file({name: value.clone() for name, value in tensors.items()}, partial, metadata=notes)


def resume(path: Path | None, model: nn.Module, optimizer: torch.optim.Optimizer) -> TrainState:
    """Load a checkpoint into model and optimizer; without a whole one the training begins anew."""
    about, tensors = _read(path) if path is not None and path.is_file() else ("", {})
    if not about:
        return TrainState()
    load_state(model, _below(tensors, "model/"))
    slots: dict[int, dict[str, Tensor]] = {}
    for name, value in _below(tensors, "optimizer/").items():
        number, slot = name.split("/")
        slots.setdefault(int(number), {})[slot] = value
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": slots, "param_groups": groups})
    return TrainState(**json.loads(about), best=_below(tensors, "best/") or None)


def _read(path: Path) -> tuple[str, dict[str, Tensor]]:
    """Read what ``save`` wrote; nothing where the file is something else."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            notes = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError):
        return "", {}
    about = notes.get("state", "")
    return (about, tensors) if notes.get("seal") == _seal(about, tensors) else ("", {})


def _seal(about: str, tensors: Mapping[str, Tensor]) -> str:
    return hashlib.sha256(f"{about}{hash_tensors(tensors)}".encode()).hexdigest()


def _below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
