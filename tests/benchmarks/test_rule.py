from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from distill.benchmarks.verdict import rule as module

Rule = module.Rule


def judge(values: Any, rule: Any, medians: Any = None) -> Any:
    """Judge by the fastest calls, the medians being the same unless they are given."""
    return module.judge(list(values), list(values if medians is None else medians), rule)


effects = st.lists(st.floats(-0.2, 0.2), min_size=2, max_size=16)
SPREADS = (0.002, 0.005, 0.02)


def verdicts(slowdown: float, spread: float, tolerance: float, count: int = 400, seed: int = 0) -> dict[str, float]:
    """Simulate whole gates: what session pairs say is the truth and normal noise."""
    rng = np.random.default_rng(seed)
    found = [judge(rng.normal(math.log1p(slowdown), spread, 16), Rule(tolerance)).verdict for _ in range(count)]
    return {name: found.count(name) / count for name in ("pass", "fail", "improved", "inconclusive")}


@pytest.mark.parametrize("tolerance", [0.02, 0.05])
@pytest.mark.parametrize("spread", SPREADS)
def test_a_file_against_itself_never_fails(tolerance: float, spread: float) -> None:
    found = verdicts(0.0, spread, tolerance)
    assert found["fail"] == found["improved"] == 0
    if spread <= 0.005:
        assert found["pass"] == 1


@pytest.mark.parametrize("spread", [0.002, 0.005])
@pytest.mark.parametrize(("slowdown", "tolerance"), [(0.08, 0.05), (0.04, 0.02)])
def test_a_slow_down_beyond_the_tolerance_fails(slowdown: float, tolerance: float, spread: float) -> None:
    assert verdicts(slowdown, spread, tolerance)["fail"] >= 0.99
    assert verdicts(1 / (1 + slowdown) - 1, spread, tolerance)["improved"] + verdicts(
        1 / (1 + slowdown) - 1, spread, tolerance
    )["pass"] == pytest.approx(1)


@pytest.mark.parametrize("spread", SPREADS)
def test_a_slow_down_within_the_tolerance_does_not(spread: float) -> None:
    assert verdicts(0.03, spread, 0.05)["fail"] <= 0.02


def test_noise_that_hides_everything_is_inconclusive_and_says_what_it_could_have_caught() -> None:
    rng = np.random.default_rng(3)
    judged = judge(rng.normal(0.0, 0.2, 16), Rule(0.05))
    assert judged.verdict == "inconclusive"
    assert judged.catches > 0.05
    assert judged.pairs == 16


def test_a_verdict_stands_at_the_first_look_that_allows_it() -> None:
    quiet = [0.001, -0.001, 0.0005, -0.0005]
    judged = judge([*quiet, *[0.5] * 12], Rule(0.05))
    assert (judged.verdict, judged.pairs) == ("pass", 4)
    assert judge([0.001, -0.001, 0.0005, -0.0005, 0.0], Rule(0.05)).pairs == 4
    assert judge([0.08, 0.081, 0.079], Rule(0.05)).pairs == 3


@given(effects, st.sampled_from([0.02, 0.05]))
@settings(deadline=None)
def test_swapped_arms_turn_a_failure_into_an_improvement(values: list[float], tolerance: float) -> None:
    one, other = judge(values, Rule(tolerance)), judge([-value for value in values], Rule(tolerance))
    if one.verdict == "fail" and one.pairs == other.pairs:
        assert other.verdict == "improved"
    if one.pairs == other.pairs:
        assert one.slowdown * other.slowdown == pytest.approx(1)
        assert one.low * other.high == pytest.approx(1)


@given(effects)
@settings(deadline=None)
def test_a_wider_tolerance_never_turns_a_pass_into_a_failure(values: list[float]) -> None:
    if judge(values, Rule(0.02)).verdict in ("pass", "improved"):
        assert judge(values, Rule(0.05)).verdict != "fail"


@given(effects)
@settings(deadline=None)
def test_the_p_value_is_that_of_a_one_sided_t_test(values: list[float]) -> None:
    if np.std(values) > 1e-6:
        judged = judge(values, Rule(0.05))
        seen = values[: judged.pairs]
        if np.std(seen) > 1e-6:
            expected = stats.ttest_1samp(seen, math.log1p(0.05) / 2, alternative="greater").pvalue
            assert judged.p_value == pytest.approx(expected, abs=1e-8)


def test_fewer_than_two_session_pairs_are_no_verdict() -> None:
    with pytest.raises(ValueError, match="needs two"):
        judge([0.1], Rule())
    with pytest.raises(ValueError, match="as many of each"):
        judge([0.1, 0.1], Rule(), [0.1, 0.1, 0.1])


def test_calls_that_are_slow_beside_fast_ones_fail_by_their_median_and_cannot_pass_or_improve_by_it() -> None:
    same, slow, noisy = [0.001, -0.001, 0.0, 0.001], [0.2, 0.21, 0.19, 0.2], [0.3, -0.3, 0.2, -0.2]
    failed = judge(same, Rule(0.05), slow)
    assert (failed.verdict, failed.by) == ("fail", "median")
    assert failed.slowdown == pytest.approx(math.exp(0.2))
    assert (judge(same, Rule(0.05), noisy).verdict, judge(same, Rule(0.05), noisy).by) == ("pass", "fastest")
    assert judge(noisy, Rule(0.05), [-one for one in slow]).verdict == "inconclusive"


def test_the_looks_share_the_error() -> None:
    rule = Rule(alpha=0.01, looks=(4, 6, 8, 12, 16))
    assert rule.critical(6) == pytest.approx(stats.t.ppf(1 - 0.002, 5))
    assert set(rule.for_runner()["looks"]) == {"4", "6", "8", "12", "16"}


def test_a_budget_is_judged_by_its_interval() -> None:
    assert module.judge_budget([0.0010, 0.0011, 0.00105, 0.00102], 0.002) == "pass"
    assert module.judge_budget([0.0030, 0.0031, 0.00305, 0.00302], 0.002) == "fail"
    assert module.judge_budget([0.0010, 0.0031, 0.0021, 0.0019], 0.002) == "inconclusive"
    assert module.judge_budget([0.0010], 0.002) == "inconclusive"


@given(st.lists(st.floats(0, 1), max_size=12))
def test_holm_rejects_what_bonferroni_rejects_and_the_smallest_first(p_values: list[float]) -> None:
    held = module.holm(p_values, 0.05)
    assert len(held) == len(p_values)
    for p, rejected in zip(p_values, held, strict=True):
        if p <= 0.05 / len(p_values):
            assert rejected
        if p > 0.05:
            assert not rejected
        assert not rejected or all(h for q, h in zip(p_values, held, strict=True) if q < p)


def test_holm_by_hand() -> None:
    assert module.holm([0.01, 0.04, 0.03], 0.05) == [True, False, False]
    assert module.holm([0.01, 0.02, 0.03], 0.05) == [True, True, True]


@pytest.mark.parametrize("spread", [0.005, 0.01])
def test_a_second_measurement_stays_sharp_where_many_are_judged_together(spread: float) -> None:
    rng, rule = np.random.default_rng(0), Rule(0.05, alpha=0.01 / 50)
    slower = [judge(rng.normal(math.log(1.1), spread, 16), rule) for _ in range(200)]
    assert all(one.verdict == "fail" for one in slower)
    # What such a verdict rests on is beyond Holm's procedure over the fifty, each p-value looked at five times.
    assert all(module.holm([5 * one.p_value] + [1.0] * 49)[0] for one in slower)
    assert not any(judge(rng.normal(0, spread, 16), rule).verdict == "fail" for _ in range(200))
