from __future__ import annotations

import importlib
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

module = importlib.import_module("distill.benchmarks.compare")
Turns = list[tuple[int, float]]

seconds = st.floats(1e-6, 10.0)
effects = st.lists(st.floats(-2, 2), min_size=2, max_size=20)


@st.composite
def abba(draw: st.DrawFn) -> Turns:
    values = draw(st.lists(seconds, min_size=2, max_size=40))
    return [((0, 1, 1, 0)[i % 4], value) for i, value in enumerate(values)]


def swapped(turns: Turns) -> Turns:
    return [(1 - arm, value) for arm, value in turns]


@given(abba())
def test_swapping_the_arms_flips_the_sign(turns: Turns) -> None:
    assert module.session_log_ratio(swapped(turns)) == pytest.approx(-module.session_log_ratio(turns), abs=1e-12)


@given(abba(), st.floats(0.1, 10))
def test_a_baseline_that_is_slower_by_a_factor_adds_its_logarithm(turns: Turns, factor: float) -> None:
    slower = [(arm, value * factor if arm == 0 else value) for arm, value in turns]
    expected = module.session_log_ratio(turns) + math.log(factor)
    assert module.session_log_ratio(slower) == pytest.approx(expected, abs=1e-9)


@given(abba())
def test_the_median_of_pairs_agrees_with_a_plain_one(turns: Turns) -> None:
    pairs = zip(turns[0::2], turns[1::2], strict=False)
    plain = [math.log(dict([a, b])[0] / dict([a, b])[1]) for a, b in pairs]
    assert module.session_log_ratio(turns) == pytest.approx(float(np.median(plain)), abs=1e-12)


def test_turns_that_do_not_pair_are_refused() -> None:
    with pytest.raises(ValueError, match="not of both"):
        module.paired_log_ratios([(0, 1.0), (0, 1.0)])
    with pytest.raises(ValueError, match="without two turns"):
        module.session_log_ratio([(0, 1.0)])


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
