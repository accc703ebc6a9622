"""What a run will take, before it is begun: the verb ``validate``.

Everything that can be wrong with data and models shows here, because both are really made. Times come from a few real
training steps; the rest is arithmetic, and all of it is an estimate.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from rich import box
from rich.table import Table
from rich.text import Text

from distill import clean
from distill.benchmarks import why_unmeasurable
from distill.config.loading import ModelSettings, RunConfig
from distill.distillation.teachers import fits_cache
from distill.errors import UserError
from distill.estimate.costs import Cost, measure_cost, undisturbed
from distill.pipeline import pick_device, pick_target
from distill.references.weights import load_weights
from distill.runtime.artifacts import Recipe
from distill.tasks import load_task
from distill.tasks.base import Task
from distill.training.settings import TrainSettings

_QUANTIZE_S = 3.0
_SESSION_S = 1.5
_START_S = 4.0
# What exporter, onnxruntime and reports add to a process that trains, as seen on the presets.
_EXPORT_BYTES = 250 * 2**20
_REPORT_BYTES = 5 * 2**20
_NOTE = "all of these are estimates, from a few steps made just now; times can be off by half, more on a busy machine"


def estimate(config: RunConfig) -> dict[str, Any]:
    """Load the data, build both models, time a few steps, and add up what each stage will take.

    Nothing is written, no random state is changed, and the steps are made on copies.

    Returns:
        JSON values: ``data`` (samples a split), ``models`` (parameters, macs, step_s), ``stages`` (each with seconds,
        memory_bytes, disk_bytes), ``total``, ``warnings`` and ``note``. All times and sizes are estimates.

    Raises:
        UserError: data or a model are wrong; every error that could be found at once.
    """
    device = pick_device(config.device)
    target = pick_target(config, device)
    with undisturbed(device):
        task = load_task(config.data, seed=config.seed)
        costs = _costs(config, task, device)
    unmeasured = "benchmark is off" if config.benchmark is None else why_unmeasurable(target)
    sizes = {name: len(data) for name, data in task.data.items()}
    stages = [row for row in _stages(config, task, costs, sizes, unmeasured) if row["seconds"] or row["disk_bytes"]]
    known = [row["memory_bytes"] for row in stages if row["memory_bytes"] is not None]
    warnings = [*task.warnings, *target.warnings]
    if unmeasured:
        warnings.append(f"latency will be unmeasured: {unmeasured}")
    return {
        "task": config.task,
        "device": str(device),
        "target": target.name,
        "data": sizes,
        "classes": len(task.labels),
        "metric": task.metric,
        "models": {name: _described(config, name, cost) for name, cost in costs.items()},
        "stages": stages,
        "total": {
            "seconds": sum(row["seconds"] for row in stages),
            "memory_bytes": max(known) if known else None,
            "disk_bytes": sum(row["disk_bytes"] for row in stages),
        },
        "warnings": list(dict.fromkeys(warnings)),
        "note": _NOTE,
    }


def show(found: dict[str, Any]) -> None:
    """Print what ``estimate`` found."""
    console = clean.console()
    data = ", ".join(f"{count:,} {name}" for name, count in found["data"].items())
    console.print(
        Text.assemble(
            (f"{found['task']}: ", "bold"),
            f"the configuration is valid; {data} samples, {found['classes']} classes, judged by {found['metric']}; "
            f"trains on {found['device']}, ships to {found['target']}",
        )
    )
    for name, model in found["models"].items():
        step = f", {_time(model['step_s'])} a step of {model['batch_size']}" if model["step_s"] else ", not trained"
        console.print(
            f"  {name}: {model['model']}, {model['parameters']:,} parameters, {model['macs']:,} MACs{step}",
        )
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column("estimate")
    for title in ("time", "peak memory", "disk"):
        table.add_column(title, justify="right")
    for row in found["stages"]:
        table.add_row(Text(row["what"]), *_cells(row))
    table.add_section()
    table.add_row(Text("in all", "bold"), *_cells(found["total"]))
    console.print()
    console.print(table)
    console.print()
    for warning in found["warnings"]:
        console.print(Text.assemble(("warning ", "bold yellow"), warning))
    console.print(Text(found["note"], "dim"))


def _costs(config: RunConfig, task: Task, device: torch.device) -> dict[str, Cost]:
    """Build the models and measure them; errors of both are told together."""
    costs, problems = {}, []
    makers: dict[str, Callable[[], Cost]] = {"teacher": lambda: _teacher(config, task, device)}
    if isinstance(config.student, ModelSettings) and config.distill is not None:
        makers["student"] = lambda: _student(config, task, device)
    for name, make in makers.items():
        try:
            costs[name] = make()
        except UserError as error:
            problems.append(str(error))
    if problems:
        raise UserError("\n".join(dict.fromkeys(problems)))
    return costs


def _teacher(config: RunConfig, task: Task, device: torch.device) -> Cost:
    settings = config.teacher
    model = Recipe(settings.model, dict(settings.args), "teacher", config.seed).build(task)
    if settings.weights is not None:
        load_weights(model, settings.weights, field="teacher.weights")
    trained = settings.weights is None and not settings.pretrained
    recovers = "student" if isinstance(config.student, ModelSettings) and config.distill is not None else "teacher"
    # A teacher that is only pruned is trained too: with the settings of the distillation.
    chosen: TrainSettings = settings if trained or config.distill is None else config.distill
    steps = trained or (recovers == "teacher" and config.prune is not None)
    return measure_cost(model, task, _plain(chosen), device, "teacher", steps=steps)


def _student(config: RunConfig, task: Task, device: torch.device) -> Cost:
    assert isinstance(config.student, ModelSettings) and config.distill is not None
    model = Recipe(config.student.model, dict(config.student.args), "student", config.seed).build(task)
    return measure_cost(model, task, _plain(config.distill), device, "student", steps=True)


def _plain(settings: TrainSettings) -> TrainSettings:
    return TrainSettings(**{f.name: getattr(settings, f.name) for f in dataclasses.fields(TrainSettings)})


def _stages(
    config: RunConfig, task: Task, costs: dict[str, Cost], sizes: dict[str, int], unmeasured: str | None
) -> Iterator[dict[str, Any]]:
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


def _compression(config: RunConfig, works: Cost, train: int, held_out: int) -> Iterator[dict[str, Any]]:
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
) -> Iterator[dict[str, Any]]:
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


def _row(name: str, what: str, seconds: float, cost: Cost | None, disk: int, extra: int = 0) -> dict[str, Any]:
    memory = cost.memory_bytes + extra if cost and cost.memory_bytes is not None else None
    return {"name": name, "what": what, "seconds": seconds, "memory_bytes": memory, "disk_bytes": int(disk)}


def _described(config: RunConfig, name: str, cost: Cost) -> dict[str, Any]:
    chosen = config.teacher if name == "teacher" else config.student
    assert not isinstance(chosen, str) and chosen is not None
    return {
        "model": chosen.model,
        "parameters": cost.parameters,
        "macs": cost.macs,
        "batch_size": cost.settings.batch_size,
        "step_s": cost.step_s,
        "sample_s": cost.sample_s,
    }


def _cells(row: dict[str, Any]) -> tuple[str, str, str]:
    memory, disk = row["memory_bytes"], row["disk_bytes"]
    taken = _time(row["seconds"]) if row["seconds"] >= 1 else "< 1 s"
    return taken, "" if memory is None else _size(memory), _size(disk) if disk else ""


def _time(seconds: float) -> str:
    if seconds < 1:
        return f"{1000 * seconds:.3g} ms"
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _size(count: float) -> str:
    if count < 2**20:
        return "< 1 MiB"
    return f"{count / 2**20:.0f} MiB" if count < 2**30 else f"{count / 2**30:.1f} GiB"
