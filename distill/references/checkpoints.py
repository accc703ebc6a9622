"""What a checkpoint holds: safetensors, one file or several behind an index, or what torch saved; never unpickled."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distill.documents import read_json
from distill.errors import UserError

_UNSAFE = re.compile(r"GLOBAL ([\w.]+)|[Cc]lass ([\w.]+)")
_MEND = "torch.save(model.state_dict(), path) or as safetensors"


def read_checkpoint(path: Path, subject: str) -> Mapping[str, Any]:
    """Return what a file holds, tensors on the CPU; of an index all tensors of the files that it names.

    Raises:
        UserError: no such file, or none that holds plain tensors; ``subject`` opens the message.
    """
    if path.is_dir():
        names = [file.name for file in sorted(path.iterdir()) if _is_weights(file)]
        hint = f"; give one of its files, such as {path / names[0]}" if names else ""
        raise UserError(f"{subject}: no such file, but a folder{hint}")
    if not path.is_file():
        raise UserError(f"{subject}: no such file")
    if path.stat().st_size == 0:
        raise UserError(f"{subject}: is empty")
    if path.suffix == ".json":
        return _read_index(path, subject)
    if path.suffix == ".safetensors" or _starts_as_safetensors(path):
        return _read_safetensors(path, subject)
    return _read_torch(path, subject)


def _is_weights(file: Path) -> bool:
    return file.name.endswith((".safetensors", ".index.json", ".bin", ".pt", ".pth", ".ckpt"))


def _starts_as_safetensors(path: Path) -> bool:
    with path.open("rb") as file:
        start = file.read(9)
    return start[8:] == b"{" and int.from_bytes(start[:8], "little") <= path.stat().st_size


def _read_safetensors(path: Path, subject: str) -> Mapping[str, Any]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return dict(load_file(path))
    except (SafetensorError, OSError) as error:
        raise UserError(f"{subject}: not a safetensors file ({error})") from error


def _read_index(path: Path, subject: str) -> Mapping[str, Any]:
    """Read the files that ``weight_map`` names, which lie beside the index."""
    try:
        index = read_json(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{subject}: not an index of weights ({error})") from error
    files = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(files, dict) or not files or not all(isinstance(name, str) for name in files.values()):
        raise UserError(f"{subject}: not an index of weights; it has no 'weight_map' of names and files")
    state: dict[str, Any] = {}
    for name in sorted(set(files.values())):
        if Path(name).name != name or name.endswith(".json") or not _is_weights(path.with_name(name)):
            raise UserError(f"{subject}: names the file {name!r}; its files lie beside it")
        part = path.with_name(name)
        state |= read_checkpoint(part, f"{subject}: {name}")
    return state


def _read_torch(path: Path, subject: str) -> Mapping[str, Any]:
    import torch

    try:
        with torch.serialization.safe_globals(_plain_classes()):
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a pickle that is refused and a broken file raise many types
        raise UserError(f"{subject}: {_why_unread(path, error)}") from error
    if not isinstance(state, Mapping):
        raise UserError(f"{subject}: holds {type(state).__name__}, must hold a state dict")
    return state


def _plain_classes() -> list[Any]:
    """Return classes that training scripts put beside weights, and that only hold values when they are unpickled."""
    import argparse
    from types import SimpleNamespace

    import numpy as np

    scalar = np.float64(0).__reduce__()[0]
    kinds = {type(np.dtype(code)) for code in np.typecodes["AllInteger"] + np.typecodes["Float"] + "?"}
    return [argparse.Namespace, SimpleNamespace, scalar, (scalar, "numpy.core.multiarray.scalar"), np.dtype, *kinds]


def _why_unread(path: Path, error: Exception) -> str:
    """Say what a file is that torch does not load without running code, and how to save it so that it does."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name.split("/", 1)[-1] for name in archive.namelist()]
    except Exception:  # of a broken archive, which has as many; it only helps to say what torch could not read
        names = []
    if "constants.pkl" in names:
        return f"is a TorchScript archive; save the weights alone: m = torch.jit.load(path), then {_saved('m')}"
    if any(name.startswith(("models/", "archive_format", "serialized_")) for name in names):
        return f"is an exported program; save the weights alone: m = torch.export.load(path), then {_saved('m')}"
    if path.suffix == ".onnx":
        return "is an ONNX file; weights are PyTorch's, and `quantize` and `bench` take the file itself"
    unsafe = _UNSAFE.search(str(error))
    if unsafe:
        kind = unsafe[1] or unsafe[2]
        return (
            f"holds an object of {kind} besides tensors, and nothing is unpickled, for that may run code; if you trust "
            "the file, load it by torch.load(path, weights_only=False), take the state dict out (["
            f"'state_dict'] of a Lightning checkpoint, .state_dict() of a whole model), and save it again with {_MEND}"
        )
    return (
        "not a checkpoint of plain tensors, or a damaged one, and nothing else is unpickled; save it again with "
        f"{_MEND}"
    )


def _saved(name: str) -> str:
    return f"torch.save(dict({name}.state_dict()), 'weights.pt')"
