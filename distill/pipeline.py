"""The sequence of a run: teacher, control, student, prune, quantize, export; each measured, each earning its place."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from distill.benchmarks import Target, resolve_target, units, usable_threads, why_unmeasurable
from distill.config.loading import RunConfig, config_hash
from distill.config.objects import config_of
from distill.console import Console
from distill.deploy import packing
from distill.documents import Json, plain, read_as
from distill.errors import UserError
from distill.intervals import Estimate
from distill.outcome import RunState, result_of
from distill.references.objects import held
from distill.report import write_reports
from distill.runtime.artifacts import Artifact
from distill.runtime.budget import Standing, decide, nearest, standing
from distill.runtime.context import Context
from distill.runtime.decisions import SHIP, WIDTHS, read_decisions
from distill.runtime.facts import Decision, Detail
from distill.runtime.folder import RunFolder, digest, write_text
from distill.runtime.records import RunResult, StageRecord, Status
from distill.runtime.smoke import smoke_config, smoke_task
from distill.stages import prune, quantize, student, teacher
from distill.stages.common import StageResult
from distill.stages.model_check import try_models
from distill.study import study as search
from distill.study.space import require_allowed
from distill.tasks import load_task

_MODELS = {"prune": "pruned model", "quantize": "quantized model"}


def run(
    config: str | Path | Mapping[str, Any] | RunConfig | None = None,
    *,
    teacher: Callable[..., Any] | str | None = None,
    student: Callable[..., Any] | str | None = None,
    data: Any = None,
    metric: Callable[..., float] | str | None = None,
    overrides: Iterable[str] = (),
    out: str | Path | None = None,
    decisions: str | Path | None = None,
    smoke: bool = False,
    console: Console | None = None,
) -> RunResult:
    """Compress a teacher as the configuration says, and leave a run folder behind.

    Args:
        config: a preset's name, a YAML file, a mapping, or None for ``digits``, with ``data`` for the defaults.
        teacher: a module, which counts as trained unless ``teacher.pretrained`` is false; a function that makes one,
            which is trained; or a reference.
        student: likewise; a module is trained from the weights that it has.
        data: arrays such as (x, y), a data set, a DataLoader, a triple of these (train, validation, test), a mapping of
            these by split, with hooks beside them if need be, a function that returns such a mapping, or a reference.
        metric: a function of logits [N, classes] and class numbers [N], of which more is better, or a metric's name.
        overrides: ``section.key=value`` each.
        out: the run folder; ``runs/<task>-<hash of the configuration>`` when not given, so that the same call goes on.
        decisions: a ``run.json`` whose decisions (what was kept, what the search chose) are replayed.
        smoke: run every stage on two batches, into a folder whose file must not be deployed.
        console: where progress goes; quiet when not given.

    Raises:
        UserError: configuration, data, model or folder; the message names the mend.
        NotMeasuredError: the target's provider did not load, or a timing process died.
    """
    settings, objects = config_of(config, overrides, teacher=teacher, student=student, data=data, metric=metric)
    if smoke:
        settings = smoke_config(settings)
    folder = Path(out) if out is not None else default_folder(settings, smoke=smoke)
    replay = _replayed(decisions, settings)
    with held(objects), RunFolder.hold(folder) as run_folder, console or Console("quiet") as progress:
        run_folder.say = progress.say
        torch.set_num_threads(usable_threads())
        ctx = _context(settings, run_folder, progress, replay, smoke)
        progress.say(_first_line(ctx))
        result = _sequence(ctx, smoke)
        write_text(run_folder.path / "run.json", result.to_json())
        write_reports(result, run_folder.path)
    return result


def default_folder(config: RunConfig, *, smoke: bool = False) -> Path:
    """Return where a run of this configuration lives: the same configuration, the same folder."""
    return Path("runs") / f"{config.task}-{config_hash(config)}{'-smoke' if smoke else ''}"


def _sequence(ctx: Context, smoke: bool) -> RunResult:
    run = RunState()
    config = ctx.config
    try_models(ctx)
    _add(ctx, run, "teacher", teacher.make(ctx))
    if config.search.trials or "search" in ctx.replay:
        config, run.decisions["search"] = search.choose(ctx, run.teacher)
        ctx = dataclasses.replace(ctx, config=config)
    if config.distill is not None and "student" in config.models:
        if config.distill.control:
            _add(ctx, run, "control", student.control(ctx))
        else:
            _off(run, "control", "distill.control is off")
        _add(ctx, run, "student", student.distilled(ctx, run.teacher))
        run.final = "student"
    else:
        why = "distill is off" if config.distill is None else "the student is the teacher itself"
        _off(run, "control", why)
        _off(run, "student", f"{why}; the run goes on from the teacher's weights")
    if config.prune is None or config.prune.is_idle:
        idle = f"{config.prune.goal.name}={config.prune.amount:g} asks for nothing" if config.prune else ""
        _off(run, "prune", f"prune.{idle}" if idle else "prune is off")
    else:
        pruned = prune.make(ctx, run.best, run.teacher)
        if config.prune.goal.needs_timing:
            assert pruned.facts.detail.pruning is not None
            run.decisions[WIDTHS] = plain(pruned.facts.detail.pruning.decisions)
        _judge(ctx, run, "prune", pruned)
    if config.quantize is None:
        _off(run, "quantize", "quantize is off")
    else:
        _judge(ctx, run, "quantize", quantize.make(ctx, run.best, run.teacher))
    _choose_what_ships(ctx, run)
    _test_and_time(ctx, run)
    if config.export is None:
        _off(run, "export", "export is off")
    else:
        _export(ctx, run, smoke)
    return result_of(ctx, run, smoke=smoke)


def _add(ctx: Context, run: RunState, name: str, result: StageResult, decision: Decision | None = None) -> None:
    """Record a stage with its validation figures; one that was judged was kept or reverted."""
    path, facts = result.artifact.onnx, result.facts
    status: Status = "reverted" if decision and not decision.kept else "done"
    profile = ctx.profile(path)
    run.results[name] = result
    run.records[name] = record = StageRecord(
        name=name,
        status="unmeasured" if status == "done" and ctx.unmeasured else status,
        reused=result.reused,
        seconds=facts.seconds,
        parameters=facts.parameters,
        macs=facts.macs,
        file_bytes=path.stat().st_size,
        validation=ctx.quality(path, "validation", None if name == "teacher" else run.teacher.onnx),
        warnings=(*facts.warnings, *(profile.warnings if profile else ()), *(decision.warnings if decision else ())),
        detail=dataclasses.replace(
            facts.detail, hashes=ctx.folder.hashes(result.artifact.folder), profile=profile, decision=decision
        ),
    )
    figure = record.validation.metrics[ctx.task.metric] if record.validation else None
    metric = f", validation {ctx.task.metric} {100 * figure.value:.2f} %" if figure else ""
    origin = " (from an earlier run)" if result.reused else f" in {record.seconds:.1f} s"
    ctx.console.say(f"{name}: {status}{origin}{metric}, {units.size(record.file_bytes)}")
    # Where a killed run's owner can read them.
    records = {"unfinished": True, "stages": plain(run.ordered)}
    write_text(ctx.folder.path / "progress.json", json.dumps(records, indent=1) + "\n")


def _judge(ctx: Context, run: RunState, name: str, result: StageResult) -> None:
    """Keep a stage only if it earns its place; else go on with what was there before."""
    before, after = run.best, result.artifact
    quality = ctx.quality(after.onnx, "validation", run.teacher.onnx)
    assert quality.drop is not None
    if name in ctx.replay:
        decision = read_as(Decision, ctx.replay[name])
    else:
        decision = decide(
            _standing(ctx, run, before),
            _standing(ctx, run, after),
            quality.drop,
            lambda: ctx.speedup(before.onnx, after.onnx),
            bytes_before=before.onnx.stat().st_size,
            bytes_after=after.onnx.stat().st_size,
            objective=ctx.config.objective,
        )
    run.decisions[name] = plain(decision)
    run.bases[name] = run.final
    _add(ctx, run, name, result, decision)
    ctx.console.say(f"{name}: {'kept' if decision.kept else 'reverted'}, {decision.reason}")
    if decision.kept:
        run.final = name


def _standing(ctx: Context, run: RunState, artifact: Artifact) -> Standing:
    """Return how an artifact stands to the budget: on validation data, and on the target where that is limited."""
    return standing(ctx.budget, ctx.figures(artifact.onnx, run.teacher.onnx))


def _choose_what_ships(ctx: Context, run: RunState) -> None:
    """Where nothing meets the budget, ship what comes nearest to it, whatever was kept on the way."""
    choice = ctx.replay.get(SHIP) or _nearest(ctx, run)
    if choice is None:
        return
    run.decisions[SHIP], run.final = choice, choice["final"]
    if run.final not in run.candidates:
        raise UserError(f"--decisions: ship.final={run.final!r}: must be one of {', '.join(run.candidates)}")
    ctx.console.say(choice["reason"])
    shipped = {run.final}
    for name, base in reversed(run.bases.items()):
        shipped |= {base} if name in shipped else set()
    for name in run.bases:
        record, ships = run.records[name], name in shipped
        if ships != (record.status != "reverted"):
            assert record.detail.decision is not None
            status: Status = "reverted" if not ships else "unmeasured" if ctx.unmeasured else "done"
            decision = dataclasses.replace(record.detail.decision, kept=ships, reason=choice["reason"])
            run.revise(name, status=status)
            run.note(name, decision=decision)


def _nearest(ctx: Context, run: RunState) -> dict[str, Json] | None:
    """Return which candidate comes nearest to a budget that nothing meets; None where one does, or it was decided."""
    if ctx.replay.keys() & run.bases.keys():
        return None
    standings = {name: _standing(ctx, run, run.results[name].artifact) for name in run.candidates}
    name = nearest(standings, run.final)
    if not standings[name].missed:
        return None
    axes = {
        name: {r.constraint.name: {"value": r.value, "limit": r.constraint.limit} for r in standing.readings}
        for name, standing in standings.items()
    }
    reason = f"nothing meets the budget; {name} comes nearest and ships: {standings[name]}"
    return {"final": name, "reason": reason, "candidates": axes}


def _off(run: RunState, name: str, reason: str) -> None:
    run.records[name] = StageRecord(name=name, status="off", detail=Detail(reason=reason))


def _test_and_time(ctx: Context, run: RunState) -> None:
    """Read the test split, once, and time every stage's file against the teacher's."""
    for name, result in run.results.items():
        path = result.artifact.onnx
        latency, remarks = ctx.latency(path, run.teacher.onnx)
        teacher, warnings = None if name == "teacher" else run.teacher.onnx, run.records[name].warnings
        if name in ("teacher", run.final):
            warnings += ctx.weak_evidence(path, teacher, f"the {_MODELS.get(name, name)}")
        run.revise(name, warnings=warnings, test=ctx.quality(path, "test", teacher), latency=latency)
        run.note(name, parity=packing.torch_parity(ctx, result.artifact), timing=remarks)
    if "control" in run.results:
        run.note("student", gain=_gain(ctx, run.results["control"].artifact, run.results["student"].artifact))
    run.note("teacher", splits={name: len(data) for name, data in ctx.task.data.items()})


def _gain(ctx: Context, control: Artifact, student: Artifact) -> Estimate | None:
    """Return what distillation bought on the test split: student minus control, with its paired interval."""
    drop = ctx.quality(student.onnx, "test", control.onnx).drop
    return None if drop is None else Estimate(-drop.value, -drop.high, -drop.low)


def _export(ctx: Context, run: RunState, smoke: bool) -> None:
    """Pack the final artifact; what it carries from here on is its own file's figures."""
    last = run.records[run.final]
    packed = packing.pack(ctx, run.best, run.teacher, deployable=not smoke)
    latency, remarks = ctx.latency(packed.onnx, run.teacher.onnx)
    run.records["export"] = dataclasses.replace(
        last,
        name="export",
        status="unmeasured" if ctx.unmeasured else "done",
        reused=packed.reused,
        seconds=packed.seconds,
        file_bytes=packed.onnx.stat().st_size,
        test=ctx.quality(packed.onnx, "test", run.teacher.onnx),
        validation=ctx.quality(packed.onnx, "validation", run.teacher.onnx),
        latency=latency,
        warnings=packed.warnings,
        detail=Detail(
            files=tuple(packed.files),
            parity=packed.parity,
            timing=remarks,
            sha256=packed.files["model.onnx"],
            hashes=packed.files,
            profile=last.detail.profile,
        ),
    )
    ctx.console.say(f"export: {packed.onnx}")


