"""What a run will take, before it is begun.

Everything that can be wrong with data and models shows here, because both are really made. Times come from a few real
training steps; the rest is arithmetic, and all of it is an estimate.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import TypedDict

import torch

from distill.benchmarks import why_unmeasurable
from distill.config.loading import RunConfig
from distill.distillation.teachers import fits_cache
from distill.errors import UserError
from distill.estimate.costs import Cost, ModelCost, measure_cost, undisturbed
from distill.pipeline import pick_device, pick_target
from distill.references.weights import load_weights
from distill.runtime.artifacts import Recipe
from distill.tasks import load_task
from distill.tasks.base import Task

_QUANTIZE_S = 3.0
_SESSION_S = 1.5
_START_S = 4.0
# What exporter, onnxruntime and reports add to a process that trains, as seen on the presets.
_EXPORT_BYTES = 250 * 2**20
_REPORT_BYTES = 5 * 2**20
_NOTE = "all of these are estimates, from a few steps made just now; times can be off by half, more on a busy machine"


class TotalCost(TypedDict):
    """What all stages take: the sum of times and disk, the most memory."""

    seconds: float
    memory_bytes: int | None
    disk_bytes: int


class StageCost(TotalCost):
    """What one stage takes; ``what`` is its description."""

    name: str
    what: str


class Forecast(TypedDict):
    """What a run will take: every time and size is an estimate. ``data`` are the samples of each split."""

    task: str
    device: str
    target: str
    data: dict[str, int]
    classes: int
    metric: str
    models: dict[str, ModelCost]
    stages: list[StageCost]
    total: TotalCost
    warnings: list[str]
    note: str


def estimate(config: RunConfig) -> Forecast:
    """Load the data, build both models, time a few steps, and add up what each stage will take.

    Nothing is written, no random state is changed, and the steps are made on copies.

    Raises:
        UserError: data or a model are wrong; every error that could be found at once.
    """
    device = pick_device(config.device)
    target = pick_target(config, device)
    with undisturbed(device):
        task = load_task(config.data, seed=config.seed)
        costs, remarks = _costs(config, task, device)
    unmeasured = "benchmark is off" if config.benchmark is None else why_unmeasurable(target)
    sizes = {name: len(data) for name, data in task.data.items()}
    stages = [row for row in _stages(config, task, costs, sizes, unmeasured) if row["seconds"] or row["disk_bytes"]]
    memory = [row["memory_bytes"] for row in stages if row["memory_bytes"] is not None]
    warnings = [*task.warnings, *target.warnings, *remarks]
    if unmeasured:
        warnings.append(f"latency will be unmeasured: {unmeasured}")
    return {
        "task": config.task,
        "device": str(device),
        "target": target.name,
        "data": sizes,
        "classes": len(task.labels),
        "metric": task.metric,
        "models": {name: cost.of(config.models[name].model) for name, cost in costs.items()},
        "stages": stages,
        "total": {
            "seconds": sum(row["seconds"] for row in stages),
            "memory_bytes": max(memory, default=None),
            "disk_bytes": sum(row["disk_bytes"] for row in stages),
        },
        "warnings": list(dict.fromkeys(warnings)),
        "note": _NOTE,
    }


def _costs(config: RunConfig, task: Task, device: torch.device) -> tuple[dict[str, Cost], list[str]]:
    """Build the models and measure them, with remarks on their weights; errors of both are told together."""
    costs, remarks, problems = {}, list[str](), []
    trained = config.teacher.weights is None and not config.teacher.pretrained
    # A teacher that is only pruned is trained too: with the settings of the distillation.
    recovers = config.prune is not None and "student" not in config.models
    for name in config.models:
        teaches = name == "teacher"
        settings = config.teacher if config.distill is None or (teaches and trained) else config.distill
        try:
            model = Recipe.of(config, name).build(task)
            if teaches and config.teacher.weights is not None:
                remarks += load_weights(model, config.teacher.weights, field="teacher.weights")
            steps = trained or recovers or not teaches
            title = f"{name}.model={config.models[name].model!r}"
            costs[name] = measure_cost(model, task, settings, device, name, title, steps=steps)
        except UserError as error:
            problems.append(str(error))
    if problems:
        raise UserError("\n".join(dict.fromkeys(problems)))
    return costs, remarks


def _stages(
    config: RunConfig, task: Task, costs: dict[str, Cost], sizes: dict[str, int], unmeasured: str | None
) -> Iterator[StageCost]:
    teacher = costs["teacher"]
    student = costs.get("student", teacher)
    train, held_out = sizes["train"], sizes["validation"]
    distillation = config.distill
    views = distillation.views if distillation else 0
    cached = fits_cache(task, views) and not (distillation and distillation.loss.taps)
    # Without a cache the teacher answers in every step.
    taught_s = 0.0 if cached else student.settings.batch_size * teacher.sample_s
    loaded = config.teacher.weights is not None or config.teacher.pretrained
    works = dataclasses.replace(student, step_s=student.step_s + taught_s)
    learns = "student" in costs
    trained_s = 0.0 if loaded else teacher.training_s(train, held_out, config.teacher.epochs)
    yield _row("teacher", "teacher: load" if loaded else "teacher: train", trained_s, teacher, teacher.stage_bytes)
    if cached and (learns or config.prune):
        repeats = min(
            views, distillation.epochs if learns and distillation else config.prune.epochs if config.prune else 0
        )
        logits = train * len(task.labels) * 2
        yield _row(
            "logits",
            f"teacher logits of {repeats} views",
            repeats * train * teacher.sample_s,
            teacher,
            repeats * logits,
        )
    if config.search.trials and distillation:
        epochs = math.ceil(distillation.epochs * config.search.epochs) if learns else 0
        each = works.training_s(train, held_out, epochs + (1 if config.prune else 0))
        yield _row("search", f"search: {config.search.trials} trials", config.search.trials * each, works, 2**20)
    if learns and distillation:
        alone = student.training_s(train, held_out, distillation.epochs)
        if distillation.control:
            yield _row("control", "control: train the student alone", alone, student, student.stage_bytes)
        yield _row(
            "student",
            "student: distil",
            works.training_s(train, held_out, distillation.epochs),
            works,
            student.stage_bytes,
        )
    yield from _compression(config, works, train, held_out)
    yield from _afterwards(config, costs, sizes, len(task.labels), unmeasured)


def _compression(config: RunConfig, works: Cost, train: int, held_out: int) -> Iterator[StageCost]:
    if config.prune and not config.prune.is_idle:
        looks = min(config.prune.batches, max(1, train // works.settings.batch_size)) * works.step_s
        recovery = works.training_s(train, held_out, config.prune.epochs)
        yield _row("prune", "prune: cut and recover", looks + recovery, works, works.stage_bytes)
    if config.quantize:
        samples = min(config.quantize.samples, train)
        seconds = _QUANTIZE_S + 2 * samples * works.sample_s
        yield _row("quantize", "quantize: calibrate", seconds, works, works.parameters * 2, extra=_EXPORT_BYTES)


def _afterwards(
    config: RunConfig, costs: dict[str, Cost], sizes: dict[str, int], classes: int, unmeasured: str | None
) -> Iterator[StageCost]:
    """Add up exports, answers on validation and test, and timing; each stage has a file."""
    teacher = costs["teacher"]
    student = costs.get("student", teacher)
    control = "student" in costs and config.distill is not None and config.distill.control
    modules = [teacher, *([student] if "student" in costs else []), *([student] if control else [])]
    modules += [student] if config.prune and not config.prune.is_idle else []
    files = len(modules) + (config.quantize is not None)  # the packed file is the last of these, with metadata
    seconds = _START_S + sum(cost.export_s for cost in modules)
    judged = sizes["validation"] + sizes["test"]
    # Each file answers both splits in onnxruntime, and each module the test split in torch.
    seconds += sum(judged * cost.sample_s + sizes["test"] * cost.sample_s for cost in modules)
    disk = _REPORT_BYTES + student.parameters * 4 + files * judged * classes * 4
    yield _row("export", "exports, parity, reports", seconds, teacher, disk, extra=_EXPORT_BYTES)
    if unmeasured is None and config.benchmark:
        settings = config.benchmark
        each = settings.session_pairs * settings.seconds_per_pair + _SESSION_S
        decided = sum(1 for section in (config.prune, config.quantize) if section)
        seconds = (files * len(settings.batch_sizes) + decided) * each
        yield _row("benchmark", "timing on the target", seconds, None, 0)


def _row(name: str, label: str, seconds: float, cost: Cost | None, disk: int, extra: int = 0) -> StageCost:
    memory = cost.memory_bytes + extra if cost and cost.memory_bytes is not None else None
    return {"name": name, "what": label, "seconds": seconds, "memory_bytes": memory, "disk_bytes": int(disk)}
