"""The student, distilled from the teacher, and the control, which learns from the labels alone."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from distill.distillation.settings import DistillSettings
from distill.distillation.teachers import CachedTeacher, teacher_for
from distill.runtime.artifacts import Artifact, Recipe, weights_hash
from distill.runtime.context import Context
from distill.runtime.facts import Detail, StageFacts
from distill.runtime.folder import digest
from distill.stages.common import TRAINING, StageResult, fit_here, make_stage, start_hash, train_settings, write_model
from distill.training.lesson import Lesson


def control(ctx: Context) -> StageResult:
    """Train the student on the labels alone, for as many steps as the distilled one."""
    return _student(ctx, "02-control", None)


def distilled(ctx: Context, taught_by: Artifact) -> StageResult:
    """Train the student on the teacher's soft logits and the labels."""
    return _student(ctx, "03-student", taught_by)


def _student(ctx: Context, name: str, taught_by: Artifact | None) -> StageResult:
    settings, recipe = ctx.config.distill, Recipe.of(ctx.config, "student")
    assert settings is not None
    model = recipe.build(ctx.task)
    train = train_settings(settings)
    parts = [dataclasses.asdict(train), start_hash(model)]
    if taught_by is not None:
        # Everything that the section says, so that no setting of a loss can be forgotten; the control is a stage apart.
        parts += [weights_hash(taught_by.folder), dataclasses.asdict(settings) | {"control": None}]
    key = ctx.key(name, dataclasses.asdict(recipe), parts, modules=TRAINING)

    def build(folder: Path) -> StageFacts:
        lesson = lesson_of(ctx, taught_by, settings) if taught_by is not None else None
        # The control sees a new view every epoch: it has no cache to save, and is not to be held back by ours.
        title = "training the control" if lesson is None else "distilling the student"
        trained, record = fit_here(ctx, model, train, title, section="distill", lesson=lesson, folder=folder)
        cached = lesson.views * isinstance(lesson.teacher, CachedTeacher) if lesson is not None else None
        return write_model(ctx, folder, trained, recipe, Detail(cached_views=cached).trained(record))

    return make_stage(ctx, name, key, build, recipe)


def lesson_of(ctx: Context, taught_by: Artifact, settings: DistillSettings) -> Lesson:
    """Return who answers for the teacher, and the loss that listens to the answers."""
    assert taught_by.model is not None
    loss = settings.effective_loss
    teacher = teacher_for(
        taught_by.model,
        ctx.task,
        views=settings.views,
        key=digest(weights_hash(taught_by.folder), ctx.data_key, str(ctx.device.type)),
        folder=ctx.folder.cache,
        device=ctx.device,
        taps=loss.taps,
        tell=ctx.folder.tell,
    )
    return Lesson(teacher, loss, settings.views)
