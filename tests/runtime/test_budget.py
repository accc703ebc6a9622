from __future__ import annotations

import json
import math
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_run import budget_figures, budget_standing

from distill.config.loading import load_config
from distill.documents import plain, read_as
from distill.intervals import Estimate
from distill.outcome import _figures
from distill.runtime.budget import Reading, Standing, Timed, budget_of, decide, limited, nearest, standing
from distill.runtime.facts import Decision, Drop, StageLatency
from distill.runtime.quality import judge_drop
from distill.runtime.records import StageRecord

NOISE = ("the machine was busy",)


def timed(value: float, low: float, high: float) -> Timed:
    return Timed({1: Estimate(value, low, high)}, NOISE)


FASTER, SLOWER, ALIKE = timed(2, 1.8, 2.2), timed(0.8, 0.7, 0.9), timed(1.01, 0.95, 1.07)


def drop(value: float, width: float = 0.002, limit: float = 0.01) -> Drop:
    return judge_drop(Estimate(value, value - width, value + width), limit)


def decided(
    fall: Drop,
    comparison: Timed | None,
    before: int = 100,
    after: int = 50,
    objective: Literal["latency", "size"] = "latency",
) -> Decision:
    met, now = budget_standing(0.0, fall.limit), budget_standing(fall.value, fall.limit)
    return decide(met, now, fall, lambda: comparison, bytes_before=before, bytes_after=after, objective=objective)


@pytest.mark.parametrize(
    ("comparison", "after", "objective", "kept"),
    [
        (FASTER, 50, "latency", True),
        (FASTER, 150, "latency", True),
        (SLOWER, 50, "latency", False),
        (ALIKE, 50, "latency", True),
        (ALIKE, 100, "latency", False),
        (ALIKE, 150, "latency", False),
        (SLOWER, 50, "size", True),
        (FASTER, 100, "size", False),
        (FASTER, 150, "size", False),
        (None, 50, "latency", True),
        (None, 150, "latency", False),
        (None, 50, "size", True),
    ],
)
def test_a_stage_has_to_buy_something(
    comparison: Timed | None, after: int, objective: Literal["latency", "size"], kept: bool
) -> None:
    decision = decided(drop(0.002), comparison, after=after, objective=objective)
    assert decision.kept is kept
    assert (decision.bytes_before, decision.bytes_after) == (100, after)
    assert (decision.speedup is None) == (comparison is None)


@pytest.mark.parametrize("objective", ["latency", "size"])
def test_a_stage_that_drops_too_much_is_reverted_and_not_even_timed(objective: Literal["latency", "size"]) -> None:
    def never() -> None:
        raise AssertionError

    met, missed = budget_standing(0.01, 0.01), budget_standing(0.011, 0.01)
    decision = decide(met, missed, drop(0.011), never, bytes_before=100, bytes_after=1, objective=objective)
    assert not decision.kept
    assert "1.10 points" in decision.reason
    assert "1.00 points" in decision.reason
    assert decision.speedup is None


@pytest.mark.parametrize(
    ("first", "second", "kept", "says"),
    [
        (FASTER, SLOWER, False, "slower beyond the noise: 0.80× [0.70, 0.90] at batch 32"),
        (ALIKE, FASTER, True, "faster: 1.01× [0.95, 1.07] at batch 1 and 2.00× [1.80, 2.20] at batch 32"),
        (ALIKE, ALIKE, True, "as fast within the noise"),
    ],
)
def test_a_stage_must_not_be_slower_at_any_batch_size(first: Timed, second: Timed, kept: bool, says: str) -> None:
    both = Timed({1: first.first, 32: second.first}, NOISE)
    decision = decided(drop(0.0), both)
    assert decision.kept is kept
    assert says in decision.reason
    assert decision.speedup == first.first


def test_a_drop_at_the_limit_is_within_it() -> None:
    assert decided(drop(0.01), FASTER).kept
    assert decided(drop(-0.3), FASTER).kept


def test_why_says_what_was_found() -> None:
    assert "2.00× [1.80, 2.20]" in decided(drop(0), FASTER).reason
    assert "slower beyond the noise" in decided(drop(0), SLOWER).reason
    assert "within the noise" in decided(drop(0), ALIKE).reason
    assert "not timed" in decided(drop(0), None).reason
    assert "2.00× smaller" in decided(drop(0), None).reason


def test_doubts_are_told() -> None:
    assert decided(drop(0.005, 0.02), FASTER).warnings[0].startswith("drop of 0.50 points [-1.50, 2.50]")
    assert decided(drop(0.0), FASTER).warnings == NOISE
    assert decided(drop(0.0), None).warnings == ()


@pytest.mark.parametrize("comparison", [FASTER, None])
def test_a_decision_survives_being_written_down(comparison: Timed | None) -> None:
    decision = decided(drop(0.005, 0.02), comparison)
    assert read_as(Decision, json.loads(json.dumps(plain(decision)))) == decision


