"""What is done to one architecture, each step in a process of its own: build, prune, check, export, load again.

A step returns what goes into the results, and leaves its files in a folder. What stops it is no crash of the campaign:
``why`` says it, and ``at`` how far the step came.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from distill.errors import UserError
from distill.export import export_onnx, run_onnx, to_bytes
from distill.prune import PruneSettings, apply_structure, count, prune_channels, structure_of
from distill.state_dicts import load_state

from .architectures_models import Case, built, logits_of
from .architectures_peer import has_extras, searched, with_defaults, with_extras

Result = dict[str, Any]
Pruned = tuple[nn.Module, Result]
_ROWS = 2
_ANSWERS = "the answers of the model that was saved"
_LONGEST = 400  # of what an error says


def plain(case: Case, folder: Path) -> Result:
    """Build and export the model as it is; write the rows that everything is timed with."""
    args, kwargs = case.inputs(_ROWS)
    tensors = [*args, *kwargs.values()]
    np.savez(folder / "rows.npz", **{name: t.numpy() for name, t in zip(case.input_names, tensors, strict=True)})

    def make() -> Pruned:
        model = built(case)
        return model, {"extras": has_extras(model)}

    return _checked(case, folder / "plain.onnx", make)


def counted(case: Case, _: Path) -> Result:
    """Build the model as it is, and count what it has."""
    size = count(built(case), *case.inputs(1))
    return {"at": "done", "macs": size.macs, "parameters": size.parameters}


def ours(case: Case, folder: Path, asked: float) -> Result:
    """Prune with ``prune_channels``, export, and save what ``again`` reads."""

    def prune() -> Pruned:
        model, record = prune_channels(
            built(case),
            PruneSettings(macs=1 - asked, importance="group_norm"),
            example=case.inputs(_ROWS),
            batches=None,
            loss=None,
            logits=logits_of,
        )
        if record.shortfall is not None:  # the verb writes nothing then
            raise UserError("; ".join([record.shortfall, *record.warnings]))
        return model, {"warnings": list(record.warnings)}

    def keep(model: nn.Module, answers: Tensor) -> None:
        state = {name: value.clone().contiguous() for name, value in model.state_dict().items()}
        save_file(state | {_ANSWERS: answers}, folder / "model.safetensors")
        (folder / "structure.json").write_text(json.dumps(structure_of(model)), encoding="utf-8")

    return _checked(case, folder / "distill.onnx", prune, keep)


def again(case: Case, folder: Path) -> Result:
    """Load what ``ours`` saved onto a model with other weights, and compare its answers bit by bit."""
    model = apply_structure(built(case, seed=1), json.loads((folder / "structure.json").read_text(encoding="utf-8")))
    state = load_file(folder / "model.safetensors")
    before = state.pop(_ANSWERS)
    load_state(model, state)
    now = _run(model.eval(), case)
    return {"identical": torch.equal(before, now), "apart": float((before - now).abs().max())}


def peer(case: Case, folder: Path, asked: float, *, extras: bool, seconds: float) -> Result:
    """Prune with torch-pruning, and export."""

    def prune() -> Pruned:
        model, ratio, tries = searched(built(case), case, asked, with_extras if extras else with_defaults, seconds)
        return model, {"ratio": ratio, "tries": tries}

    return _checked(case, folder / ("torch-pruning-extras.onnx" if extras else "torch-pruning.onnx"), prune)


def _checked(
    case: Case, out: Path, prune: Callable[[], Pruned], keep: Callable[[nn.Module, Tensor], None] | None = None
) -> Result:
    """Prune, run, keep, count and export; say how far that came."""
    result: Result = {"at": "prune"}
    begun = time.perf_counter()
    try:
        model, more = prune()
        result |= more | {"at": "forward", "prune_s": time.perf_counter() - begun}
        answers = _run(model, case)
        if keep is not None:
            keep(model, answers)
        args, kwargs = case.inputs(1)
        size = count(model, args, kwargs)
        result |= {"at": "export", "macs": size.macs, "parameters": size.parameters}
        result |= _exported(model, case, answers, out) | {"at": "done"}
    except Exception as error:  # whatever it is belongs into the table
        told = isinstance(error, UserError)
        text = str(error) if told else f"{type(error).__name__}: {error}".rstrip(": ")
        result |= {"why": " ".join(text.split())[:_LONGEST], "refused": told}
    return result | {"seconds": time.perf_counter() - begun}


def _run(model: nn.Module, case: Case) -> Tensor:
    args, kwargs = case.inputs(_ROWS)
    with torch.no_grad():
        answers = logits_of(model(*args, **kwargs)).contiguous()
    if tuple(answers.shape) != (_ROWS, case.classes):
        raise UserError(f"its output has the shape {list(answers.shape)}, not {[_ROWS, case.classes]}")
    return answers


def _exported(model: nn.Module, case: Case, answers: Tensor, out: Path) -> Result:
    """Export, which checks the graph at several batch sizes; return its distance as a share of the largest logit."""
    args, kwargs = case.inputs(_ROWS)
    proto = export_onnx(model, args=args, kwargs=kwargs, logits=logits_of, input_names=case.input_names)
    feed = {name: t.numpy() for name, t in zip(case.input_names, (*args, *kwargs.values()), strict=True)}
    expected = answers.numpy()
    apart, largest = np.abs(run_onnx(proto, [feed], threads=1) - expected).max(), np.abs(expected).max()
    out.write_bytes(to_bytes(proto))
    return {"onnx_error": float(apart / largest) if largest else math.inf, "onnx_bytes": out.stat().st_size}
