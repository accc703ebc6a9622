"""A pruned model on disk, and back in a fresh process: a reference, the widths that are left, weights. No pickle."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from distill.documents import read_json
from distill.errors import UserError
from distill.prune.graph.structure import apply_structure, structure_of
from distill.prune.trusted_references import approved, at_most
from distill.references.models import build, recipe
from distill.state_dicts import load_state

FORMAT = "distill pruned model 1"
WEIGHTS, ABOUT = "model.safetensors", "model.json"
_TIMES, _LEAST = 64, 2**30  # an unpruned model may be so much larger than what is left, and is let be of a gibibyte


def save(folder: Path, model: nn.Module, reference: str, arguments: Mapping[str, Any]) -> None:
    """Write a pruned model's ``model.safetensors`` and ``model.json`` into a folder that is there already.

    The unpruned model was built from ``reference``, as `references` takes it, with these keyword arguments.

    Raises:
        UserError: the arguments cannot be written as JSON.
    """
    reference, arguments = recipe(reference, arguments, model)
    about = {
        "format": FORMAT,
        "reference": reference,
        "arguments": dict(arguments),
        "structure": structure_of(model),
    }
    try:
        text = json.dumps(about, indent=1, sort_keys=True) + "\n"
    except (TypeError, ValueError) as error:
        raise UserError(f"{reference}: its arguments cannot be written as JSON ({error})") from error
    # A tensor that two modules share is stored under both names, each a copy: safetensors refuses aliases.
    state = {name: value.detach().cpu().clone().contiguous() for name, value in model.state_dict().items()}
    save_file(state, folder / WEIGHTS)
    (folder / ABOUT).write_text(text, encoding="utf-8")


def load(folder: str | Path, reference: str | None = None, *, trust: str | Iterable[str] = ()) -> nn.Module:
    """Build the model that ``python -m distill prune`` left in a folder: widths, weights, in eval mode.

    A folder may come from a stranger, and a file never chooses code: the folder's own reference is followed where timm,
    torchvision or transformers register it, and where ``trust`` names it too. What made the unpruned model has to be
    importable, as it was when it was pruned; the model comes back on the CPU.

    Args:
        folder: holds ``model.json`` and ``model.safetensors``.
        reference: where the function that makes the unpruned model is now, if it has moved.
        trust: the functions, as ``package.module:function`` or ``./file.py:function``, that the folder may name.

    Raises:
        UserError: a file is missing or damaged, the folder names a function that is not trusted, or the reference
            builds another model than the one that was pruned.
    """
    about = _about(Path(folder) / ABOUT)
    source = about["reference"] if reference is None else reference
    trusted = trust if reference is None else (reference,)
    approved_reference, arguments = approved(source, about["arguments"], trusted, file=Path(folder) / ABOUT)
    return _built(Path(folder), approved_reference, arguments, about["structure"])


def load_own(folder: Path) -> nn.Module:
    """Build the model that this very process wrote into a folder, by whatever it was made from."""
    about = _about(folder / ABOUT)
    return _built(folder, about["reference"], about["arguments"], about["structure"])


def _built(folder: Path, reference: str, arguments: Mapping[str, Any], structure: Mapping[str, Any]) -> nn.Module:
    path = folder / WEIGHTS
    weights = _weights(path)
    with at_most(max(_LEAST, _TIMES * path.stat().st_size), folder / ABOUT):
        model = build(reference, arguments)
    model = apply_structure(model, structure)
    try:
        load_state(model, weights)
    except RuntimeError as error:
        raise UserError(f"{path}: not the weights of {reference} ({' '.join(str(error).split())[:300]})") from error
    return model.eval()


def _about(path: Path) -> Mapping[str, Any]:
    try:
        about = read_json(path, finite=True)
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror}); give the folder that the model was pruned into"
        ) from error
    except ValueError as error:
        raise UserError(f"{path}: is damaged ({error}); prune again") from error
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        raise UserError(f"{path}: describes no pruned model that this version reads ({FORMAT!r})")
    missing = {"reference", "arguments", "structure"} - about.keys()
    if missing:
        raise UserError(f"{path}: is damaged (no {', '.join(sorted(missing))}); prune again")
    return about


def _weights(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise UserError(f"{path}: there is no such file; give the folder that the model was pruned into")
    try:
        return dict(load_file(path))
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: is no safetensors file, or a damaged one ({error}); prune again") from error
