"""The student, distilled from the teacher, and the control, which learns from the labels alone."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from torch import Tensor

from distill.config.loading import DistillSettings, ModelSettings
from distill.distillation.losses import LOSSES
from distill.runtime.artifacts import (
    Artifact,
    Recipe,
    weights_hash,
)
from distill.runtime.context import Context
from distill.runtime.facts import Detail, StageFacts
from distill.runtime.folder import CHECKPOINT, digest
from distill.stages.making import (
    TRAINING,
    StageResult,
    code_of,
    export_settings,
    fit_here,
    make_stage,
    state_hash,
    train_settings,
    write_model,
)
from distill.training.loop import StepLoss, Teach
from distill.training.views import fits_cache, teacher_for


def control(ctx: Context) -> StageResult:
    """Train the student on the labels alone, for as many steps as the distilled one."""
    return _student(ctx, "02-control", None)


def distilled(ctx: Context, taught_by: Artifact) -> StageResult:
    """Train the student on the teacher's soft logits and the labels."""
    return _student(ctx, "03-student", taught_by)


def _student(ctx: Context, name: str, taught_by: Artifact | None) -> StageResult:
    settings, chosen = ctx.config.distill, ctx.config.student
    assert settings is not None and isinstance(chosen, ModelSettings)
    recipe = Recipe(chosen.model, dict(chosen.args), "student", ctx.config.seed)
    model = recipe.build(ctx.task)
    train = train_settings(settings)
    how: list[Any] = [
        dataclasses.asdict(train),
        ctx.config.seed,
        code_of(model),
        state_hash(model),
        export_settings(ctx),
    ]
    if taught_by is not None:
        how += [weights_hash(taught_by.folder), settings.loss, settings.temperature, settings.weight, settings.views]
    key = ctx.key(name, dataclasses.asdict(recipe), how, modules=TRAINING)

    def build(folder: Path) -> StageFacts:
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
        cached = settings.views if fits_cache(ctx.task, settings.views) else 0
        detail = Detail(cached_views=None if taught_by is None else cached).trained(record)
        counts = write_model(ctx, folder, trained, recipe)
        return StageFacts(counts.parameters, counts.macs, detail=detail)

    return make_stage(ctx, name, key, build, recipe)


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
