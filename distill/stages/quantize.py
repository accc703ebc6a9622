"""Quantisation in a run: the number format of the target, repaired until it keeps the budget."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from distill.export import run_onnx
from distill.quantize import QuantizeSettings
from distill.quantize import quantize as quantize_graph
from distill.quantize.repair_loop import Attempt, Loss, repair
from distill.quantize.sensitivity import divergence
from distill.runtime.artifacts import (
    Artifact,
    Calibration,
    core_feed,
    graph_hash,
    read_halves,
    weights_hash,
    write_graphs,
)
from distill.runtime.context import Context
from distill.runtime.facts import Detail, Quantization, StageFacts
from distill.stages.common import StageResult, make_stage
from distill.training.batches import batches
from distill.types import Feed


def make(ctx: Context, base: Artifact, teacher: Artifact) -> StageResult:
    """Turn the float graph into the number format that the target runs fastest, repaired if it loses too much."""
    settings = ctx.config.quantize
    assert settings is not None
    parts = (dataclasses.asdict(settings), ctx.target.facts(), ctx.config.seed)
    limit = (ctx.config.max_drop, graph_hash(teacher.onnx))
    key = ctx.key("quantize", parts, limit, weights_hash(base.folder), modules=("distill.quantize", "distill.stages"))

    def build(folder: Path) -> StageFacts:
        halves = read_halves(base.folder)
        core = halves.core
        inputs = tuple(value.name for value in core.graph.input)
        calibration = Calibration(ctx.task, inputs, settings.samples, ctx.config.seed)
        if ctx.target.precision == "int8":
            best = _within_budget(ctx, core, settings, calibration, teacher)
            quantized, record, way = best.model, best.record, best.name
        else:
            quantized, record = quantize_graph(
                core, settings, target=ctx.target, calibration=calibration, progress=ctx.console.progress
            )
            way = record.precision
        write_graphs(folder, dataclasses.replace(halves, core=quantized), ctx.task)
        sizes = json.loads((base.folder / "stage.json").read_text(encoding="utf-8"))["facts"]
        detail = Detail(quantization=Quantization(**vars(record), how=way))
        return StageFacts(sizes["parameters"], sizes["macs"], warnings=record.warnings, detail=detail)

    result = make_stage(ctx, "05-quantize", key, build, base.recipe, module=False)
    return dataclasses.replace(result, artifact=dataclasses.replace(result.artifact, model=base.model))


def _within_budget(
    ctx: Context, core: onnx.ModelProto, settings: QuantizeSettings, calibration: Calibration, teacher: Artifact
) -> Attempt:
    """Quantise to int8, and repair it until it keeps the run's budget on validation data, or as far as it goes.

    Where the float graph misses the budget already, int8 has to lose nothing more.
    """
    numbers, data = ctx.class_numbers("validation"), ctx.task.data["validation"]

    def rows() -> Iterator[Feed]:
        for _, batch in batches(data, 256):
            yield core_feed(ctx.task, batch, list(calibration.inputs))

    def metric(logits: NDArray[Any]) -> float:
        return float(ctx.task.metrics(logits, numbers)[ctx.task.metric])

    goal, reference = metric(ctx.logits(teacher.onnx, "validation")), run_onnx(core, rows())

    def judge(model: onnx.ModelProto) -> Loss:
        logits = run_onnx(model, rows())
        if not np.isfinite(logits).all():
            return Loss(float("inf"), float("inf"))
        return Loss(goal - metric(logits), divergence(reference, logits))

    budget = max(ctx.config.max_drop, goal - metric(reference))
    repairs = repair(
        core,
        settings,
        target=ctx.target,
        calibration=calibration,
        rows=list(islice(rows(), 2)),
        judge=judge,
        max_drop=budget,
        timed=False,  # a run gives equal bytes for equal input
        progress=ctx.console.progress,
    )
    best = repairs.attempts[-1] if repairs.attempts[-1].loss.drop <= budget else repairs.best
    if len(repairs.attempts) > 1:
        ctx.console.say(f"quantize: plain int8 loses too much; of {len(repairs.attempts)} ways the best is {best.name}")
    return best
