"""Pruning in a run: channels go, and the teacher teaches what is left."""

from __future__ import annotations

import dataclasses
from contextlib import closing, nullcontext
from functools import partial
from itertools import islice
from pathlib import Path

from torch import Tensor, nn

from distill import scratch
from distill.config.loading import PruneSection
from distill.distillation.settings import DistillSettings
from distill.prune import prune_channels, recalibrate
from distill.quantize import quantize as quantize_graph
from distill.runtime.artifacts import Artifact, Calibration, example, read_halves, weights_hash, write_onnx, write_proto
from distill.runtime.context import Context
from distill.runtime.decisions import WIDTHS
from distill.runtime.facts import Detail, StageFacts
from distill.runtime.timing import Shipped
from distill.stages.common import TRAINING, StageResult, fit_here, make_stage, training_inputs, write_model
from distill.stages.student import lesson_of
from distill.tasks.base import Batch
from distill.training.batches import shuffled
from distill.training.lesson import Lesson, batch_loss
from distill.training.settings import TrainSettings

_FEW = 64


def make(ctx: Context, base: Artifact, taught_by: Artifact) -> StageResult:
    """Remove channels, recalibrate batch norm, and distill again from the unpruned teacher."""
    settings = ctx.config.prune
    assert settings is not None and base.model is not None
    distillation = ctx.config.distill or DistillSettings()
    epochs, rate = max(1, settings.epochs), settings.learning_rate
    recovery: TrainSettings = dataclasses.replace(distillation, epochs=epochs, learning_rate=rate)
    timed = settings.goal.needs_timing
    decided = ctx.replay.get(WIDTHS) if timed else None
    parts = (dataclasses.asdict(settings), dataclasses.asdict(distillation), ctx.config.seed)
    inputs = (weights_hash(base.folder), weights_hash(taught_by.folder))
    # What was measured decides only where a speed is asked for.
    measured = (ctx.target.facts(), _number_format(ctx), decided or ctx.measured_with) if timed else ()
    key = ctx.key("prune", parts, inputs, measured, modules=("distill.prune", *TRAINING))

    def build(folder: Path) -> StageFacts:
        assert base.model is not None
        lesson = lesson_of(ctx, taught_by, distillation)
        numbered = shuffled(ctx.task.data["train"], recovery.batch_size, seed=ctx.config.seed, epoch=0, view=0)

        def loss(model: nn.Module, numbered: tuple[Tensor, Batch]) -> Tensor:
            return batch_loss(model, ctx.task, *numbered, next(model.parameters()).device, lesson=lesson)

        with closing(shipped(ctx)) if timed and decided is None else nullcontext() as timer:
            narrow, record = prune_channels(
                base.model,
                settings,
                example=example(ctx.task),
                batches=list(islice(numbered, settings.batches)),
                loss=loss,
                logits=ctx.task.logits,
                device=None if timer is None else timer.device(ctx.folder.cache),
                recover=partial(_between, ctx, settings, recovery, lesson),
                decided=decided,
                seed=ctx.config.seed,
                progress=ctx.console.progress,
            )
        detail = Detail(widths=record.widths, pruning=record)
        if record.macs_after < record.macs_before:
            narrow = recalibrate(narrow, training_inputs(ctx, recovery.batch_size))
        if settings.epochs:
            how, seed = "recovering from pruning", ctx.config.seed + 1
            narrow, trained = fit_here(
                ctx, narrow, recovery, how, section="prune", seed=seed, lesson=lesson, folder=folder
            )
            detail = detail.trained(trained)
        return write_model(ctx, folder, narrow, base.recipe, detail, record.warnings)

    return make_stage(ctx, "04-prune", key, build, base.recipe)


def _between(
    ctx: Context,
    settings: PruneSection,
    recovery: TrainSettings,
    lesson: Lesson,
    narrow: nn.Module,
    step: int,
) -> nn.Module:
    """Recalibrate and distill a little between two steps of pruning."""
    narrow = recalibrate(narrow, training_inputs(ctx, recovery.batch_size))
    if not settings.between:
        return narrow
    short, seed = dataclasses.replace(recovery, epochs=settings.between), ctx.config.seed + 2 + step
    title = f"recovering from step {step + 1} of pruning"
    return fit_here(ctx, narrow, short, title, section="prune", seed=seed, lesson=lesson)[0]


def _number_format(ctx: Context) -> str:
    """Return what a module's file will compute in when it ships: what is asked for, were it kept."""
    return "float32" if ctx.config.quantize is None else ctx.target.precision


def shipped(ctx: Context) -> Shipped:
    """Return what times a module of this run as it will ship, at the first batch size of the target."""
    wanted, batch = _number_format(ctx), ctx.target.batch_sizes[0]

    def write(model: nn.Module, path: Path) -> None:
        with scratch.folder("export") as folder:
            write_onnx(folder, model, ctx.task, ctx.export)
            halves = read_halves(folder)
        core = halves.core
        if wanted != "float32":
            inputs = tuple(value.name for value in core.graph.input)
            # Which ranges it finds is no matter of time.
            samples = Calibration(ctx.task, inputs, _FEW, ctx.config.seed)
            core, _ = quantize_graph(core, ctx.config.quantize, target=ctx.target, calibration=samples)
        write_proto(path, dataclasses.replace(halves, core=core).whole)

    return Shipped(
        write,
        ctx.target,
        batch,
        kernels="int8" if wanted == "int8" else "float32",
        settings=dataclasses.replace(ctx.benchmark, session_pairs=min(3, ctx.benchmark.session_pairs)),
    )
