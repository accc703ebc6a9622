"""What a trial is judged by: a short training of the student from the cached teacher, then a sketch of the pruning."""

from __future__ import annotations

import dataclasses
import math

from optuna.trial import FrozenTrial, Trial
from torch import nn

from distill.config.loading import ModelSettings, RunConfig
from distill.distillation.settings import DistillSettings
from distill.prune import count, prune_channels, recalibrate
from distill.prune.goals import GOALS
from distill.prune.scores.importance import WITHOUT_BATCHES
from distill.prune.settings import PruneSettings
from distill.runtime.artifacts import Artifact, Recipe, example
from distill.runtime.context import Context
from distill.stages.common import fit_here, training_inputs
from distill.stages.student import lesson_of
from distill.study.space import LEARNING_RATE, space, with_values
from distill.training.forward import predict
from distill.training.loop import DivergedError


def score(ctx: Context, teacher: Artifact, trial: Trial) -> tuple[float, float]:
    """Train a student briefly with proposed values, prune it, and return (validation metric, MACs)."""
    values = {
        place: trial.suggest_float(place, *bounds, log=place == LEARNING_RATE)
        for place, bounds in space(ctx.config).items()
    }
    distilled = dataclasses.replace(ctx.config, distill=ctx.config.distill or DistillSettings())
    try:
        model = _sketched(ctx, with_values(distilled, values), teacher)
    except DivergedError:
        # An answer too: these values teach nothing, and the search goes on without them.
        return 0.0, float(count(_start(ctx, teacher), *example(ctx.task)).macs)
    logits, target = predict(model, ctx.task, ctx.task.data["validation"], ctx.device)
    macs = count(model, *example(ctx.task)).macs
    return float(ctx.task.metrics(logits, target)[ctx.task.metric]), float(macs)


def pick(trials: list[FrozenTrial], goal: float) -> FrozenTrial:
    """Return the trial with the fewest MACs among those that reach the metric; the best metric when none does."""
    good = [trial for trial in trials if trial.values[0] >= goal]
    if good:
        return min(good, key=lambda trial: (trial.values[1], -trial.values[0], trial.number))
    return max(trials, key=lambda trial: (trial.values[0], -trial.values[1], -trial.number))


def _sketched(ctx: Context, config: RunConfig, teacher: Artifact) -> nn.Module:
    assert config.distill is not None
    epochs = max(1, math.ceil(config.distill.epochs * config.search.epochs))
    train = dataclasses.replace(config.distill, epochs=epochs)
    lesson, model = lesson_of(ctx, teacher, config.distill), _start(ctx, teacher)
    if isinstance(config.student, ModelSettings):
        model, _ = fit_here(ctx, model, train, "trial", section="distill", lesson=lesson)
    if config.prune is None:
        return model
    model, _ = prune_channels(
        model,
        _sketch(config.prune),
        example=example(ctx.task),
        batches=None,
        loss=None,
        logits=ctx.task.logits,
        seed=config.seed,
    )
    model = recalibrate(model, training_inputs(ctx, train.batch_size), batches=20)
    short = dataclasses.replace(train, epochs=1, learning_rate=config.prune.learning_rate)
    return fit_here(ctx, model, short, "trial", section="distill", lesson=lesson)[0]


def _sketch(pruning: PruneSettings) -> PruneSettings:
    """Return pruning that needs neither data nor a device: by weights, and MACs for an amount of time."""
    plain = {f.name: getattr(pruning, f.name) for f in dataclasses.fields(PruneSettings) if f.name not in GOALS}
    name, amount = pruning.goal.without_timing(pruning.amount)
    return PruneSettings(**{**plain, name: amount, "importance": WITHOUT_BATCHES})


def _start(ctx: Context, teacher: Artifact) -> nn.Module:
    student = ctx.config.student
    if isinstance(student, ModelSettings):
        return Recipe(student.model, dict(student.args), "student", ctx.config.seed).build(ctx.task)
    assert teacher.model is not None
    return teacher.model
