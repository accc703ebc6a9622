"""Every model of a configuration, called and exported once before any training."""

from __future__ import annotations

from functools import partial

import torch
from torch import nn

from distill import scratch
from distill.distillation.settings import DistillSettings
from distill.errors import NotMeasuredError
from distill.models import MODELS
from distill.runtime.artifacts import Recipe, write_onnx
from distill.runtime.context import Context
from distill.runtime.decisions import WIDTHS
from distill.stages.common import code_of
from distill.tasks.outputs import refuse_probabilities
from distill.training.taps import answer


def try_models(ctx: Context) -> None:
    """Call every model of the configuration on two samples, and export those that are not ours.

    So that one that does not fit shows before any training. That a model can be exported is found out once.

    Raises:
        UserError: a model cannot be built, does not take the data, returns something else than logits, or cannot be
            exported.
        NotMeasuredError: pruning is asked for a speed-up, and the target is not at hand.
    """
    pruning = ctx.config.prune
    measures = pruning is not None and pruning.goal.needs_timing and not pruning.is_idle
    if measures and WIDTHS not in ctx.replay and ctx.unmeasured is not None:
        raise NotMeasuredError(
            f"prune.speedup: {ctx.unmeasured}, so no speed-up can be measured; ask for prune.macs or prune.ratio"
        )
    chosen = ctx.config.models
    taps = (ctx.config.distill or DistillSettings()).effective_loss.taps
    places = {field: [(getattr(tap, field), tap.part) for tap in taps] for field in ("teacher", "student")}
    if "student" not in chosen:  # pruning goes on from the teacher's own modules
        places["teacher"] += places["student"]
    batch = ctx.task.data["train"].fetch(torch.arange(2), None)
    for field, settings in chosen.items():
        model = Recipe.of(ctx.config, field).build(ctx.task).eval()
        with torch.no_grad():
            title = f"{field}.model={settings.model!r}"
            answers = answer(model, ctx.task, batch, torch.device("cpu"), places[field], title=title)
            refuse_probabilities(answers.logits, title)
        if settings.model not in MODELS or ctx.task.module_preprocess is not None:
            key = ctx.key(settings.model, settings.args, code_of(model), modules=())
            ctx.folder.memo("exports", key, partial(_try_export, ctx, model))


def _try_export(ctx: Context, model: nn.Module) -> dict[str, bool]:
    with scratch.folder("export") as folder:
        write_onnx(folder, model, ctx.task, ctx.export)
    return {"exports": True}
