"""What every report says, whatever it is written in: the headline, the rows, the notes, the warnings, the files.

Nothing here computes a result. Each text is a recorded value in a unit for people, or words.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from distill.benchmarks import units as fmt
from distill.benchmarks.units import DASH
from distill.runtime.facts import Quality, StageLatency
from distill.runtime.records import RunResult, StageRecord

STAGES = ("teacher", "control", "student", "prune", "quantize", "export")
LEGEND = {
    fmt.SAME: "the interval of the speed-up holds 1: neither faster nor slower was shown",
    DASH: "not run, not measured or not recorded",
}


@dataclass(frozen=True)
class Headline:
    """The run in one line, part by part."""

    state: str
    """``""``, or why the file must not be used as it is: not deployable, nothing exported."""
    shipped: str
    speed: str
    size: str
    metric: str
    verdict: str
    target: str

    def __str__(self) -> str:
        """Join the parts."""
        parts = (self.state, self.shipped, self.speed, self.size, self.metric, self.verdict, self.target)
        return " · ".join(part for part in parts if part)


@dataclass(frozen=True)
class Row:
    """One stage of the final table, as text."""

    name: str
    status: str
    value: str
    interval: str
    agreement: str
    parameters: str
    macs: str
    size: str
    p50: tuple[str, ...]
    speedup: str
    integer: str

    @property
    def quality(self) -> str:
        """The metric with its interval."""
        return f"{self.value} {self.interval}".strip()


def headline(result: RunResult) -> Headline:
    """Say in one line what shipped, how much faster and smaller it is, what it lost, and on which target."""
    total, last = result.comparison, shipped(result)
    state = "" if result.deployable else "NOT DEPLOYABLE (a smoke run, or nothing was exported)"
    return Headline(
        state=state,
        shipped=_shipped_words(result),
        speed=_speed_words(result),
        size=_size_words(total.size_ratio),
        metric=_metric_words(result, last),
        verdict=_verdict_words(result),
        target=target_words(result),
    )


def shipped(result: RunResult) -> StageRecord | None:
    """Return the record of the shipped file: the export, else the last kept stage, else None."""
    for name in ("export", result.final):
        record = find(result, name)
        if record is not None and record.status in ("done", "unmeasured"):
            return record
    return None


def find(result: RunResult, name: str) -> StageRecord | None:
    """Return the record of a stage; None when the run has none."""
    return next((one for one in result.stages if one.name == name), None)


def batches(result: RunResult) -> tuple[int, ...]:
    """Return the smallest and the largest batch size that the run timed, or meant to time."""
    sizes = {one.batch for stage in result.stages for one in stage.latency}
    if not sizes:
        asked = result.target.get("batch_sizes")
        sizes = {n for n in asked if isinstance(n, int)} if isinstance(asked, list | tuple) else set()
    return tuple(sorted({min(sizes), max(sizes)})) if sizes else ()


def timing(stage: StageRecord | None, batch: int | None) -> StageLatency | None:
    """Return how a stage was timed at one batch size; None when it was not."""
    return next((one for one in stage.latency if one.batch == batch), None) if stage else None


def rows(result: RunResult) -> tuple[Row, ...]:
    """Return the final table, one row a stage, in the run's order."""
    sizes = batches(result)
    return tuple(_row(result, stage, sizes) for stage in result.stages)


def legend(shown: tuple[Row, ...]) -> tuple[tuple[str, str], ...]:
    """Return (sign, meaning) of the signs that the table holds."""
    cells = [cell for row in shown for cell in (row.value, row.agreement, row.size, row.speedup, row.integer, *row.p50)]
    return tuple((sign, meaning) for sign, meaning in LEGEND.items() if any(cell.endswith(sign) for cell in cells))


def p50_titles(result: RunResult) -> tuple[str, ...]:
    """Return the headings of the latency columns."""
    return tuple(f"p50, batch {size}" for size in batches(result)) or ("p50",)


