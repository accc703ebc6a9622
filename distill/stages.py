"""The stages of a run: what each one makes, keyed so that an equal one is never made twice.

Each function here takes the context and the artifacts before it, and returns its own artifact with the facts that it
wrote down. Judging and timing are the pipeline's.
"""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from distill.artifacts import (
    Artifact,
    Calibration,
    Recipe,
    attach,
    core_feed,
    example,
    load_model,
    read_graph,
    save_model,
    weights_hash,
    write_onnx,
    write_proto,
)
from distill.benchmarks import usable_threads
from distill.config import DistillSettings, ModelSettings, PruneSection, TeacherSettings
from distill.context import Context
from distill.decisions import WIDTHS
from distill.errors import NotMeasuredError, UserError
from distill.export import run_onnx
from distill.losses import LOSSES
from distill.models import MODELS, load_weights
from distill.prune import count, prune_channels, recalibrate
from distill.prune.settings import PruneSettings
from distill.quantize import QuantizeSettings
from distill.quantize import quantize as quantize_graph
from distill.quantize.repair import Attempt, Loss, repair
from distill.quantize.sensitivity import divergence
from distill.runfolder import CHECKPOINT, damaged, digest
from distill.shipped import Shipped
from distill.state import hash_tensors
from distill.tasks.base import Feed
from distill.tasks.outputs import refuse_probabilities
from distill.training import StepLoss, Teach, TrainRecord, TrainSettings, as_inputs, fit, forward, predict
from distill.views import batches, fits_cache, shuffled, teacher_for

SMALL_WORK = 10**9
"""Multiply-accumulates of a forward batch below which a second thread costs more than it brings."""
_FEW = 64
TRAINING = ("distill.training", "distill.views", "distill.losses", "distill.stages")


@dataclass(frozen=True)
class Made:
    """A stage's product, what it wrote down about it, and whether it was there already."""

    artifact: Artifact
    facts: dict[str, Any]
    reused: bool


def try_models(ctx: Context) -> None:
    """Call every model of the configuration on two samples, and export those that are not ours.

    So that one that does not fit shows before any training. That a model can be exported is found out once.

    Raises:
        UserError: a model cannot be built, does not take the data, returns something else than logits, or cannot be
            exported.
        NotMeasuredError: pruning is asked for a speed-up, and the target is not at hand.
    """
    pruning = ctx.config.prune
    measures = pruning is not None and pruning.asked[0] == "speedup" and not pruning.is_idle
    if measures and WIDTHS not in ctx.replay and ctx.unmeasured is not None:
        raise NotMeasuredError(
            f"prune.speedup: {ctx.unmeasured}, so no speed-up can be measured; ask for prune.macs or prune.ratio"
        )
    chosen: dict[str, TeacherSettings | ModelSettings] = {"teacher": ctx.config.teacher}
    if isinstance(ctx.config.student, ModelSettings) and ctx.config.distill is not None:
        chosen["student"] = ctx.config.student
    batch = ctx.task.data["train"].fetch(torch.arange(2), None)
    for field, settings in chosen.items():
        model = Recipe(settings.model, dict(settings.args), field, ctx.config.seed).build(ctx.task).eval()
        with torch.no_grad():
            what = f"{field}.model={settings.model!r}"
            refuse_probabilities(forward(model, ctx.task, batch, torch.device("cpu"), what=what), what=what)
        if settings.model not in MODELS or ctx.task.module_preprocess is not None:
            key = ctx.key(settings.model, settings.args, code_of(model), _export(ctx), modules=())
            ctx.folder.memo("exports", key, partial(_try_export, ctx, model))


def _try_export(ctx: Context, model: nn.Module) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        write_onnx(Path(folder), model, ctx.task, ctx.export)
    return {"exports": True}