def row(p50_s: float) -> tuple[StageLatency, ...]:
    fields: dict[str, Any] = {"target": "x86", "provider": "p", "inputs": {}, "threads": 1, "quiet_s": p50_s}
    fields["samples"] = 9
    return (StageLatency(batch=1, p50_s=p50_s, **fields), StageLatency(batch=32, p50_s=99 * p50_s, **fields))


def test_the_latency_budget_is_about_the_first_batch_size() -> None:
    (latency,) = limited({"latency": 0.002})
    for rows, verdict in ((row(0.002), "met"), (row(0.0021), "missed"), ((), "unresolved")):
        record = StageRecord(name="export", status="done", latency=rows)
        assert latency.verdict(_figures(record)) == verdict


# Where the budget is missed -------------------------------------------------------------------------------------------

NAN = float("nan")


def at(
    fall: float, p50_s: float | None = None, max_drop: float = 0.01, max_latency_s: float | None = 0.002
) -> Standing:
    return budget_standing(fall, max_drop, p50_s, max_latency_s)


@pytest.mark.parametrize(
    ("before", "after", "comparison", "kept", "says"),
    [
        # Both drops are too large: the smaller one is kept, whatever it takes; of equals what the stage bought decides.
        (at(0.04), at(0.03), FASTER, True, "nearer"),
        (at(0.04), at(0.03), SLOWER, True, "3.00 times"),
        (at(0.03), at(0.04), FASTER, False, "farther"),
        (at(0.03), at(0.03), FASTER, True, "faster"),
        (at(0.03), at(0.03), SLOWER, False, "slower"),
        # One of two constraints.
        (at(0.03, 0.003), at(0.02, 0.005), FASTER, True, "nearer"),
        (at(0.02, 0.003), at(0.02, 0.005), FASTER, False, "farther"),
        (at(0.03), at(0.01), SLOWER, True, "meets the budget"),
        (at(0.0, 0.004), at(0.005, 0.002), SLOWER, True, "meets the budget"),
        (at(0.0, 0.001), at(0.0, 0.0021), FASTER, False, "p50 2.10 ms is above the limit of 2.00 ms"),
        # A drop within its limit is not given up for time: a later stage may win it without.
        (at(0.0, 0.02), at(0.011, 0.003), FASTER, False, "1.10 points is above the limit of 1.00 points"),
        (at(0.03, 0.001), at(0.0, 0.009), SLOWER, True, "within its limit"),
        # Time is missed, accuracy is not: what the stage bought decides.
        (at(0.0, 0.02), at(0.005, 0.01), FASTER, True, "faster"),
        (at(0.0, 0.01), at(0.005, 0.02), SLOWER, False, "slower"),
        # Nothing may be lost.
        (at(0.02, max_drop=0.0), at(0.01, max_drop=0.0), FASTER, True, "nearer"),
        (at(0.01, max_drop=0.0), at(0.02, max_drop=0.0), FASTER, False, "farther"),
        (at(0.01, max_drop=0.0), at(0.0, max_drop=0.0), SLOWER, True, "meets"),
        (at(-0.01, max_drop=0.0), at(0.01, max_drop=0.0), FASTER, False, "above"),
        (at(-0.01, max_drop=0.0), at(-0.02, max_drop=0.0), FASTER, True, "faster"),
        # A drop that is no number keeps no budget.
        (at(0.0), at(NAN), FASTER, False, "above"),
        (at(NAN), at(0.5), SLOWER, True, "nearer"),
    ],
)
def test_what_is_nearer_to_the_budget_is_kept(
    before: Standing, after: Standing, comparison: Timed, kept: bool, says: str
) -> None:
    decision = decide(before, after, drop(0.02), lambda: comparison, bytes_before=9, bytes_after=9, objective="latency")
    assert decision.kept is kept
    assert says in decision.reason


@pytest.mark.parametrize(
    ("standings", "chosen", "ships"),
    [
        # The student misses it by more than the pruned one, which was undone on the way.
        ({"student": at(0.05), "prune": at(0.03), "quantize": at(0.04)}, "student", "prune"),
        ({"student": at(0.05), "prune": at(0.03), "quantize": at(0.03)}, "quantize", "quantize"),
        ({"student": at(0.05), "prune": at(0.03), "quantize": at(0.03)}, "student", "quantize"),
        # Two constraints: the worst ratio counts, 1.5 here.
        ({"student": at(0.0, 0.006), "prune": at(0.015, 0.002), "quantize": at(0.0, 0.004)}, "quantize", "prune"),
        ({"student": at(0.0, 0.006), "prune": at(0.001, 0.005), "quantize": at(0.002, 0.004)}, "quantize", "quantize"),
        # What meets it ships, though another is farther from its limits.
        ({"student": at(-0.02, 0.001), "prune": at(0.009, 0.0019)}, "prune", "prune"),
        ({"student": at(0.02, max_drop=0.0), "prune": at(0.01, max_drop=0.0)}, "student", "prune"),
        ({"student": at(NAN), "prune": at(0.9)}, "student", "prune"),
        ({"teacher": at(0.0, 0.009)}, "teacher", "teacher"),
    ],
)
def test_what_ships_where_nothing_meets_the_budget(standings: dict[str, Standing], chosen: str, ships: str) -> None:
    assert nearest(standings, chosen) == ships


