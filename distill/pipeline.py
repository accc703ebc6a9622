"""The sequence of a run: teacher, control, student, prune, quantize, export; each measured, each earning its place."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from distill import packing, search, stages
from distill.artifacts import Artifact
from distill.benchmarks import Target, machine, resolve_target, usable_threads, why_unmeasurable
from distill.budget import Decision, decide, latency_verdict, unresolved
from distill.config import ModelSettings, RunConfig, config_hash, load_config, to_dict
from distill.console import Console
from distill.context import Context
from distill.errors import Exit, UserError
from distill.records import Estimate, Quality, RunResult, StageLatency, StageRecord, Status, Total, stage_to_dict
from distill.report import write_reports
from distill.runfolder import RunFolder, digest, write_text
from distill.smoke import first_of, smoke_config
from distill.tasks import load_task

STAGES = ("teacher", "control", "student", "prune", "quantize", "export")


@dataclass
class _Run:
    """What a run has so far."""

    records: dict[str, StageRecord] = field(default_factory=dict)
    made: dict[str, stages.Made] = field(default_factory=dict)
    decisions: dict[str, Any] = field(default_factory=dict)
    final: str = "teacher"

    @property
    def teacher(self) -> Artifact:
        return self.made["teacher"].artifact

    @property
    def best(self) -> Artifact:
        return self.made[self.final].artifact


def run(
    config: str | Path | Mapping[str, Any] | RunConfig | None = None,
    *,
    overrides: Iterable[str] = (),
    out: str | Path | None = None,
    decisions: str | Path | None = None,
    smoke: bool = False,
    console: Console | None = None,
) -> RunResult:
    """Compress a teacher as the configuration says, and leave a run folder behind.

    Args:
        config: a preset's name, a YAML file, a mapping, or None for ``digits``.
        overrides: ``section.key=value`` each.
        out: the run folder; ``runs/<task>-<hash of the configuration>`` when not given, so that the same call goes on.
        decisions: a ``run.json`` whose decisions (what was kept, what the search chose) are replayed.
        smoke: run every stage on two batches, into a folder whose file must not be deployed.
        console: where progress goes; quiet when not given.

    Raises:
        UserError: configuration, data, model or folder; the message names the mend.
        NotMeasuredError: the target's provider did not load, or a timing process died.
    """
    settings = load_config(config, overrides)
    if smoke:
        settings = smoke_config(settings)
    folder = Path(out) if out is not None else default_folder(settings, smoke=smoke)
    replay = _replayed(decisions)
    with RunFolder.hold(folder) as held, console or Console("quiet") as shown:
        held.say = shown.say
        torch.set_num_threads(usable_threads())
        ctx = _context(settings, held, shown, replay, smoke)
        shown.say(_first_line(ctx))
        result = _sequence(ctx, smoke)
        write_text(held.path / "run.json", result.to_json())
        write_reports(result, held.path)
    return result


def default_folder(config: RunConfig, *, smoke: bool = False) -> Path:
    """Return where a run of this configuration lives: the same configuration, the same folder."""
    return Path("runs") / f"{config.task}-{config_hash(config)}{'-smoke' if smoke else ''}"


def _sequence(ctx: Context, smoke: bool) -> RunResult:
    run = _Run()
    config = ctx.config
    stages.try_models(ctx)
    _add(ctx, run, "teacher", stages.teacher(ctx))
    if config.search.trials:
        config, run.decisions["search"] = search.choose(ctx, run.teacher)
        ctx = dataclasses.replace(ctx, config=config)
    if isinstance(config.student, ModelSettings) and config.distill is not None:
        if config.distill.control:
            _add(ctx, run, "control", stages.control(ctx))
        else:
            _off(run, "control", "distill.control is off")
        _add(ctx, run, "student", stages.student(ctx, run.teacher))
        run.final = "student"
    else:
        why = "distill is off" if config.distill is None else "the student is the teacher itself"
        _off(run, "control", why)
        _off(run, "student", f"{why}; the run goes on from the teacher's weights")
    if config.prune is None or config.prune.is_idle:
        idle = "{}={:g} asks for nothing".format(*config.prune.asked) if config.prune else ""
        _off(run, "prune", f"prune.{idle}" if idle else "prune is off")
    else:
        pruned = stages.prune(ctx, run.best, run.teacher)
        if config.prune.asked[0] == "speedup":
            run.decisions[stages.WIDTHS] = pruned.facts["pruning"]["decisions"]
        _judge(ctx, run, "prune", pruned)
    if config.quantize is None:
        _off(run, "quantize", "quantize is off")
    else:
        _judge(ctx, run, "quantize", stages.quantize(ctx, run.best, run.teacher))
    _test_and_time(ctx, run)
    if config.export is None:
        _off(run, "export", "export is off")
    else:
        _export(ctx, run, smoke)
    return _result(ctx, run, smoke)


def _add(ctx: Context, run: _Run, name: str, made: stages.Made, status: Status = "done", **detail: Any) -> None:
    """Record a stage with its validation figures."""
    teacher = None if name == "teacher" else run.teacher.onnx
    run.made[name] = made
    facts = dict(made.facts)
    profile = ctx.profile(made.artifact.onnx)
    record = StageRecord(
        name=name,
        status="unmeasured" if status == "done" and ctx.unmeasured else status,
        reused=made.reused,
        seconds=facts.pop("seconds"),
        parameters=facts.pop("parameters"),
        macs=facts.pop("macs"),
        file_bytes=made.artifact.onnx.stat().st_size,
        validation=ctx.quality(made.artifact.onnx, "validation", teacher),
        warnings=(*facts.pop("warnings", ()), *((profile or {}).get("warnings", ()))),
        detail=facts | ({"profile": profile} if profile else {}) | detail,
    )
    run.records[name] = record
    figure = record.validation.metrics[ctx.task.metric] if record.validation else None
    shown = f", validation {ctx.task.metric} {100 * figure.value:.2f} %" if figure else ""
    again = " (from an earlier run)" if made.reused else f" in {record.seconds:.1f} s"
    ctx.console.say(f"{name}: {status}{again}{shown}, {record.file_bytes} bytes")
    _checkpoint(ctx, run)


def _judge(ctx: Context, run: _Run, name: str, made: stages.Made) -> None:
    """Keep a stage only if it earns its place; else go on with what was there before."""
    before, after = run.best, made.artifact
    judged = ctx.quality(after.onnx, "validation", run.teacher.onnx)
    assert judged.drop is not None
    drop = judged.drop

    def weigh() -> dict[str, Any]:
        return decide(
            drop,
            lambda: ctx.compare(before.onnx, after.onnx, ctx.target.batch_sizes[0]),
            bytes_before=before.onnx.stat().st_size,
            bytes_after=after.onnx.stat().st_size,
            objective=ctx.config.objective,
        ).to_dict()

    if name in ctx.replay:
        decision = Decision.from_dict(ctx.replay[name])
    else:
        timed = dataclasses.asdict(ctx.benchmark) | {"max_latency_s": None}
        key = digest(
            (before.graph_hash, after.graph_hash, run.teacher.graph_hash, ctx.config.max_drop, ctx.config.objective),
            (dataclasses.asdict(ctx.target), timed, ctx.unmeasured, ctx.data_key),
            ctx.measured_with,
        )
        decision = Decision.from_dict(ctx.folder.memo(f"decision-{name}", key, weigh))
    run.decisions[name] = decision.to_dict()
    _add(ctx, run, name, made, "done" if decision.kept else "reverted", decision=decision.to_dict())
    if decision.warnings:
        record = run.records[name]
        run.records[name] = dataclasses.replace(record, warnings=(*record.warnings, *decision.warnings))
    ctx.console.say(f"{name}: {'kept' if decision.kept else 'reverted'}, {decision.reason}")
    if decision.kept:
        run.final = name


def _off(run: _Run, name: str, reason: str) -> None:
    run.records[name] = StageRecord(name=name, status="off", detail={"reason": reason})


def _test_and_time(ctx: Context, run: _Run) -> None:
    """Read the test split, once, and time every stage's file against the teacher's."""
    for name, made in run.made.items():
        path = made.artifact.onnx
        latency, remarks = ctx.latency(path, run.teacher.onnx)
        record = run.records[name]
        run.records[name] = dataclasses.replace(
            record,
            test=ctx.quality(path, "test", None if name == "teacher" else run.teacher.onnx),
            latency=latency,
            detail=record.detail | {"parity": packing.torch_parity(ctx, made.artifact), "timing": list(remarks)},
        )
    if "control" in run.made:
        student = run.records["student"]
        gain = {"gain": _gain(ctx, run.made["control"].artifact, run.made["student"].artifact)}
        run.records["student"] = dataclasses.replace(student, detail=student.detail | gain)
    teacher = run.records["teacher"]
    splits = {name: len(data) for name, data in ctx.task.data.items()}
    run.records["teacher"] = dataclasses.replace(teacher, detail=teacher.detail | {"splits": splits})


def _gain(ctx: Context, control: Artifact, student: Artifact) -> dict[str, float] | None:
    """Return what distillation bought on the test split: student minus control, with its paired interval."""
    drop = ctx.quality(student.onnx, "test", control.onnx).drop
    return None if drop is None else {"value": -drop.value, "low": -drop.high, "high": -drop.low}


def _export(ctx: Context, run: _Run, smoke: bool) -> None:
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
        detail={"files": tuple(packed.files), "parity": packed.parity, "timing": list(remarks)}
        | {"sha256": packed.files["model.onnx"], "hashes": packed.files}
        | ({"profile": last.detail["profile"]} if "profile" in last.detail else {}),
    )
    ctx.console.say(f"export: {packed.onnx}")


def _result(ctx: Context, run: _Run, smoke: bool) -> RunResult:
    records = tuple(_ordered(run))
    shipped = run.records["export"] if run.records["export"].status != "off" else run.records[run.final]
    size = run.records["teacher"].file_bytes
    judged = shipped.test.drop if shipped.test else None
    speedup = shipped.latency[0].speedup if shipped.latency else None
    if shipped.latency and speedup is None:
        speedup = Estimate(1.0, 1.0, 1.0)
    limit = ctx.config.benchmark.max_latency_s if ctx.config.benchmark else None
    total = Total(
        speedup=speedup,
        size_ratio=size / shipped.file_bytes if size and shipped.file_bytes else None,
        metric=ctx.task.metric,
        metric_drop=Estimate(judged.value, judged.low, judged.high) if judged else Estimate(0.0, 0.0, 0.0),
        verdict=judged.verdict if judged else "met",
        latency_verdict=latency_verdict(limit, shipped.latency),
    )
    board = next((one.board for one in shipped.latency if one.board), None)
    warnings = _run_warnings(ctx, run, shipped.test, total, shipped.latency)
    missed = "missed" in (total.verdict, total.latency_verdict) and not smoke
    return RunResult(
        folder=str(ctx.folder.path),
        task=ctx.config.task,
        config=to_dict(ctx.config),
        machine=machine() | {"training": str(ctx.device)} | ({"timed on": board} if board else {}),
        target=dataclasses.asdict(ctx.target) | {"unmeasured": ctx.unmeasured},
        stages=records,
        final=run.final,
        comparison=total,
        warnings=warnings,
        decisions=run.decisions,
        deployable=not smoke and ctx.config.export is not None,
        exit_code=int(Exit.VERDICT_NO if missed else Exit.OK),
    )


def _run_warnings(
    ctx: Context, run: _Run, test: Quality | None, total: Total, latency: tuple[StageLatency, ...]
) -> tuple[str, ...]:
    found = [*ctx.folder.repairs, *ctx.task.warnings, *ctx.target.warnings]
    loaded = run.records["teacher"].detail.get("loaded")
    if loaded and "test" not in ctx.task.given_splits:
        found.append(
            "leakage: the teacher was loaded, and the split into train, validation and test is ours; if it was trained "
            "on samples that are test samples here, its accuracy is too good; give your own split in the data section"
        )
    if run.records["student"].status == "off" and ctx.config.distill is None and ctx.config.student != "teacher":
        found.append("distill is off: the student was not trained, the run went on from the teacher's weights")
    if test and test.drop and test.drop.verdict == "unresolved":
        found.append(f"test: {unresolved(test.drop)}")
    if total.latency_verdict == "unresolved":
        found.append("benchmark.max_latency_s: the latency was not measured on the target, so the budget is open")
    remarks = run.records[run.final].detail.get("timing", [])
    if remarks:
        found.append(f"timing of the shipped file: {'; '.join(remarks)}")
    if ctx.unmeasured:
        found.append(f"latency is unmeasured: {ctx.unmeasured}")
    return tuple(dict.fromkeys(found))


def _ordered(run: _Run) -> list[StageRecord]:
    return [run.records[name] for name in STAGES if name in run.records]


def _checkpoint(ctx: Context, run: _Run) -> None:
    """Leave what is known so far where a killed run's owner can read it."""
    known = {"unfinished": True, "stages": [stage_to_dict(record) for record in _ordered(run)]}
    write_text(ctx.folder.path / "progress.json", json.dumps(known, indent=1) + "\n")


def _context(config: RunConfig, folder: RunFolder, console: Console, replay: Mapping[str, Any], smoke: bool) -> Context:
    device = pick_device(config.device)
    target = pick_target(config, device)
    task = load_task(config.data, seed=config.seed, progress=console.progress)
    if smoke:
        task = first_of(task, config)
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
        f"{ctx.target.precision}){why}, into {ctx.folder.path}"
    )


def _replayed(path: str | Path | None) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        known = dict(json.loads(Path(path).read_text(encoding="utf-8"))["decisions"])
        for name, decision in known.items():
            if name == stages.WIDTHS:
                _ = [(step["skipped"], step["gone"]) for step in decision]
            else:
                _ = decision["chosen"] if name == "search" else Decision.from_dict(decision)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"--decisions {path}: not the run.json of a finished run ({type(error).__name__})") from error
    return known