def teacher(ctx: Context) -> Made:
    """Load the teacher, or train it on the labels."""
    settings = ctx.config.teacher
    recipe = Recipe(settings.model, dict(settings.args), "teacher", ctx.config.seed)
    model = recipe.build(ctx.task)
    loaded = settings.weights is not None or settings.pretrained
    if settings.weights is not None:
        load_weights(model, settings.weights, field="teacher")
    start = state_hash(model)
    train = _train_settings(settings)
    how = [loaded, None if loaded else dataclasses.asdict(train), start, code_of(model)]
    key = ctx.key("teacher", dataclasses.asdict(recipe), how, ctx.config.seed, _export(ctx), modules=TRAINING)

    def build(folder: Path) -> dict[str, Any]:
        trained, facts = model.eval(), {"loaded": loaded}
        if loaded:
            _require_finite(ctx, trained)
        else:
            trained, record = fit_here(
                ctx,
                model,
                train,
                seed=ctx.config.seed,
                what="training the teacher",
                field_name="teacher",
                checkpoint=folder / CHECKPOINT,
            )
            facts |= _training_facts(dataclasses.asdict(record))
        return facts | _write(ctx, folder, trained, recipe)

    return _make(ctx, "01-teacher", key, build, recipe)


def control(ctx: Context) -> Made:
    """Train the student on the labels alone, for as many steps as the distilled one."""
    return _student(ctx, "02-control", None)


def student(ctx: Context, taught_by: Artifact) -> Made:
    """Train the student on the teacher's soft logits and the labels."""
    return _student(ctx, "03-student", taught_by)


def prune(ctx: Context, base: Artifact, taught_by: Artifact) -> Made:
    """Remove channels, recalibrate batch norm, and distill again from the unpruned teacher."""
    settings = ctx.config.prune
    assert settings is not None and base.model is not None
    distillation = ctx.config.distill or DistillSettings()
    recovery = dataclasses.replace(
        _train_settings(distillation), epochs=max(1, settings.epochs), learning_rate=settings.learning_rate
    )
    timed = settings.asked[0] == "speedup"
    decided = ctx.replay.get(WIDTHS) if timed else None
    parts = (dataclasses.asdict(settings), dataclasses.asdict(distillation), ctx.config.seed, _export(ctx))
    inputs = (weights_hash(base.folder), weights_hash(taught_by.folder))
    # What was measured decides only where a speed is asked for.
    measured = (dataclasses.asdict(ctx.target), _number_format(ctx), decided or ctx.measured_with) if timed else ()
    key = ctx.key("prune", parts, inputs, measured, modules=("distill.prune", *TRAINING))

    def build(folder: Path) -> dict[str, Any]:
        assert base.model is not None
        teach, loss = teaching(ctx, taught_by, distillation)
        with closing(shipped(ctx)) if timed and decided is None else nullcontext() as timer:
            narrow, record = prune_channels(
                base.model,
                PruneSettings(**{f.name: getattr(settings, f.name) for f in dataclasses.fields(PruneSettings)}),
                example=example(ctx.task),
                batches=_numbered(ctx, recovery.batch_size),
                loss=_distillation_loss(ctx, teach, loss),
                logits=ctx.task.logits,
                device=None if timer is None else timer.device(ctx.folder.cache),
                recover=partial(_between, ctx, settings, recovery, distillation, (teach, loss)),
                decided=decided,
                seed=ctx.config.seed,
                progress=ctx.console.progress,
            )
        facts: dict[str, Any] = {"widths": record.widths, "pruning": dataclasses.asdict(record)}
        facts["warnings"] = list(record.warnings)
        if facts["pruning"]["macs_after"] < facts["pruning"]["macs_before"]:
            narrow = recalibrate(narrow, model_inputs(ctx, recovery.batch_size))
        if settings.epochs:
            narrow, trained = fit_here(
                ctx,
                narrow,
                recovery,
                seed=ctx.config.seed + 1,
                teach=teach,
                loss=loss,
                views=distillation.views,
                what="recovering from pruning",
                field_name="prune",
                checkpoint=folder / CHECKPOINT,
            )
            facts |= _training_facts(dataclasses.asdict(trained))
        return facts | _write(ctx, folder, narrow, base.recipe)

    return _make(ctx, "04-prune", key, build, base.recipe)


