"""The run in one line: what shipped, how much faster and smaller it is, what it lost, and on which target."""

from __future__ import annotations

from distill.benchmarks import units
from distill.benchmarks.units import DASH
from distill.rendering.document import Note, Style
from distill.report.facts import find, quality_of, shipped, target_description, target_name, text
from distill.runtime.records import RunResult, Total

_VERDICTS: dict[str | None, Style] = {"met": "good", "missed": "bad", "unresolved": "warn", None: "strong"}


def headline(result: RunResult) -> tuple[Note, ...]:
    """Return the line in parts."""
    total = result.comparison
    missed = _missed(total)
    return (
        Note(_shipped(result), style="strong"),
        Note(_speed(result), style="strong" if total.speedup else "warn"),
        Note(_size(total.size_ratio), style="strong"),
        Note(_metric(result)),
        Note(_verdict(result), style="bad" if missed else _VERDICTS[total.verdict]),
        Note(target_description(result), style="faint"),
    )


def mood(result: RunResult) -> Style:
    """Return how good the result is."""
    total = result.comparison
    if _missed(total) or not result.deployable:
        return "bad"
    return "warn" if total.speedup is None else "good"


def _missed(total: Total) -> bool:
    return "missed" in (total.verdict, total.latency_verdict, *total.verdicts.values())


def _shipped(result: RunResult) -> str:
    if shipped(result) is None:
        return "Nothing shipped"
    stages = [stage.name for stage in result.stages if stage.status in ("done", "unmeasured")]
    quantize = find(result, "quantize")
    record = quantize.detail.quantization if quantize else None
    precision = text(record.precision if record else result.target.get("precision"))
    parts = [f"the {'student' if 'student' in stages and result.final != 'teacher' else 'teacher'}"]
    parts += ["pruned"] if "prune" in stages else []
    parts += [precision or "quantized"] if "quantize" in stages else []
    return f"{'Shipped' if 'export' in stages else 'Not exported; best'}: {', '.join(parts)}"


def _speed(result: RunResult) -> str:
    estimate = result.comparison.speedup
    if estimate is None or units.times(estimate.value) == DASH:
        why = text(result.target.get("unmeasured"))
        return f"latency unmeasured on {target_name(result)}" + (f" ({why})" if why else "")
    baseline = "the teacher's fp32 ONNX at batch 1"
    if units.undecided(estimate):
        return f"{units.speedup(estimate, mark=False)} the speed of {baseline} (no difference shown)"
    if estimate.value > 1:
        return f"{units.speedup(estimate)} faster than {baseline}"
    return f"{units.speedup(estimate)} the speed of {baseline} (slower)"


def _size(size_ratio: float | None) -> str:
    ratio = units.number(size_ratio)
    if ratio is None:
        return "size ratio not recorded"
    return f"{units.times(ratio)} smaller" if ratio > 1 else f"size ratio {units.times(ratio)} (not smaller)"


def _metric(result: RunResult) -> str:
    last, total = shipped(result), result.comparison
    name, value = text(total.metric) or "metric", quality_of(last.test if last else None, total.metric)[0]
    drop = units.drop(total.metric_drop)
    if value == DASH and drop == DASH:
        return f"{name} not measured"
    return f"{name} {value}, drop {drop if drop != DASH else 'not measured'}"


def _verdict(result: RunResult) -> str:
    total = result.comparison
    by_axis = {"drop": total.verdict, "latency": total.latency_verdict, **total.verdicts}
    verdicts = [f"{axis} budget {text(verdict)}" for axis, verdict in by_axis.items() if verdict]
    if "ship" in result.decisions:
        verdicts.append("nothing met the budget on validation data, so the nearest shipped")
    return ", ".join(verdicts) or "no verdict"