def test_ratios() -> None:
    assert reading("drop", 0.02, 0.01).ratio == 2
    assert reading("drop", -0.02, 0.0).ratio == 0
    assert reading("drop", 1e-9, 0.0).ratio == math.inf
    assert reading("latency", NAN, 1.0).ratio == math.inf
    assert not reading("drop", NAN, 1.0).met
    assert axes(at(0.0, 0.001)) == ["drop", "latency"]
    assert axes(at(0.0, None)) == ["drop"]
    assert axes(at(0.0, 0.001, max_latency_s=None)) == ["drop"]


def axes(standing: Standing) -> list[str]:
    return [reading.constraint.name for reading in standing.readings]


def reading(name: str, value: float, limit: float) -> Reading:
    (constraint,) = limited({name: limit})
    return Reading(constraint, value)


def test_size_and_memory_are_limits_like_the_others() -> None:
    budget = limited({"drop": 0.01, "size": 1000, "memory": 5_000_000})
    small, large = (budget_figures(Estimate(0.0, 0.0, 0.0), None, size, 4_000_000) for size in (1000, 2000))
    before, after = standing(budget, large), standing(budget, small)
    assert axes(after) == ["drop", "size", "memory"]
    assert str(before) == "file size 2.00 KB is above the limit of 1.00 KB (2.00 times it)"
    assert nearest({"before": before, "after": after}, "before") == "after"
    decision = decide(
        before, after, drop(0.0), lambda: SLOWER, bytes_before=2000, bytes_after=1000, objective="latency"
    )
    assert decision.kept
    assert [constraint.verdict(large) for constraint in budget] == ["met", "missed", "met"]
    unknown = budget_figures(Estimate(0.0, 0.0, 0.0), None)
    assert [constraint.verdict(unknown) for constraint in budget] == ["met", "unresolved", "unresolved"]
    assert axes(standing(budget, unknown)) == ["drop"]


def test_a_configuration_says_what_is_limited() -> None:
    config = load_config("digits", ["max_drop=0.02", "benchmark.max_latency_s=0.003", "max_file_bytes=9000"])
    limits = {constraint.name: constraint.limit for constraint in budget_of(config)}
    assert limits == {"drop": 0.02, "latency": 0.003, "size": 9000}
    assert [constraint.name for constraint in budget_of(load_config("digits", ["benchmark=off"]))] == ["drop"]


def test_what_nothing_limits_is_not_measured() -> None:
    def untimed() -> float:
        raise AssertionError

    figures = {**budget_figures(Estimate(0.0, 0.0, 0.0)), "latency": untimed}
    assert axes(standing(limited({"drop": 0.01}), figures)) == ["drop"]


FALLS, TIMES = st.floats(-1, 1), st.floats(1e-6, 1)


@given(FALLS, FALLS, TIMES, TIMES, st.floats(0, 1), st.floats(1e-6, 1))
def test_what_is_better_on_every_axis_is_never_undone(
    one: float, other: float, fast: float, slow: float, max_drop: float, max_latency_s: float
) -> None:
    (one, other), (fast, slow) = sorted((one, other)), sorted((fast, slow))
    before, after = (budget_standing(fall, max_drop, t, max_latency_s) for fall, t in ((other, slow), (one, fast)))
    decision = decide(before, after, drop(0.0), lambda: FASTER, bytes_before=9, bytes_after=8, objective="latency")
    assert decision.kept
    assert nearest({"before": before, "after": after}, "after") == "after"


@given(st.lists(st.tuples(FALLS, TIMES), min_size=1, max_size=4), st.floats(0, 1), st.floats(1e-6, 1), st.integers(0))
def test_nothing_ships_that_is_farther_than_another(
    values: list[tuple[float, float]], max_drop: float, max_latency_s: float, pick: int
) -> None:
    standings = {str(n): budget_standing(fall, max_drop, t, max_latency_s) for n, (fall, t) in enumerate(values)}
    chosen = str(pick % len(values))
    shipped = standings[nearest(standings, chosen)]
    assert shipped is standings[chosen] or standings[chosen].missed
    if shipped.missed:
        assert shipped.distance == min(one.distance for one in standings.values())
