"""What a stage's record holds beyond its row, a small table for each part of it."""

from __future__ import annotations

from collections.abc import Callable

from distill.benchmarks import units
from distill.benchmarks.units import DASH
from distill.documents import plain
from distill.rendering.document import Cell, Details, Section, Table, pairs
from distill.report.facts import curve, flatten, integer_share, quality_of, reason, text
from distill.runtime.facts import Quality
from distill.runtime.records import RunResult, StageRecord


def detail(result: RunResult) -> Section | None:
    """Show each stage's tables, folded away where the stage was kept."""
    stages = [
        Details(
            title=text(stage.name),
            blocks=tables(stage),
            badges=(text(stage.status), *(("reused from an earlier run",) if stage.reused else ())),
            remark=reason(stage),
            aside=units.elapsed(stage.seconds) if stage.status != "off" else "",
            open=stage.status == "reverted",
        )
        for stage in result.stages
    ]
    return Section("Each stage in detail", stages) if stages else None


def tables(stage: StageRecord) -> list[Table]:
    """Return everything recorded about a stage; an empty list where its row says it all."""
    parts = (_quality, _latency, _decision, _parity, _nodes, _widths, _curves, _more)
    return [table for part in parts if (table := part(stage)).rows]


def _quality(stage: StageRecord) -> Table:
    qualities = [quality for quality in (stage.test, stage.validation) if quality is not None]
    names = dict.fromkeys(name for quality in qualities for name in quality.metrics)
    rows = [(text(n), *(" ".join(quality_of(quality, n)).strip() for quality in qualities)) for n in names]
    for title, write in _QUALITY.items():
        cells = tuple(write(quality) for quality in qualities)
        if stage.name != "teacher" and any(cell != DASH for cell in cells):
            rows.append((title, *cells))
    head = ("", *(f"{quality.split} ({units.plain(quality.samples)} samples)" for quality in qualities))
    return Table(head, rows, title="Quality", wide=True)


def _limit(quality: Quality) -> str:
    drop = quality.drop
    return f"{drop.verdict}, limit {units.points(drop.limit)}" if drop else DASH


_MORE = ("loaded", "training", "cached_views", "pruning", "quantization", "timing")
_QUALITY: dict[str, Callable[[Quality], str]] = {
    "agreement with the teacher": lambda quality: units.metric(quality.agreement, quality.samples),
    "drop from the teacher": lambda quality: units.drop(quality.drop),
    "verdict": _limit,
    "right → wrong": lambda quality: units.plain(quality.flips_lost),
    "wrong → right": lambda quality: units.plain(quality.flips_won),
    "KL(teacher ‖ stage), nats": lambda quality: units.significant(quality.kl),
}


def _latency(stage: StageRecord) -> Table:
    head = ("batch", "p50", "quiet", "speed-up", "quiet speed-up", "samples", "threads", "provider", "inputs")
    rows = [
        (
            units.plain(latency.batch),
            units.duration(latency.p50_s),
            units.duration(latency.quiet_s),
            units.speedup(latency.speedup),
            units.times(latency.quiet_speedup),
            units.plain(latency.samples),
            units.plain(latency.threads),
            text(latency.provider),
            "; ".join(f"{name} {shape}" for name, shape in latency.inputs.items()),
        )
        for latency in stage.latency
    ]
    target = text(stage.latency[0].target) if stage.latency else ""
    return Table(head, rows, numbers=0, title=f"Latency on {target}", wide=True)


def _decision(stage: StageRecord) -> Table:
    decision, why = stage.detail.decision, reason(stage)
    if decision is None:
        return pairs([("reason", why)] if why else [], "Decision")
    values = {name: value for name, value in plain(decision).items() if name != "kept"}
    return pairs([("outcome", "kept" if decision.kept else "reverted"), *flatten(values)], "Decision")


def _parity(stage: StageRecord) -> Table:
    return pairs(list(flatten(plain(stage.detail.parity or {}))), "Parity")


def _nodes(stage: StageRecord) -> Table:
    nodes = stage.detail.profile.nodes if stage.detail.profile else {}
    rows = [(text(name), units.plain(count)) for name, count in nodes.items()]
    share = units.share(integer_share(stage))
    if share != DASH:
        rows.insert(0, ("compute nodes on integer kernels", share))
    return Table(("provider/operator", "nodes"), rows, title="Executed operators (profile)")


def _widths(stage: StageRecord) -> Table:
    rows = []
    for layer, (before, after) in (stage.detail.widths or {}).items():
        bar = round(100 * after / before, 1) if 0 <= after <= before and before else 100.0
        rows.append((text(layer), units.plain(before), Cell(units.plain(after), bar=bar)))
    return Table(("layer", "before", "after"), rows, title="Channels")


def _curves(stage: StageRecord) -> Table:
    curves = {name: curve(stage, name) for name in stage.detail.curves or {}}
    rows = [
        (text(name), units.significant(values[0], 4), units.significant(values[-1], 4))
        for name, values in curves.items()
        if values
    ]
    return Table(("", "first", "last"), rows, title="Training curves")


def _more(stage: StageRecord) -> Table:
    facts = plain(stage.detail)
    profile = {
        name: value for name, value in facts.get("profile", {}).items() if name not in ("nodes", "integer_share")
    }
    values = {"profile": profile} if profile else {}
    return pairs(list(flatten(values | {name: facts[name] for name in _MORE if name in facts})), "More")
