# ruff: noqa: E501
"""Runs that the report tests look at: a full one, one with stages left out, one for another machine, an empty one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from distill.benchmarks import Profile
from distill.intervals import Estimate
from distill.runtime.facts import Decision, Detail, Drop, FileParity, Quality, Quantization, StageLatency
from distill.runtime.records import RunResult, StageRecord, Total

LIMIT = 0.01


def estimate(value: float, half: float = 0.02) -> Estimate:
    return Estimate(value, max(0.0, value - half), min(1.0, value + half))


def quality(split: Any, accuracy: float, drop: tuple[float, float, float] | None, verdict: Any = "met") -> Quality:
    samples = 10_000 if split == "test" else 6_000
    return Quality(
        split=split,
        samples=samples,
        metrics={"accuracy": estimate(accuracy, 0.0051), "f1": estimate(accuracy - 0.002, 0.006)},
        agreement=estimate(0.9631, 0.004) if drop else None,
        drop=Drop(*drop, limit=LIMIT, verdict=verdict) if drop else None,
        flips_lost=184 if drop else 0,
        flips_won=121 if drop else 0,
        kl=0.0421 if drop else None,
    )


def timed(batch: int, p50_s: float, speedup: tuple[float, float, float] | None) -> StageLatency:
    return StageLatency(
        target="x86",
        provider="CPUExecutionProvider",
        inputs={"image": [batch, 28, 28, 1]},
        batch=batch,
        threads=1,
        p50_s=p50_s,
        quiet_s=p50_s * 0.93,
        samples=2412,
        speedup=Estimate(*speedup) if speedup else None,
        quiet_speedup=speedup[0] * 1.03 if speedup else None,
    )


def latencies(one: float, many: float, fast: tuple[float, float] | None) -> tuple[StageLatency, ...]:
    if fast is None:
        return timed(1, one, None), timed(32, many, None)
    return tuple(
        timed(batch, p50, (ratio, ratio * 0.985, ratio * 1.015))
        for batch, p50, ratio in ((1, one, fast[0]), (32, many, fast[1]))
    )


def curves(start: float, end: float, epochs: int = 14) -> dict[str, list[float]]:
    share = [1 - 0.72**epoch for epoch in range(1, epochs + 1)]
    return {
        "validation": [round(start + (end - start) * one, 4) for one in share],
        "loss": [round(1.9 - 1.55 * one, 4) for one in share],
    }


def _stages() -> tuple[StageRecord, ...]:
    nodes = {
        "CPUExecutionProvider/QLinearConv": 9,
        "CPUExecutionProvider/QLinearAdd": 3,
        "CPUExecutionProvider/QGemm": 1,
    }
    profile = Profile(nodes, 1.0, 13, 0, "CPUExecutionProvider")
    teacher = StageRecord(
        "teacher", "done", True, 431.0, 272_186, 31_021_000, 1_091_204,
        quality("validation", 0.9371, None), quality("test", 0.9309, None), latencies(581e-6, 18.31e-3, None),
        detail=Detail(
            curves=curves(0.79, 0.9371, 12), splits={"train": 54_000, "validation": 6_000, "test": 10_000},
            profile=Profile({"CPUExecutionProvider/FusedConv": 19}, 0.0, 0, 19, "CPUExecutionProvider"),
        ),
    )  # fmt: skip
    control = StageRecord(
        "control", "done", False, 208.4, 80_112, 5_912_000, 334_020,
        quality("validation", 0.9214, (0.0157, 0.0121, 0.0192), "missed"),
        quality("test", 0.9161, (0.0148, 0.0109, 0.0187), "missed"),
        latencies(142e-6, 4.11e-3, (4.09, 4.45)), detail=Detail(curves=curves(0.75, 0.9214)),
    )  # fmt: skip
    student = StageRecord(
        "student", "done", False, 231.9, 80_112, 5_912_000, 334_020,
        quality("validation", 0.9307, (0.0064, 0.0031, 0.0097)), quality("test", 0.9251, (0.0058, 0.0021, 0.0095)),
        latencies(141e-6, 4.08e-3, (4.12, 4.49)),
        detail=Detail(curves=curves(0.77, 0.9307), gain=Estimate(0.009, 0.0049, 0.0131)),
    )  # fmt: skip
    prune = StageRecord(
        "prune", "done", False, 97.1, 51_874, 3_871_000, 219_340,
        quality("validation", 0.9298, (0.0073, 0.0038, 0.0108), "unresolved"),
        quality("test", 0.9244, (0.0065, 0.0027, 0.0103), "unresolved"), latencies(108e-6, 2.97e-3, (5.38, 6.16)),
        detail=Detail(
            decision=Decision(True, "validation drop 0.73 points, 1.31× faster than the student"),
            widths={"stem.conv": (32, 24), "block1.conv1": (48, 32), "block2.conv1": (64, 48), "block2.conv2": (64, 48)},
            curves=curves(0.88, 0.9298, 5),
        ),
        warnings=("block3.conv1: 8 channels kept of 9 asked for, the kernel's multiple",),
    )  # fmt: skip
    quantize = StageRecord(
        "quantize", "done", False, 6.2, 51_874, 3_871_000, 81_240,
        quality("validation", 0.9293, (0.0078, 0.0042, 0.0114), "unresolved"),
        quality("test", 0.9243, (0.0066, 0.0028, 0.0104), "unresolved"), latencies(68.4e-6, 1.52e-3, (8.49, 12.0)),
        detail=Detail(
            decision=Decision(True, "1.58× faster, 2.7× smaller than the pruned model"),
            profile=profile,
            quantization=Quantization("int8", "u8s8", True, False, "minmax", 512, 13, 0, 0.0, 81_240, how="static"),
        ),
    )  # fmt: skip
    export = StageRecord(
        "export", "done", False, 3.4, 51_874, 3_871_000, 84_118,
        None, quality("test", 0.9243, (0.0066, 0.0028, 0.0104), "unresolved"), latencies(69.1e-6, 1.54e-3, (8.41, 11.9)),
        detail=Detail(
            parity=FileParity(0.0031, 0.0004, 1.0, 10_000, 0.01, True, reference="quantize"),
            profile=profile,
            files=("model.onnx", "labels.json", "vectors.npz", "card.md"),
        ),
    )  # fmt: skip
    return teacher, control, student, prune, quantize, export


def full() -> RunResult:
    """Every stage ran and was kept."""
    return RunResult(
        folder="runs/fashion-mnist-4f1c",
        task="fashion-mnist",
        config={
            "task": "fashion-mnist",
            "max_drop": LIMIT,
            "seed": 7,
            "target": "x86",
            "distill": {"temperature": 4.0, "weight": 0.9, "epochs": 14},
            "prune": {"ratio": 0.3, "importance": "taylor"},
            "benchmark": {"max_latency_s": 0.0001, "batch_sizes": [1, 32]},
        },
        machine={
            "family": "x86-64", "cpu": "Example CPU @ 2.60GHz", "flags": ["avx2", "avx512_vnni"],
            "threads": {"usable": 2, "affinity": 2, "cgroup": None}, "kernel": "6.1.0", "gpus": [],
            "versions": {"python": "3.13.5", "onnx": "1.22.0", "onnxruntime": "1.31.1"},
        },
        target={"name": "x86", "provider": "CPUExecutionProvider", "precision": "int8", "scheme": "u8s8",
                "reduce_range": False, "threads": 1, "batch_sizes": [1, 32]},
        stages=_stages(),
        final="quantize",
        comparison=Total(Estimate(8.41, 8.28, 8.54), 12.97, "accuracy", Estimate(0.0066, 0.0028, 0.0104), "unresolved", "met"),
        warnings=("10000 rows cannot show less than 0.38 points",),
    )  # fmt: skip


def reverted() -> RunResult:
    """Prune was reverted, the control was off, quantize makes no difference to the speed."""
    result = full()
    stages = []
    for stage in result.stages:
        if stage.name == "control":
            stage = StageRecord("control", "off")
        elif stage.name == "prune":
            why = Decision(False, "validation drop 1.62 points is over max_drop 1.00")
            stage = replace(stage, status="reverted", detail=replace(stage.detail, decision=why))
        elif stage.name == "quantize":
            stage = replace(stage, latency=(timed(1, 140e-6, (1.01, 0.97, 1.05)), timed(32, 4e-3, (1.0, 0.9, 1.1))))
        stages.append(stage)
    return replace(result, stages=tuple(stages), warnings=())


def unmeasured() -> RunResult:
    """For another machine's target: the files are there, the latency is not."""
    result = full()
    target = {"name": "arm", "provider": "CPUExecutionProvider", "precision": "int8", "scheme": "s8s8",
              "threads": 1, "batch_sizes": [1, 32], "unmeasured": "this machine is x86-64, the target is arm"}  # fmt: skip
    stages = tuple(replace(stage, status="unmeasured", latency=()) for stage in result.stages)
    total = replace(result.comparison, speedup=None, verdict="met", latency_verdict=None)
    return replace(result, target=target, stages=stages, comparison=total, warnings=())


