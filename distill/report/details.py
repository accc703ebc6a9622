"""What a stage's record holds beyond its row, in groups with a title; all of it optional, whatever its shape."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from distill.benchmarks import units as fmt
from distill.benchmarks.units import DASH
from distill.documents import plain
from distill.runtime.facts import Detail, Quality
from distill.runtime.records import RunResult, StageRecord

from . import facts


@dataclass(frozen=True)
class Group:
    """One small table: a title, the headings, the rows."""

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numbers: bool = False
    """Whether all columns but the first hold numbers."""
    wide: bool = False


@dataclass(frozen=True)
class Control:
    """The student that learnt from labels beside the one that learnt from the teacher."""

    sentence: str
    rows: tuple[tuple[str, str, str], ...]


def stage_facts(stage: StageRecord) -> tuple[Group, ...]:
    """Return everything recorded about a stage, in groups; an empty tuple when its row says it all."""
    found = (
        _quality(stage),
        _latency(stage),
        _decision(stage),
        _parity(stage),
        _nodes(stage),
        _widths(stage),
        _curves(stage),
        _other(stage),
    )
    return tuple(group for group in found if group is not None and group.rows)


def control_against_student(result: RunResult) -> Control | None:
    """Return what distillation itself bought; None when the run has neither a control nor a student."""
    control, student = facts.find(result, "control"), facts.find(result, "student")
    if control is None and student is None:
        return None
    metric = result.comparison.metric
    rows = []
    for split in ("test", "validation"):
        both = [getattr(stage, split) if stage else None for stage in (control, student)]
        names = dict.fromkeys(name for quality in both if quality for name in quality.metrics)
        for name in names:
            cells = [" ".join(facts.quality_of(quality, name)).strip() for quality in both]
            rows.append((f"{split} {facts.text(name)}", cells[0], cells[1]))
    return Control(_gain(student, control, metric), tuple(rows))


def splits(result: RunResult) -> tuple[tuple[str, str, str], ...]:
    """Return (stage, split, samples) for every split that a stage was judged on, or that the teacher recorded."""
    found = []
    for stage in result.stages:
        found += [(stage.name, facts.text(name), fmt.plain(n)) for name, n in (stage.detail.splits or {}).items()]
        judged = [quality for quality in (stage.validation, stage.test) if quality is not None]
        found += [(stage.name, quality.split, fmt.plain(quality.samples)) for quality in judged]
    return tuple(found)


def _gain(student: StageRecord | None, control: StageRecord | None, metric: str) -> str:
    """Say what is recorded about student and control; an interval of the difference only if the run recorded one."""
    if control is None or control.status == "off":
        return "The control was off: this run does not show what distillation itself bought."
    if student is None or student.status == "off":
        return "The student was off: nothing was distilled."
    name, gain = facts.text(metric) or "the metric", student.detail.gain
    if gain is None or fmt.number(gain.value) is None:
        return (
            "The student learnt from the teacher, the control from the labels alone for as many steps. "
            "They stand side by side; no paired interval of their difference is recorded."
        )
    change = f"Distillation changed {name} by {fmt.drop(gain)} against the same student trained without a teacher"
    undecided = ": the interval holds zero, so no difference was shown" if gain.low <= 0 <= gain.high else ""
    return f"{change} for as many steps{undecided}."


def _decision(stage: StageRecord) -> Group | None:
    decision = stage.detail.decision
    if decision is None:
        why = facts.reason(stage)
        return Group("Decision", ("", ""), (("reason", why),)) if why else None
    outcome = {"outcome": "kept" if decision.kept else "reverted", **plain(decision)}
    return Group("Decision", ("", ""), tuple(facts.flatten({key: outcome[key] for key in outcome if key != "kept"})))


def _quality(stage: StageRecord) -> Group | None:
    both = [quality for quality in (stage.test, stage.validation) if quality is not None]
    if not both:
        return None
    names = dict.fromkeys(name for quality in both for name in quality.metrics)
    rows = [(facts.text(n), *(" ".join(facts.quality_of(q, n)).strip() for q in both)) for n in names]
    teacher = stage.name == "teacher"
    for title, write in _QUALITY.items():
        cells = tuple(write(quality) for quality in both)
        if not teacher and any(cell != DASH for cell in cells):
            rows.append((title, *cells))
    head = ("", *(f"{quality.split} ({fmt.plain(quality.samples)} samples)" for quality in both))
    return Group("Quality", head, tuple(rows), numbers=True, wide=True)


def _limit(quality: Quality) -> str:
    drop = quality.drop
    return f"{drop.verdict}, limit {fmt.points(drop.limit)}" if drop else DASH


_QUALITY: dict[str, Callable[[Quality], str]] = {
    "agreement with the teacher": lambda q: fmt.metric(q.agreement, q.samples),
    "drop from the teacher": lambda q: fmt.drop(q.drop),
    "verdict": _limit,
    "right → wrong": lambda q: fmt.plain(q.flips_lost),
    "wrong → right": lambda q: fmt.plain(q.flips_won),
    "KL(teacher ‖ stage), nats": lambda q: fmt.significant(q.kl),
}


def _latency(stage: StageRecord) -> Group | None:
    head = ("batch", "p50", "quiet", "speed-up", "quiet speed-up", "samples", "threads", "provider", "inputs")
    rows = tuple(
        (
            fmt.plain(one.batch),
            fmt.duration(one.p50_s),
            fmt.duration(one.quiet_s),
            fmt.speedup(one.speedup),
            fmt.times(one.quiet_speedup),
            fmt.plain(one.samples),
            fmt.plain(one.threads),
            facts.text(one.provider),
            "; ".join(f"{name} {shape}" for name, shape in one.inputs.items()),
        )
        for one in stage.latency
    )
    return Group(f"Latency on {facts.text(stage.latency[0].target)}", head, rows, wide=True) if rows else None


def _parity(stage: StageRecord) -> Group | None:
    return Group("Parity", ("", ""), tuple(facts.flatten(plain(stage.detail.parity or {}))))


def _nodes(stage: StageRecord) -> Group | None:
    nodes = stage.detail.profile.nodes if stage.detail.profile else {}
    rows = tuple((facts.text(name), fmt.plain(count)) for name, count in nodes.items())
    share = fmt.share(facts.integer_share(stage))
    if share != DASH:
        rows = (("compute nodes on integer kernels", share), *rows)
    return Group("Executed operators (profile)", ("provider/operator", "nodes"), rows, numbers=True)


def widths(stage: StageRecord) -> Iterator[tuple[str, float, float]]:
    """Yield (layer, channels before, channels after)."""
    for layer, (before, after) in (stage.detail.widths or {}).items():
        yield facts.text(layer), before, after


def _widths(stage: StageRecord) -> Group | None:
    rows = tuple((layer, fmt.plain(before), fmt.plain(after)) for layer, before, after in widths(stage))
    return Group("Channels", ("layer", "before", "after"), rows, numbers=True)


def curve(stage: StageRecord, name: str) -> list[float | None]:
    """Return a training curve, one value an epoch; None where an epoch has none; empty when nothing is recorded."""
    values = [fmt.number(value) for value in (stage.detail.curves or {}).get(name, ())]
    return values if any(value is not None for value in values) else []


def _curves(stage: StageRecord) -> Group | None:
    rows = []
    for name in stage.detail.curves or {}:
        values = curve(stage, str(name))
        if values:
            texts = [fmt.significant(one, 4) for one in values]
            rows.append((facts.text(name), texts[0], texts[-1]))
    return Group("Training curves", ("", "first", "last"), tuple(rows), numbers=True)


def _other(stage: StageRecord) -> Group | None:
    detail = stage.detail
    more = Detail(
        loaded=detail.loaded,
        training=detail.training,
        cached_views=detail.cached_views,
        pruning=detail.pruning,
        quantization=detail.quantization,
        timing=detail.timing,
    )
    profile = {k: v for k, v in plain(detail.profile or {}).items() if k not in ("nodes", "integer_share")}
    return Group(
        "More", ("", ""), tuple(facts.flatten({"profile": profile, **plain(more)} if profile else plain(more)))
    )
