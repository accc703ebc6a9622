"""The verdict on the budget, and the four figures that matter."""

from __future__ import annotations

import math

from distill.benchmarks import units
from distill.benchmarks.units import DASH
from distill.rendering.document import Card, Cards, Cell, Section, Table
from distill.report.facts import batches, find, latency_limit, quality_of, shipped, target_description, text, timing
from distill.runtime.budget import BUDGET
from distill.runtime.records import RunResult


def verdict(result: RunResult) -> Section:
    """Show the drop in the metric, the latency and what else is limited beside the limits."""
    rows = [_drop(result), _latency(result), *_others(result)]
    table = Table(("budget", "limit", "found", "verdict"), rows, numbers=0)
    return Section("Verdict", [Cards(_cards(result)), table])


def _drop(result: RunResult) -> tuple[str, str, str, Cell]:
    total, last = result.comparison, shipped(result)
    judged = last.test.drop if last and last.test else None
    limit = judged.limit if judged else result.config.get("max_drop")
    return (
        f"drop in {text(total.metric) or 'the metric'}, test",
        f"at most {units.points(limit)}" if units.number(limit) is not None else "none was set",
        units.drop(total.metric_drop),
        Cell(total.verdict or DASH, "badge"),
    )


def _latency(result: RunResult) -> tuple[str, str, str, Cell]:
    limit = latency_limit(result)
    first = timing(shipped(result), (batches(result) or (None,))[0])
    return (
        f"latency at batch {units.plain(first.batch)}" if first else "latency",
        f"at most {units.duration(limit)}" if limit is not None else "none was set",
        f"{units.duration(first.p50_s)} (p50)" if first else "unmeasured",
        Cell(result.comparison.latency_verdict or DASH, "badge"),
    )


def _others(result: RunResult) -> list[tuple[str, str, str, Cell]]:
    last, verdicts = shipped(result), result.comparison.verdicts
    figures = {"size": last.file_bytes if last else None}
    return [
        (
            constraint.noun,
            f"at most {constraint.write(result.config.get(constraint.field, math.nan))}",
            constraint.write(figures.get(constraint.name) or math.nan),
            Cell(verdicts[constraint.name], "badge"),
        )
        for constraint in BUDGET
        if constraint.name in verdicts and constraint.name not in ("drop", "latency")
    ]


def _cards(result: RunResult) -> tuple[Card, ...]:
    """Return speed, size, quality and latency; each with what it is measured against."""
    total, last, teacher = result.comparison, shipped(result), find(result, "teacher")
    batch = (batches(result) or (None,))[0]
    now, before = timing(last, batch), timing(teacher, batch)
    value, bounds = quality_of(last.test if last else None, total.metric)
    bytes_now, bytes_before = (units.size(stage.file_bytes) if stage else DASH for stage in (last, teacher))
    speed = units.times(getattr(total.speedup, "value", None))
    target = target_description(result)
    quiet = (f"quiet {units.times(now.quiet_speedup)}",) if now and now.quiet_speedup is not None else ()
    timed = (f"interval [{units.interval(total.speedup)}]", *quiet) if speed != DASH else (target, *quiet)
    drop = (f"drop {units.drop(total.metric_drop)}",) if total.metric_drop else ()
    cards = (
        ("Speed-up at batch 1", speed if speed != DASH else "unmeasured", timed),
        ("Smaller", units.times(total.size_ratio), (f"{bytes_before} → {bytes_now}",)),
        (f"Test {text(total.metric) or 'metric'}", value, (bounds and f"interval {bounds}", *drop)),
        (
            f"p50 latency, batch {units.plain(batch)}" if batch is not None else "p50 latency",
            units.duration(now.p50_s) if now else "unmeasured",
            (f"teacher {units.duration(before.p50_s)}" if before else "", target if now else ""),
        ),
    )
    return tuple(Card(title, value, notes, value in ("unmeasured", DASH)) for title, value, notes in cards)