def _between(
    ctx: Context,
    settings: PruneSection,
    recovery: TrainSettings,
    distillation: DistillSettings,
    taught: tuple[Teach, StepLoss],
    narrow: nn.Module,
    step: int,
) -> nn.Module:
    """Recalibrate and distill a little between two steps of pruning."""
    narrow = recalibrate(narrow, model_inputs(ctx, recovery.batch_size))
    if not settings.between:
        return narrow
    teach, loss = taught
    short = dataclasses.replace(recovery, epochs=settings.between)
    trained, _ = fit_here(
        ctx,
        narrow,
        short,
        seed=ctx.config.seed + 2 + step,
        teach=teach,
        loss=loss,
        views=distillation.views,
        what=f"recovering from step {step + 1} of pruning",
        field_name="prune",
    )
    return trained


def _number_format(ctx: Context) -> str:
    """Return what a module's file will compute in when it ships: what is asked for, were it kept."""
    return "float32" if ctx.config.quantize is None else ctx.target.precision


def shipped(ctx: Context) -> Shipped:
    """Return what times a module of this run as it will ship, at the first batch size of the target."""
    wanted, batch = _number_format(ctx), ctx.target.batch_sizes[0]

    def write(model: nn.Module, path: Path) -> None:
        with tempfile.TemporaryDirectory() as folder:
            write_onnx(Path(folder), model, ctx.task, ctx.export)
            core = read_graph(Path(folder, "core.onnx"))
        if wanted != "float32":
            inputs = tuple(value.name for value in core.graph.input)
            # Which ranges it finds is no matter of time.
            samples = Calibration(ctx.task, inputs, _FEW, ctx.config.seed)
            core, _ = quantize_graph(core, ctx.config.quantize, target=ctx.target, calibration=samples)
        write_proto(path, core)

    return Shipped(
        write,
        ctx.target,
        batch,
        kernels="int8" if wanted == "int8" else "float32",
        settings=dataclasses.replace(ctx.benchmark, session_pairs=min(3, ctx.benchmark.session_pairs)),
    )


def quantize(ctx: Context, base: Artifact, teacher: Artifact) -> Made:
    """Turn the float graph into the number format that the target runs fastest, repaired if it loses too much."""
    settings = ctx.config.quantize
    assert settings is not None
    how = (dataclasses.asdict(settings), dataclasses.asdict(ctx.target), ctx.config.seed, _export(ctx))
    limit = (ctx.config.max_drop, teacher.graph_hash)
    key = ctx.key("quantize", how, limit, weights_hash(base.folder), modules=("distill.quantize", "distill.stages"))

    def build(folder: Path) -> dict[str, Any]:
        core = read_graph(base.core)
        inputs = tuple(value.name for value in core.graph.input)
        calibration = Calibration(ctx.task, inputs, settings.samples, ctx.config.seed)
        if ctx.target.precision == "int8":
            best = _within_budget(ctx, core, settings, calibration, teacher)
            quantized, record, tried = best.model, best.record, best.name
        else:
            quantized, record = quantize_graph(
                core, settings, target=ctx.target, calibration=calibration, progress=ctx.console.progress
            )
            tried = record.precision
        write_proto(folder / "core.onnx", quantized)
        write_proto(folder / "model.onnx", attach(quantized, ctx.task))
        about = json.loads((base.folder / "stage.json").read_text(encoding="utf-8"))["facts"]
        facts = {name: about[name] for name in ("parameters", "macs")}
        return facts | {
            "quantization": dataclasses.asdict(record) | {"how": tried},
            "warnings": list(record.warnings),
        }

    made = _make(ctx, "05-quantize", key, build, base.recipe, module=False)
    return dataclasses.replace(made, artifact=dataclasses.replace(made.artifact, model=base.model))


