"""Optuna chooses temperature, distillation weight, learning rate and prune ratio on validation data.

A trial is a short training of the student from the cached teacher, then pruning and batch-norm recalibration. The study
lies in the run folder; a run that was killed goes on with the trials that it has. A sampler is made anew for each trial
from the seed and the trial's number, so that a resumed study proposes what an undisturbed one would.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, Trial, TrialState
from torch import nn

from distill.config.loading import ModelSettings, PruneSection, RunConfig
from distill.distillation.settings import DistillSettings
from distill.errors import UserError
from distill.prune import count, prune_channels, recalibrate
from distill.prune.goals import GOALS
from distill.prune.scores.importance import WITHOUT_BATCHES
from distill.prune.settings import PruneSettings
from distill.runtime.artifacts import Artifact, Recipe, example, weights_hash
from distill.runtime.context import Context
from distill.runtime.folder import RunFolder, damaged, digest, sources
from distill.sealed import remove
from distill.stages.making import TRAINING, fit_here, model_inputs
from distill.stages.student import lesson_of
from distill.training.forward import predict
from distill.training.lesson import Lesson
from distill.training.loop import DivergedError
from distill.training.settings import TrainSettings

JOURNAL = "study.journal"
_NOTE = "study.json"


def choose(ctx: Context, teacher: Artifact) -> tuple[RunConfig, dict[str, Any]]:
    """Return the configuration with the chosen values in it, and the decision as JSON values."""
    settings = ctx.config.search
    distillation, pruning = ctx.config.distill or DistillSettings(), ctx.config.prune
    if "search" in ctx.replay:
        found = dict(ctx.replay["search"])
        return _with(ctx.config, found["chosen"]), found
    parts = (dataclasses.asdict(settings), dataclasses.asdict(distillation), ctx.config.seed, ctx.config.max_drop)
    student = dataclasses.asdict(ctx.config.student) if isinstance(ctx.config.student, ModelSettings) else "teacher"
    inputs = (student, dataclasses.asdict(pruning) if pruning else None, weights_hash(teacher.folder))
    key = digest(parts, inputs, ctx.data_key, sources("distill.study", "distill.prune", *TRAINING))
    _require_own(ctx.folder)
    study = _opened(ctx.folder.path / JOURNAL, key, ctx.config)
    ahead = ctx.logits(teacher.onnx, "validation")
    goal = float(ctx.task.metrics(ahead, ctx.target_of("validation"))[ctx.task.metric]) - ctx.config.max_drop
    for number in range(len(_finished(study)), settings.trials):
        ctx.console.progress("searching", number, settings.trials)
        study.sampler = _sampler(ctx.config.seed + number, number)
        trial = study.ask()
        try:
            values = _try(ctx, teacher, trial, distillation, pruning)
        except DivergedError:
            # An answer too: these values teach nothing, and the search goes on without them.
            values = 0.0, float(count(_start(ctx, teacher), *example(ctx.task)).macs)
        study.tell(trial, values)
        journal = (ctx.folder.path / JOURNAL).read_bytes()
        ctx.folder.note(_NOTE, {"bytes": len(journal), "sha256": hashlib.sha256(journal).hexdigest()})
    ctx.console.progress("searching", settings.trials, settings.trials)
    finished = _finished(study)[: settings.trials]
    best = pick(finished, goal)
    reached = dict(zip(("metric", "macs"), best.values, strict=True))
    trials = [{"params": one.params, "values": list(one.values)} for one in finished]
    # Its place among the finished ones: Optuna's own number also counts the trials that a kill cut off.
    found = {"chosen": best.params, "trial": finished.index(best), **reached, "goal": goal, "trials": trials}
    return _with(ctx.config, best.params), found


def space(config: RunConfig) -> dict[str, tuple[float, float]]:
    """Return what a search may choose, by its place in the configuration: the lowest value and the highest."""
    ranges, pruning = config.search, config.prune
    low, high = ((config.distill or DistillSettings()).learning_rate * factor for factor in ranges.learning_rate)
    found = {"distill.temperature": ranges.temperature, "distill.weight": ranges.weight}
    found["distill.learning_rate"] = low, high
    if pruning is not None and pruning.goal.is_searched:
        found["prune.ratio"] = ranges.ratio
    return found


def require_allowed(config: RunConfig, chosen: Mapping[str, Any], where: str) -> None:
    """Refuse a choice that no search of this configuration makes; ``where`` opens the message.

    Raises:
        UserError: a key is none that a search chooses, or a value lies outside of its range.
    """
    known = space(config)
    for name, value in chosen.items():
        if name not in known:
            raise UserError(f"{where} sets {name!r}, which a search does not choose; it chooses {', '.join(known)}")
        low, high = known[name]
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            key = name.rpartition(".")[2]
            raise UserError(f"{where}: {name}={value!r}: must be in [{low:g}, {high:g}]; search.{key} says so")


def pick(trials: list[FrozenTrial], goal: float) -> FrozenTrial:
    """Return the trial with the fewest MACs among those that reach the metric; the best metric when none does."""
    good = [trial for trial in trials if trial.values[0] >= goal]
    if good:
        return min(good, key=lambda trial: (trial.values[1], -trial.values[0], trial.number))
    return max(trials, key=lambda trial: (trial.values[0], -trial.values[1], -trial.number))


def _opened(path: Path, key: str, config: RunConfig) -> optuna.Study:
    """Open the study in the run folder, which may come from a stranger: its trials are ones that a search makes.

    Raises:
        UserError: the journal is damaged, or holds other trials.
    """
    try:
        study = _study(path, key)
        trials = _finished(study)
        whole = all(len(trial.values) == 2 and all(map(math.isfinite, trial.values)) for trial in trials)
    except OSError:
        raise  # a full disk, say: nothing is wrong with the journal
    except Exception as error:  # whatever optuna stumbles over in a journal that it did not write
        raise damaged(path, error, remove=path) from error
    if not whole:
        raise damaged(path, "a trial has no two figures", remove=path)
    for trial in trials:
        require_allowed(config, trial.params, f"{path}: a trial")
    return study


def _study(path: Path, key: str) -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    _mend(path)
    storage = JournalStorage(JournalFileBackend(str(path)))
    study = optuna.create_study(
        storage=storage, study_name=key, directions=["maximize", "minimize"], load_if_exists=True
    )
    for cut_off in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        # A sampler shuns what it believes to be under way elsewhere.
        study.tell(cut_off.number, state=TrialState.FAIL)
    return study


def _require_own(folder: RunFolder) -> None:
    """Remove a journal that does not begin with what the last finished trial left: all trials are repeated then.

    What a killed trial added after it does not count.
    """
    path, noted = folder.path / JOURNAL, folder.noted(_NOTE)
    if noted and path.is_file() and not path.is_symlink():
        begun = path.read_bytes()[: noted["bytes"]]
        if hashlib.sha256(begun).hexdigest() == noted["sha256"]:
            return
    if noted:
        folder.tell(f"{path} is not what the search left: its trials are repeated")
    remove(path)


def _mend(path: Path) -> None:
    """Clear what a kill left: a torn last line, at which Optuna would raise, and a lock that it would wait for.

    The run folder's own lock is held, so that nobody else writes the journal.
    """
    path.with_name(f"{path.name}.lock").unlink(missing_ok=True)
    if not path.is_file():
        return
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole != len(content):
        path.write_bytes(content[:whole])


def _sampler(seed: int, number: int) -> optuna.samplers.BaseSampler:
    if number < 4:
        return optuna.samplers.RandomSampler(seed=seed)
    return optuna.samplers.TPESampler(seed=seed, n_startup_trials=4)


def _finished(study: optuna.Study) -> list[FrozenTrial]:
    return study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))


def _try(
    ctx: Context, teacher: Artifact, trial: Trial, distillation: DistillSettings, pruning: PruneSection | None
) -> tuple[float, float]:
    """Train a student briefly with proposed values, prune it, and return (validation metric, MACs)."""
    ranges = space(ctx.config)
    proposed = dataclasses.replace(
        distillation,
        temperature=trial.suggest_float("distill.temperature", *ranges["distill.temperature"]),
        weight=trial.suggest_float("distill.weight", *ranges["distill.weight"]),
        learning_rate=trial.suggest_float("distill.learning_rate", *ranges["distill.learning_rate"], log=True),
        epochs=max(1, math.ceil(distillation.epochs * ctx.config.search.epochs)),
    )
    lesson = lesson_of(ctx, teacher, proposed)
    train = TrainSettings(**{f.name: getattr(proposed, f.name) for f in dataclasses.fields(TrainSettings)})
    model = _start(ctx, teacher)
    if isinstance(ctx.config.student, ModelSettings):
        model = _fit(ctx, model, train, lesson)
    if pruning is not None:
        model, _ = prune_channels(
            model,
            _sketch(pruning, trial, ctx.config.search.ratio),
            example=example(ctx.task),
            batches=None,
            loss=None,
            logits=ctx.task.logits,
            seed=ctx.config.seed,
        )
        model = recalibrate(model, model_inputs(ctx, train.batch_size), batches=20)
        short = dataclasses.replace(train, epochs=1, learning_rate=pruning.learning_rate)
        model = _fit(ctx, model, short, lesson)
    logits, target = predict(model, ctx.task, ctx.task.data["validation"], ctx.device)
    macs = count(model, *example(ctx.task)).macs
    return float(ctx.task.metrics(logits, target)[ctx.task.metric]), float(macs)


def _sketch(pruning: PruneSettings, trial: optuna.Trial, ratios: tuple[float, float]) -> PruneSettings:
    """Propose a ratio, where channels are counted; what is asked for in another unit is no matter of the search.

    A trial is a sketch, and the full run prunes as configured: group norm needs no data, and half of the time is taken
    for half of the multiply-accumulates, which needs no device.
    """
    plain = {f.name: getattr(pruning, f.name) for f in dataclasses.fields(PruneSettings) if f.name not in GOALS}
    name, amount = pruning.goal.without_timing(pruning.amount)
    if pruning.goal.is_searched:
        amount = min(trial.suggest_float("prune.ratio", *ratios), pruning.max_ratio)
    return PruneSettings(**{**plain, name: amount, "importance": WITHOUT_BATCHES})


def _start(ctx: Context, teacher: Artifact) -> nn.Module:
    student = ctx.config.student
    if isinstance(student, ModelSettings):
        return Recipe(student.model, dict(student.args), "student", ctx.config.seed).build(ctx.task)
    assert teacher.model is not None
    return teacher.model


def _fit(ctx: Context, model: nn.Module, train: TrainSettings, lesson: Lesson) -> nn.Module:
    return fit_here(ctx, model, train, seed=ctx.config.seed, lesson=lesson, title="trial", section="distill")[0]


def _with(config: RunConfig, chosen: dict[str, Any]) -> RunConfig:
    """Return the configuration with dotted keys replaced."""
    for name, value in chosen.items():
        section, key = name.split(".")
        inner = getattr(config, section)
        if inner is not None:
            config = dataclasses.replace(config, **{section: dataclasses.replace(inner, **{key: value})})
    return config
