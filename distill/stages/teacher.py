"""The teacher: loaded, or trained on the labels."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
from torch import nn

from distill.errors import UserError
from distill.references.unwrapping import not_finite
from distill.references.weights import load_weights
from distill.runtime.artifacts import Recipe
from distill.runtime.context import Context
from distill.runtime.facts import Detail, StageFacts
from distill.stages.common import TRAINING, StageResult, fit_here, make_stage, start_hash, train_settings, write_model
from distill.training.forward import predict


def make(ctx: Context) -> StageResult:
    """Load the teacher, or train it on the labels."""
    settings = ctx.config.teacher
    recipe = Recipe.of(ctx.config, "teacher")
    model = recipe.build(ctx.task)
    loaded = settings.weights is not None or settings.pretrained
    remarks: tuple[str, ...] = ()
    if settings.weights is not None:
        remarks = load_weights(model, settings.weights, field="teacher.weights")
    train = train_settings(settings)
    how = [loaded, None if loaded else dataclasses.asdict(train), start_hash(model)]
    key = ctx.key("teacher", dataclasses.asdict(recipe), how, modules=TRAINING)

    def build(folder: Path) -> StageFacts:
        trained, detail = model.eval(), Detail(loaded=loaded)
        if loaded:
            _require_finite(ctx, trained)
        else:
            trained, record = fit_here(ctx, model, train, "training the teacher", section="teacher", folder=folder)
            detail = detail.trained(record)
        return write_model(ctx, folder, trained, recipe, detail, remarks)

    return make_stage(ctx, "01-teacher", key, build, recipe)


def _require_finite(ctx: Context, model: nn.Module) -> None:
    """Refuse a loaded teacher that has no answers to teach."""
    logits, _ = predict(model, ctx.task, ctx.task.data["validation"], ctx.device)
    bad = int((~np.isfinite(logits)).any(1).sum())
    if bad:
        why = not_finite(model)
        raise UserError(
            f"teacher.model={ctx.config.teacher.model!r}: its logits for {bad} of {len(logits)} validation samples are "
            f"not finite; {'load other weights, or look at the data' if why is None else f'its weight {why}'}"
        )