def _within_budget(
    ctx: Context, core: onnx.ModelProto, settings: QuantizeSettings, calibration: Calibration, teacher: Artifact
) -> Attempt:
    """Quantise to int8, and repair it until it keeps the run's budget on validation data, or as far as it goes.

    Where the float graph misses the budget already, int8 has to lose nothing more.
    """
    numbers, data = ctx.target_of("validation"), ctx.task.data["validation"]

    def rows() -> Iterator[Feed]:
        for _, batch in batches(data, 256):
            yield core_feed(ctx.task, None, batch, list(calibration.inputs))

    def metric(logits: NDArray[Any]) -> float:
        return float(ctx.task.metrics(logits, numbers)[ctx.task.metric])

    goal, reference = metric(ctx.logits(teacher.onnx, "validation")), run_onnx(core, rows())

    def judge(model: onnx.ModelProto) -> Loss:
        logits = run_onnx(model, rows())
        if not np.isfinite(logits).all():
            return Loss(float("inf"), float("inf"))
        return Loss(goal - metric(logits), divergence(reference, logits))

    budget = max(ctx.config.max_drop, goal - metric(reference))
    done = repair(
        core,
        settings,
        target=ctx.target,
        calibration=calibration,
        rows=list(islice(rows(), 2)),
        judge=judge,
        max_drop=budget,
        timed=False,  # a run gives equal bytes for equal input
        progress=ctx.console.progress,
    )
    best = done.attempts[-1] if done.attempts[-1].loss.drop <= budget else done.best
    if len(done.attempts) > 1:
        ctx.console.say(f"quantize: plain int8 loses too much; of {len(done.attempts)} ways the best is {best.name}")
    return best


def teaching(ctx: Context, taught_by: Artifact, settings: DistillSettings) -> tuple[Teach, StepLoss]:
    """Return what answers for the teacher, and the loss that listens to it."""
    assert taught_by.model is not None
    key = digest(weights_hash(taught_by.folder), ctx.data_key, str(ctx.device.type))
    source = teacher_for(
        taught_by.model,
        ctx.task,
        views=settings.views,
        key=key,
        folder=ctx.folder.cache,
        device=ctx.device,
        tell=ctx.folder.tell,
    )
    chosen = LOSSES[settings.loss]

    def loss(student_logits: Tensor, teacher_logits: Tensor, hard: Tensor) -> Tensor:
        return chosen(student_logits, teacher_logits, hard, settings.temperature, settings.weight)

    return source, loss


def fit_here(ctx: Context, model: nn.Module, settings: TrainSettings, **options: Any) -> tuple[nn.Module, TrainRecord]:
    """Call ``fit`` with the run's task, device and progress, on as many threads as the model's size is worth."""
    before = torch.get_num_threads()
    work = count(model, *example(ctx.task)).macs * settings.batch_size
    torch.set_num_threads(1 if work < SMALL_WORK else usable_threads())
    try:
        return fit(model, ctx.task, settings, device=ctx.device, progress=ctx.console.progress, **options)
    finally:
        torch.set_num_threads(before)


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


def state_hash(model: nn.Module) -> str:
    """Return a hash of a model's weights and buffers."""
    return hash_tensors(model.state_dict())[:16]


def _student(ctx: Context, name: str, taught_by: Artifact | None) -> Made:
    settings, chosen = ctx.config.distill, ctx.config.student
    assert settings is not None and isinstance(chosen, ModelSettings)
    recipe = Recipe(chosen.model, dict(chosen.args), "student", ctx.config.seed)
    model = recipe.build(ctx.task)
    train = _train_settings(settings)
    how: list[Any] = [dataclasses.asdict(train), ctx.config.seed, code_of(model), state_hash(model), _export(ctx)]
    if taught_by is not None:
        how += [weights_hash(taught_by.folder), settings.loss, settings.temperature, settings.weight, settings.views]
    key = ctx.key(name, dataclasses.asdict(recipe), how, modules=TRAINING)

    def build(folder: Path) -> dict[str, Any]:
        teach, loss = teaching(ctx, taught_by, settings) if taught_by is not None else (None, None)
        # The control sees a new view every epoch: it has no cache to save, and is not to be held back by ours.
        trained, record = fit_here(
            ctx,
            model,
            train,
            seed=ctx.config.seed,
            teach=teach,
            loss=loss,
            views=settings.views if taught_by is not None else 0,
            what="distilling the student" if taught_by is not None else "training the control",
            field_name="distill",
            checkpoint=folder / CHECKPOINT,
        )
        facts = _training_facts(dataclasses.asdict(record))
        if taught_by is not None:
            facts["cached_views"] = settings.views if fits_cache(ctx.task, settings.views) else 0
        return facts | _write(ctx, folder, trained, recipe)

    return _make(ctx, name, key, build, recipe)


