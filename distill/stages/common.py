"""What all stages of a run have in common: a key, a folder, a result, and training with the run's task and device."""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from distill.benchmarks import usable_threads
from distill.config.loading import TeacherSettings
from distill.distillation.settings import DistillSettings
from distill.documents import plain, read_as
from distill.prune import count
from distill.runtime.artifacts import Artifact, Recipe, example, load_model, model_inputs, save_model, write_onnx
from distill.runtime.context import Context
from distill.runtime.facts import Detail, StageFacts
from distill.runtime.folder import CHECKPOINT, damaged, digest
from distill.state_dicts import hash_tensors
from distill.tasks.base import Inputs
from distill.training.batches import shuffled
from distill.training.lesson import Lesson
from distill.training.loop import TrainRecord, fit
from distill.training.settings import TrainSettings

SMALL_WORK = 10**9
"""Multiply-accumulates of a forward batch below which a second thread costs more than it brings."""
TRAINING = ("distill.training", "distill.distillation", "distill.stages")
"""What the sources of a trained model are, besides the parts that every key names."""


@dataclass(frozen=True)
class StageResult:
    """A stage's product, what it wrote down about it, and whether it was there already."""

    artifact: Artifact
    facts: StageFacts
    reused: bool


def make_stage(
    ctx: Context,
    name: str,
    key: str,
    build: Callable[[Path], StageFacts],
    recipe: Recipe,
    *,
    module: bool = True,
) -> StageResult:
    """Return what ``build`` made in the stage's folder, now or in an earlier run with the same key.

    Raises:
        UserError: the folder's record is damaged.
    """

    def timed(folder: Path) -> dict[str, Any]:
        begun = time.monotonic()
        facts = build(folder)
        return plain(dataclasses.replace(facts, seconds=time.monotonic() - begun))  # type: ignore[no-any-return]

    folder, raw, reused = ctx.folder.stage(name, key, timed)
    try:
        facts = read_as(StageFacts, raw)
    except ValueError as error:
        raise damaged(folder / "stage.json", str(error), remove=folder) from error
    model = load_model(folder, ctx.task, recipe) if module else None
    return StageResult(Artifact(name[3:], folder, recipe, model), facts, reused)


def write_model(
    ctx: Context, folder: Path, model: nn.Module, recipe: Recipe, detail: Detail, warnings: tuple[str, ...] = ()
) -> StageFacts:
    """Write weights, architecture and graphs; return the facts of the stage, the model's size among them."""
    ctx.console.progress(f"exporting {folder.name.split('-')[1]}", 0, 1)
    save_model(folder, model, recipe)
    write_onnx(folder, model, ctx.task, ctx.export)
    counts = count(model, *example(ctx.task))
    ctx.console.progress(f"exporting {folder.name.split('-')[1]}", 1, 1)
    return StageFacts(counts.parameters, counts.macs, warnings=warnings, detail=detail)


def fit_here(
    ctx: Context,
    model: nn.Module,
    settings: TrainSettings,
    title: str,
    *,
    section: str,
    seed: int | None = None,
    lesson: Lesson | None = None,
    folder: Path | None = None,
) -> tuple[nn.Module, TrainRecord]:
    """Call ``fit`` with the run's task, device and progress, on as many threads as the model's size is worth.

    ``seed`` is the run's where none is given; ``folder`` is the stage's, which holds the checkpoint.
    """
    before = torch.get_num_threads()
    work = count(model, *example(ctx.task)).macs * settings.batch_size
    torch.set_num_threads(1 if work < SMALL_WORK else usable_threads())
    try:
        return fit(
            model, ctx.task, settings, seed=ctx.config.seed if seed is None else seed, device=ctx.device, lesson=lesson,
            title=title, section=section, checkpoint=folder and folder / CHECKPOINT, progress=ctx.console.progress,
        )  # fmt: skip
    finally:
        torch.set_num_threads(before)


def train_settings(settings: TeacherSettings | DistillSettings) -> TrainSettings:
    """Return the part of a section that training is set by."""
    return TrainSettings(**{f.name: getattr(settings, f.name) for f in dataclasses.fields(TrainSettings)})


def code_of(model: nn.Module) -> str:
    """Return a hash of the source files that a model's classes come from, torch's own left out."""
    files = set()
    for module in model.modules():
        name = type(module).__module__
        if name.split(".")[0] == "torch":
            continue
        try:
            files.add(inspect.getsourcefile(sys.modules[name]) if name in sys.modules else None)
        except TypeError:
            continue
    texts = sorted(Path(file).read_bytes() for file in files if file and Path(file).is_file())
    return hashlib.sha256(b"\0".join(texts)).hexdigest()[:16]


def start_hash(model: nn.Module) -> str:
    """Return a hash of a model as training finds it: the code of its classes, its weights and buffers."""
    return digest(code_of(model), hash_tensors(model.state_dict()))


def training_inputs(ctx: Context, size: int) -> Iterator[Inputs]:
    """Yield the model's own arguments for augmented training batches."""
    numbered = shuffled(ctx.task.data["train"], size, seed=ctx.config.seed, epoch=1, view=1)
    return (model_inputs(ctx.task, batch) for _, batch in numbered)