def notes(result: RunResult) -> tuple[tuple[str, str], ...]:
    """Return (stages, why) for what is not plainly done; stages with one and the same reason share a line."""
    found: dict[str, list[str]] = {}
    for stage in result.stages:
        if stage.status == "off":
            why = f"off: {reason(stage) or 'not run'}"
        elif stage.status == "reverted":
            why = f"reverted: {reason(stage) or 'no reason is recorded'}"
        elif stage.status == "unmeasured":
            why = f"unmeasured: {unmeasured_because(result)}"
        else:
            continue
        found.setdefault(why, []).append(text(stage.name))
    return tuple((", ".join(names), why) for why, names in found.items())


def unmeasured_because(result: RunResult) -> str:
    """Return why nothing was timed on the target, as far as the run recorded it."""
    return text(result.target.get("unmeasured")) or f"not timed on {target_name(result)}"


def reason(stage: StageRecord) -> str:
    """Return why a stage was kept, reverted or left out, on one line; empty when no reason is recorded."""
    return text((stage.detail.decision or stage.detail).reason)


def warnings(result: RunResult) -> tuple[tuple[str, str], ...]:
    """Return every warning once, as (stage or "", text): the run's own first, then by stage."""
    found: dict[str, str] = {text(one): "" for one in result.warnings}
    for stage in result.stages:
        for one in stage.warnings:
            if f"{stage.name}: {text(one)}" not in found:
                found.setdefault(text(one), stage.name)
    return tuple((name, words) for words, name in found.items() if words)


def files(result: RunResult) -> tuple[tuple[str, str], ...]:
    """Return (what it is, path inside the run folder) of the files that the run leaves."""
    found = [("report", "report.html"), ("report as Markdown", "report.md"), ("record of the run", "run.json")]
    export = find(result, "export")
    if export is not None and export.status in ("done", "unmeasured"):
        names = export.detail.files or ("model.onnx",)
        found = [("model" if name.endswith(".onnx") else "with it", f"deploy/{name}") for name in names] + found
    return tuple(found)


def integer_share(stage: StageRecord) -> float | None:
    """Return the share of compute nodes that ran on integer kernels, in [0, 1], or None."""
    return stage.detail.profile.integer_share if stage.detail.profile else None


def quality_of(quality: Quality | None, metric: str) -> tuple[str, str]:
    """Return a metric's value and its interval in brackets; `DASH` and nothing when it was not measured."""
    estimate = quality.metrics.get(metric) if quality else None
    samples = quality.samples if quality else None
    value = fmt.metric(estimate, samples, interval=False)
    return value, fmt.metric(estimate, samples).removeprefix(value).strip()