def _make(
    ctx: Context,
    name: str,
    key: str,
    build: Callable[[Path], dict[str, Any]],
    recipe: Recipe,
    *,
    module: bool = True,
) -> Made:
    def timed(folder: Path) -> dict[str, Any]:
        begun = time.monotonic()
        facts = build(folder)
        return facts | {"seconds": time.monotonic() - begun}

    folder, facts, reused = ctx.folder.stage(name, key, timed)
    strange = [one for one in ("seconds", "parameters", "macs") if not isinstance(facts.get(one), int | float)]
    if strange:
        raise damaged(folder / "stage.json", f"{strange[0]} is no number", remove=folder)
    model = None
    if module:
        model = load_model(folder, ctx.task, recipe)
    return Made(Artifact(name[3:], folder, recipe, model), facts | {"hashes": ctx.folder.hashes(folder)}, reused)


def _write(ctx: Context, folder: Path, model: nn.Module, recipe: Recipe) -> dict[str, Any]:
    """Write weights, architecture and graphs; return what counts the model."""
    ctx.console.progress(f"exporting {folder.name.split('-')[1]}", 0, 1)
    save_model(folder, model, recipe)
    write_onnx(folder, model, ctx.task, ctx.export)
    counts = count(model, *example(ctx.task))
    ctx.console.progress(f"exporting {folder.name.split('-')[1]}", 1, 1)
    return {"parameters": counts.parameters, "macs": counts.macs}


def _require_finite(ctx: Context, model: nn.Module) -> None:
    """Refuse a loaded teacher that has no answers to teach."""
    logits, _ = predict(model, ctx.task, ctx.task.data["validation"], ctx.device)
    bad = int((~np.isfinite(logits)).any(1).sum())
    if bad:
        raise UserError(
            f"teacher.model={ctx.config.teacher.model!r}: its logits for {bad} of {len(logits)} validation samples are "
            "not finite; load other weights, or look at the data"
        )


def _train_settings(settings: TeacherSettings | DistillSettings) -> TrainSettings:
    return TrainSettings(**{f.name: getattr(settings, f.name) for f in dataclasses.fields(TrainSettings)})


def _training_facts(record: dict[str, Any]) -> dict[str, Any]:
    curves = record.pop("curves")
    return {"training": record, "curves": curves}


def _export(ctx: Context) -> dict[str, Any]:
    """Return what decides the exported graph: who else has to load the packed file does not."""
    return {name: value for name, value in dataclasses.asdict(ctx.export).items() if name != "load_with"}


def _numbered(ctx: Context, size: int) -> list[tuple[Tensor, Any]]:
    """Return the batches that importance is measured on, with their sample numbers."""
    wanted = ctx.config.prune.batches if ctx.config.prune else 1
    found = []
    for index, batch in shuffled(ctx.task.data["train"], size, seed=ctx.config.seed, epoch=0, view=0):
        found.append((index, batch))
        if len(found) == wanted:
            break
    return found


def _distillation_loss(ctx: Context, teach: Teach, loss: StepLoss) -> Callable[[nn.Module, Any], Tensor]:
    def value(model: nn.Module, numbered: tuple[Tensor, Any]) -> Tensor:
        index, batch = numbered
        where = next(model.parameters()).device
        logits = forward(model, ctx.task, batch, where).float()
        hard = ctx.task.loss(logits, ctx.task.target(batch).to(where))
        return loss(logits, teach(index, batch, 0).to(where), hard)

    return value


def model_inputs(ctx: Context, size: int) -> Iterator[tuple[tuple[Any, ...], dict[str, Any]]]:
    """Yield the model's own arguments for augmented training batches."""
    for _, batch in shuffled(ctx.task.data["train"], size, seed=ctx.config.seed, epoch=1, view=1):
        args, kwargs = ctx.task.inputs(batch)
        if ctx.task.module_preprocess is not None:
            with torch.no_grad():
                args, kwargs = as_inputs(ctx.task.module_preprocess(*args, **kwargs))
        yield args, kwargs
