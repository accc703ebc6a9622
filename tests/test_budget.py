from __future__ import annotations

import json
from typing import Any, Literal

import pytest

from distill.benchmarks import Comparison, Latency, Ratio
from distill.budget import Decision, decide, latency_verdict
from distill.quality import judge_drop
from distill.records import Drop, Estimate, StageLatency

NOISE = ("the machine was busy",)


def timed(value: float, low: float, high: float) -> Comparison:
    latency = Latency("x86", "CPUExecutionProvider", {"x": [1, 3]}, 1, 1, 1e-3, 1e-3, 100)
    return Comparison(latency, latency, Ratio(value, low, high), value, 6, 0.0, warnings=NOISE)


FASTER, SLOWER, ALIKE = timed(2, 1.8, 2.2), timed(0.8, 0.7, 0.9), timed(1.01, 0.95, 1.07)


def drop(value: float, width: float = 0.002, limit: float = 0.01) -> Drop:
    return judge_drop(Estimate(value, value - width, value + width), limit)


def decided(
    fall: Drop,
    comparison: Comparison | None,
    before: int = 100,
    after: int = 50,
    objective: Literal["latency", "size"] = "latency",
) -> Decision:
    return decide(fall, lambda: comparison, bytes_before=before, bytes_after=after, objective=objective)


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
    comparison: Comparison | None, after: int, objective: Literal["latency", "size"], kept: bool
) -> None:
    decision = decided(drop(0.002), comparison, after=after, objective=objective)
    assert decision.kept is kept
    assert (decision.bytes_before, decision.bytes_after) == (100, after)
    assert (decision.speedup is None) == (comparison is None)


@pytest.mark.parametrize("objective", ["latency", "size"])
def test_a_stage_that_drops_too_much_is_reverted_and_not_even_timed(objective: Literal["latency", "size"]) -> None:
    def never() -> None:
        raise AssertionError

    decision = decide(drop(0.011), never, bytes_before=100, bytes_after=1, objective=objective)
    assert not decision.kept
    assert "1.10 points" in decision.reason
    assert "1.00 points" in decision.reason
    assert decision.speedup is None


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
def test_a_decision_survives_being_written_down(comparison: Comparison | None) -> None:
    decision = decided(drop(0.005, 0.02), comparison)
    assert Decision.from_dict(json.loads(json.dumps(decision.to_dict()))) == decision


def row(p50_s: float) -> tuple[StageLatency, ...]:
    fields: dict[str, Any] = {"target": "x86", "provider": "p", "inputs": {}, "threads": 1, "quiet_s": p50_s}
    fields["samples"] = 9
    return (StageLatency(batch=1, p50_s=p50_s, **fields), StageLatency(batch=32, p50_s=99 * p50_s, **fields))


def test_the_latency_budget_is_about_the_first_batch_size() -> None:
    assert latency_verdict(None, row(1)) is None
    assert latency_verdict(0.002, row(0.002)) == "met"
    assert latency_verdict(0.002, row(0.0021)) == "missed"
    assert latency_verdict(0.002, ()) == "unresolved"