def flatten(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Yield (dotted name, text) for everything inside nested mappings; lists become one text."""
    if isinstance(value, Mapping):
        for key, one in value.items():
            yield from flatten(one, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list | tuple):
        if value and all(isinstance(one, Mapping) for one in value):
            for place, one in enumerate(value):
                yield from flatten(one, f"{name}[{place}]")
        else:
            ending = name.rsplit(".", 1)[-1]
            yield fmt.line(name), ", ".join(fmt.by_name(ending, one) for one in value) or DASH
    else:
        yield fmt.line(name), fmt.by_name(name.rsplit(".", 1)[-1], value)


def text(value: Any) -> str:
    """Return text on one line; empty for None."""
    return "" if value is None else fmt.line(value)


def target_name(result: RunResult) -> str:
    """Return the target's name."""
    return text(result.target.get("name")) or "the target"


def target_words(result: RunResult) -> str:
    """Return target, provider and threads: those that really ran, else those that were asked for."""
    last = shipped(result)
    ran = last.latency[0] if last and last.latency else None
    threads = ran.threads if ran else result.target.get("threads")
    provider = text(ran.provider if ran else result.target.get("provider"))
    words = [text(result.target.get("name")), provider if ran or not provider else f"{provider} (did not run here)"]
    if fmt.number(threads) is not None:
        words.append(f"{fmt.plain(threads)} {'thread' if threads == 1 else 'threads'}")
    return ", ".join(word for word in words if word)


def budget(result: RunResult) -> tuple[tuple[str, str, str, str], ...]:
    """Return (what, limit, found, verdict) for the metric's drop and for the latency."""
    total, last = result.comparison, shipped(result)
    judged = last.test.drop if last and last.test else None
    limit = judged.limit if judged else result.config.get("max_drop")
    benchmark = result.config.get("benchmark")
    bound = benchmark.get("max_latency_s") if isinstance(benchmark, Mapping) else None
    first = timing(last, (batches(result) or (None,))[0])
    rows_ = [
        (
            f"drop in {text(total.metric) or 'the metric'}, test",
            f"at most {fmt.points(limit)}" if fmt.number(limit) is not None else "none was set",
            fmt.drop(total.metric_drop),
            total.verdict or DASH,
        )
    ]
    rows_.append(
        (
            f"latency at batch {fmt.plain(first.batch)}" if first else "latency",
            f"at most {fmt.duration(bound)}" if fmt.number(bound) is not None else "none was set",
            f"{fmt.duration(first.p50_s)} (p50)" if first else "unmeasured",
            total.latency_verdict or DASH,
        )
    )
    return tuple(rows_)


def _row(result: RunResult, stage: StageRecord, sizes: tuple[int, ...]) -> Row:
    timed = [timing(stage, size) for size in sizes] or [None]
    value, interval = quality_of(stage.test, result.comparison.metric)
    first = timed[0]
    faster = fmt.speedup(first.speedup) if first else DASH
    if faster == DASH and first and stage.name == "teacher":
        faster = "baseline"
    return Row(
        name=text(stage.name),
        status=text(stage.status),
        value=value,
        interval=interval,
        agreement=fmt.percent(getattr(stage.test.agreement, "value", None)) if stage.test else DASH,
        parameters=fmt.count(stage.parameters),
        macs=fmt.count(stage.macs),
        size=fmt.size(stage.file_bytes),
        p50=tuple(fmt.duration(one.p50_s) if one else DASH for one in timed),
        speedup=faster,
        integer=fmt.share(integer_share(stage)),
    )


def _shipped_words(result: RunResult) -> str:
    if shipped(result) is None:
        return "Nothing shipped"
    kept = [one.name for one in result.stages if one.status in ("done", "unmeasured")]
    stage = find(result, "quantize")
    record = stage.detail.quantization if stage else None
    precision = text(record.precision if record else result.target.get("precision"))
    model = "student" if "student" in kept and result.final != "teacher" else "teacher"
    words = [f"the {model}"]
    words += ["pruned"] if "prune" in kept else []
    words += [precision or "quantized"] if "quantize" in kept else []
    where = "Shipped" if "export" in kept else "Not exported; best"
    return f"{where}: {', '.join(words)}"


def _speed_words(result: RunResult) -> str:
    estimate = result.comparison.speedup
    if estimate is None or fmt.times(estimate.value) == DASH:
        why = text(result.target.get("unmeasured"))
        return f"latency unmeasured on {target_name(result)}" + (f" ({why})" if why else "")
    words = "the teacher's fp32 ONNX at batch 1"
    if fmt.undecided(estimate):
        return f"{fmt.speedup(estimate, mark=False)} the speed of {words} (no difference shown)"
    return f"{fmt.speedup(estimate)} {'faster than' if estimate.value > 1 else 'the speed of'} {words}" + (
        "" if estimate.value > 1 else " (slower)"
    )


def _size_words(ratio: Any) -> str:
    found = fmt.number(ratio)
    if found is None:
        return "size ratio not recorded"
    return f"{fmt.times(found)} smaller" if found > 1 else f"size ratio {fmt.times(found)} (not smaller)"


def _metric_words(result: RunResult, last: StageRecord | None) -> str:
    name = text(result.comparison.metric) or "metric"
    value = quality_of(last.test if last else None, result.comparison.metric)[0]
    lost = fmt.drop(result.comparison.metric_drop)
    if value == DASH and lost == DASH:
        return f"{name} not measured"
    return f"{name} {value}, drop {lost}" if lost != DASH else f"{name} {value}, drop not measured"


def _verdict_words(result: RunResult) -> str:
    total = result.comparison
    found = [f"drop budget {text(total.verdict)}"] if total.verdict else []
    found += [f"latency budget {text(total.latency_verdict)}"] if total.latency_verdict else []
    if "ship" in result.decisions:
        found.append("nothing met the budget on validation data, so the nearest shipped")
    return ", ".join(found) or "no verdict"