def _context(config: RunConfig, folder: RunFolder, console: Console, replay: Mapping[str, Any], smoke: bool) -> Context:
    device = pick_device(config.device)
    target = pick_target(config, device)
    task = load_task(config.data, seed=config.seed, progress=console.progress)
    if smoke:
        task = smoke_task(task, config)
    key = digest(task.fingerprint(), dataclasses.asdict(config.data), config.seed, smoke)
    return Context(config, task, folder, device, target, console, key, replay)


def pick_device(name: str) -> torch.device:
    """Return the device that trains.

    Raises:
        UserError: CUDA was asked for and torch finds none.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError(
            f"device=cuda: torch {torch.__version__} finds no GPU here; install a CUDA build, or use --device cpu"
        )
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def pick_target(config: RunConfig, device: torch.device) -> Target:
    """Return what the file is shipped to: the target that was named, else the device that trains."""
    benchmark = config.benchmark
    return resolve_target(
        config.target.name if config.target else None,
        "cuda" if device.type == "cuda" else "cpu",
        threads=benchmark.threads if benchmark else None,
        batch_sizes=benchmark.batch_sizes if benchmark else (1, 32),
        measure=config.target.measure if config.target else None,
    )


def _first_line(ctx: Context) -> str:
    why = "" if why_unmeasurable(ctx.target) is None else " (not at hand: latency will be unmeasured)"
    chosen = "named" if ctx.config.target else "the device's own"
    return (
        f"{ctx.config.task}: trains on {ctx.device}, ships to {ctx.target.name} ({chosen}; {ctx.target.provider}, "
        f"{ctx.target.precision if ctx.config.quantize else 'float32'}){why}, into {ctx.folder.path}"
    )


def _replayed(path: str | Path | None, config: RunConfig) -> Mapping[str, Any]:
    if path is None:
        return {}
    decisions = read_decisions(Path(path))
    if "search" in decisions:
        require_allowed(config, decisions["search"]["chosen"], f"--decisions {path}: search.chosen")
    return decisions