def empty() -> RunResult:
    """Nothing is recorded."""
    return RunResult("run", "", {}, {}, {}, (), "", Total(None, None, "", None))


def hollow() -> RunResult:
    """Every stage is there and holds nothing."""
    names = ("teacher", "control", "student", "prune", "quantize", "export")
    return replace(empty(), stages=tuple(StageRecord(name, "done") for name in names), final="quantize")


NASTY = "</script><script>alert(1)</script> **x** | `y` [bold red]z[/] <img src=http://evil.example/a.png> \x1b[31m \u202e &"


def hostile() -> RunResult:
    """Every text that a user can choose is an attack on the report."""
    result = full()
    keys = {NASTY: {"value": NASTY, "list": [NASTY, 1, None]}}
    stages = []
    for stage in result.stages:
        detail = Detail(
            decision=Decision(True, NASTY),
            widths={NASTY: (4, 2)},
            curves={NASTY: [1.0]},
            splits={NASTY: 1},
            profile=Profile({NASTY: 1}, 0.5, 1, 1, NASTY, (NASTY,), (NASTY,)),
            parity=FileParity(0.0, 0.0, 1.0, 1, 0.1, True, (NASTY,), reference=NASTY, why=NASTY),
            quantization=Quantization(
                NASTY, NASTY, True, True, NASTY, 1, 1, 1, 0.0, 1, {NASTY: 1}, (NASTY,), how=NASTY
            ),
            timing=(NASTY,),
        )
        tested = replace(stage.test, metrics={NASTY: estimate(0.9)}) if stage.test else None
        stages.append(replace(stage, detail=detail, warnings=(NASTY,), test=tested))
    return replace(
        result, task=NASTY, folder=NASTY, config=keys, machine=keys, target={**result.target, "name": NASTY},
        warnings=(NASTY + "2",), stages=tuple(stages), comparison=replace(result.comparison, metric=NASTY),
    )  # fmt: skip


EVERY = {
    "full": full,
    "reverted": reverted,
    "unmeasured": unmeasured,
    "empty": empty,
    "hollow": hollow,
    "hostile": hostile,
}
