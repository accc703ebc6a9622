from __future__ import annotations

import math

import mpmath
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import stats

from distill.benchmarks import runner
from distill.benchmarks.verdict import statistics as module

Turns = list[tuple[int, float]]

seconds = st.floats(1e-6, 10.0)
effects = st.lists(st.floats(-2, 2), min_size=2, max_size=20)


@st.composite
def abba(draw: st.DrawFn) -> Turns:
    values = draw(st.lists(seconds, min_size=2, max_size=40))
    return [((0, 1, 1, 0)[i % 4], value) for i, value in enumerate(values)]


def swapped(turns: Turns) -> Turns:
    return [(1 - arm, value) for arm, value in turns]


def session_effect(turns: Turns) -> float:
    pair = {"turns": [[arm, 9.0, 3, 3, value] for arm, value in turns], "throttled": [False] * (len(turns) // 2)}
    return float(runner.effect(pair))


@given(abba())
def test_swapping_the_arms_flips_the_sign(turns: Turns) -> None:
    assert session_effect(swapped(turns)) == pytest.approx(-session_effect(turns), abs=1e-12)


@given(abba(), st.floats(0.1, 10))
def test_a_candidate_that_is_slower_by_a_factor_adds_its_logarithm(turns: Turns, factor: float) -> None:
    slower = [(arm, value * factor if arm == 1 else value) for arm, value in turns]
    assert session_effect(slower) == pytest.approx(session_effect(turns) + math.log(factor), abs=1e-9)


@given(abba())
def test_the_median_of_pairs_agrees_with_a_plain_one(turns: Turns) -> None:
    pairs = zip(turns[0::2], turns[1::2], strict=False)
    plain = [math.log(dict([a, b])[1] / dict([a, b])[0]) for a, b in pairs]
    assert session_effect(turns) == pytest.approx(float(np.median(plain)), abs=1e-12)


def test_of_three_arms_each_is_paired_with_the_first_of_its_half_round() -> None:
    turns = [(0, 1.0), (1, 2.0), (2, 4.0), (2, 8.0), (1, 4.0), (0, 2.0), (0, 9.0)]
    assert runner.paired_log_ratios(turns, 3, 1) == pytest.approx([math.log(2)] * 2)
    assert runner.paired_log_ratios(turns, 3, 2) == pytest.approx([math.log(4)] * 2)


def test_turns_that_do_not_pair_are_refused() -> None:
    with pytest.raises(ValueError, match="not one of each"):
        runner.paired_log_ratios([(0, 1.0), (0, 1.0)])
    with pytest.raises(ValueError, match="without a round"):
        session_effect([(0, 1.0)])


@given(st.lists(st.floats(1e-6, 1.0), min_size=1, max_size=300), st.sampled_from([0.5, 0.9, 0.99]))
def test_quantiles_of_calls_are_within_half_a_per_cent_or_left_out(values: list[float], probability: float) -> None:
    calls: dict[int, int] = {}
    for value in values:
        bin_ = round(math.log(value) / runner.BIN)
        calls[bin_] = calls.get(bin_, 0) + 1
    found = module.call_quantile(calls, probability)
    if len(values) < module.LEAST_CALLS[probability]:
        assert found is None
    else:
        plain = float(np.quantile(values, probability, method="inverted_cdf"))
        assert found == pytest.approx(plain, rel=0.0026)


@given(st.floats(-30, 30), st.integers(1, 40))
@example(1e-8, 1)
@settings(deadline=None)
def test_tails_of_t_agree_with_forty_digits(t: float, degrees: int) -> None:
    # Not with scipy, whose tail of one degree of freedom is wrong by 1.6e-9 at 1e-8.
    with mpmath.workdps(40):
        inside = mpmath.mpf(degrees) / (degrees + mpmath.mpf(t) ** 2)
        half = mpmath.betainc(mpmath.mpf(degrees) / 2, mpmath.mpf("0.5"), 0, inside, regularized=True) / 2
        tail = float(half if t >= 0 else 1 - half)
    assert module.t_tail(t, degrees) == pytest.approx(tail, abs=1e-13)


@given(st.floats(0.0001, 0.9999), st.integers(1, 60))
@settings(deadline=None)
def test_quantiles_of_t_agree_with_scipy(probability: float, degrees: int) -> None:
    expected = stats.t.ppf(probability, degrees)
    assert module.t_quantile(probability, degrees) == pytest.approx(expected, rel=1e-8, abs=1e-9)


@pytest.mark.parametrize(("probability", "degrees"), [(0, 3), (1, 3), (0.9, 0)])
def test_quantiles_that_do_not_exist(probability: float, degrees: int) -> None:
    with pytest.raises(ValueError, match="no quantile"):
        module.t_quantile(probability, degrees)


@given(effects)
@settings(deadline=None)
def test_the_interval_agrees_with_scipy(values: list[float]) -> None:
    theta, low, high = module.t_bounds(values)
    assert theta == pytest.approx(float(np.mean(values)), abs=1e-12)
    scale = stats.sem(values)
    expected = (
        stats.t.interval(0.95, len(values) - 1, loc=np.mean(values), scale=scale) if scale > 0 else (theta, theta)
    )
    assert (low, high) == pytest.approx(expected, rel=1e-7, abs=1e-9)


@given(effects)
@settings(deadline=None)
def test_the_interval_turns_with_the_arms_and_widens_with_certainty(values: list[float]) -> None:
    theta, low, high = module.t_bounds(values)
    assert low <= theta <= high
    assert module.t_bounds([-value for value in values]) == pytest.approx((-theta, -high, -low), abs=1e-12)
    _, lower, higher = module.t_bounds(values, alpha=0.002)
    assert lower <= low
    assert higher >= high


def test_one_session_pair_has_no_interval() -> None:
    with pytest.raises(ValueError, match="at least two"):
        module.t_bounds([0.1])


def test_the_interval_covers_as_often_as_it_says() -> None:
    rng = np.random.default_rng(7)
    covered = [low <= 0.3 <= high for _, low, high in map(module.t_bounds, rng.normal(0.3, 0.01, (2000, 6)))]
    assert 0.935 <= np.mean(covered) <= 0.965


@given(st.lists(seconds, min_size=1, max_size=50))
def test_the_quiet_time_is_the_lowest_decile(values: list[float]) -> None:
    assert module.lowest_decile(values) == pytest.approx(float(np.percentile(values, 10)))


def test_contention_is_slowness_against_the_same_arm_or_an_interruption() -> None:
    turns = [(0, 1.0), (1, 5.0)] * 10
    assert module.contended_share(turns, [False] * 20) == 0
    assert module.contended_share([*turns, (0, 1.2), (1, 5.2)], [False] * 22) == pytest.approx(1 / 22)
    assert module.contended_share(turns, [True] * 5 + [False] * 15) == 0.25
    assert module.contended_share([], []) == 0
