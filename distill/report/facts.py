"""What several sections read out of a run's result; each text is a recorded value in a unit for people, or words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from distill.benchmarks import units
from distill.benchmarks.units import DASH
from distill.runtime.facts import Quality, StageLatency
from distill.runtime.records import RunResult, StageRecord


def text(value: Any) -> str:
    """Return text on one line; empty for None."""
    return "" if value is None else units.line(value)


def find(result: RunResult, name: str) -> StageRecord | None:
    """Return the record of a stage; None when the run has none."""
    return next((stage for stage in result.stages if stage.name == name), None)


def shipped(result: RunResult) -> StageRecord | None:
    """Return the record of the shipped file: the export, else the last kept stage, else None."""
    for name in ("export", result.final):
        record = find(result, name)
        if record is not None and record.status in ("done", "unmeasured"):
            return record
    return None


def batches(result: RunResult) -> tuple[int, ...]:
    """Return the smallest and the largest batch size that the run timed, or meant to time."""
    sizes = {latency.batch for stage in result.stages for latency in stage.latency}
    if not sizes:
        planned = result.target.get("batch_sizes")
        sizes = {size for size in planned if isinstance(size, int)} if isinstance(planned, list | tuple) else set()
    return tuple(sorted({min(sizes), max(sizes)})) if sizes else ()


def timing(stage: StageRecord | None, batch: int | None) -> StageLatency | None:
    """Return how a stage was timed at one batch size; None when it was not."""
    return next((latency for latency in stage.latency if latency.batch == batch), None) if stage else None


def latency_limit(result: RunResult) -> float | None:
    """Return the latency budget in seconds; None where none was set."""
    benchmark = result.config.get("benchmark")
    return units.number(benchmark.get("max_latency_s")) if isinstance(benchmark, Mapping) else None


def quality_of(quality: Quality | None, metric: str) -> tuple[str, str]:
    """Return a metric's value and its interval in brackets; `DASH` and nothing when it was not measured."""
    estimate = quality.metrics.get(metric) if quality else None
    samples = quality.samples if quality else None
    value = units.metric(estimate, samples, interval=False)
    return value, units.metric(estimate, samples).removeprefix(value).strip()


def curve(stage: StageRecord, name: str) -> list[float | None]:
    """Return a training curve, one value an epoch; None where an epoch has none; empty when nothing is recorded."""
    values = [units.number(value) for value in (stage.detail.curves or {}).get(name, ())]
    return values if any(value is not None for value in values) else []


def integer_share(stage: StageRecord) -> float | None:
    """Return the share of compute nodes that ran on integer kernels, in [0, 1], or None."""
    return stage.detail.profile.integer_share if stage.detail.profile else None


def reason(stage: StageRecord) -> str:
    """Return why a stage was kept, reverted or left out, on one line; empty when no reason is recorded."""
    return text((stage.detail.decision or stage.detail).reason)


def every_warning(result: RunResult) -> tuple[tuple[str, str], ...]:
    """Return every warning once, as (stage or "", text): the run's own first, then by stage."""
    stages: dict[str, str] = {text(warning): "" for warning in result.warnings}
    for stage in result.stages:
        for warning in map(text, stage.warnings):
            if f"{stage.name}: {warning}" not in stages:
                stages.setdefault(warning, stage.name)
    return tuple((stage, warning) for warning, stage in stages.items() if warning)


def target_name(result: RunResult) -> str:
    """Return the target's name."""
    return text(result.target.get("name")) or "the target"


def target_description(result: RunResult) -> str:
    """Return target, provider and threads: those that really ran, else those that were asked for."""
    last = shipped(result)
    latency = last.latency[0] if last and last.latency else None
    threads = latency.threads if latency else result.target.get("threads")
    provider = text(latency.provider if latency else result.target.get("provider"))
    parts = [text(result.target.get("name"))]
    parts.append(provider if latency or not provider else f"{provider} (did not run here)")
    if units.number(threads) is not None:
        parts.append(f"{units.plain(threads)} {'thread' if threads == 1 else 'threads'}")
    return ", ".join(part for part in parts if part)


def flatten(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Yield (dotted name, text) for everything inside nested mappings; lists become one text."""
    if isinstance(value, Mapping):
        for key, part in value.items():
            yield from flatten(part, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list | tuple):
        if value and all(isinstance(part, Mapping) for part in value):
            for place, part in enumerate(value):
                yield from flatten(part, f"{name}[{place}]")
        else:
            ending = name.rsplit(".", 1)[-1]
            yield units.line(name), ", ".join(units.by_name(ending, part) for part in value) or DASH
    else:
        yield units.line(name), units.by_name(name.rsplit(".", 1)[-1], value)
