from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distill.benchmarks import units as fmt
from distill.clean import text as clean_text
from distill.intervals import Estimate

VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(min_value=-(10**400), max_value=10**400),
    st.floats(),
    st.text(),
    st.lists(st.integers(), max_size=2),
    st.sampled_from(
        [0, -0.0, 5e-324, 1e-300, 1e308, -1e308, 10**400, math.nan, math.inf, -math.inf, 0.9999999, 999.9999]
    ),
)
WRITERS = (
    fmt.duration, fmt.elapsed, fmt.size, fmt.count, fmt.percent, fmt.share, fmt.points, fmt.times, fmt.significant,
    fmt.plain, fmt.metric, fmt.drop, fmt.speedup, fmt.interval, fmt.line, clean_text,
)  # fmt: skip


@pytest.mark.parametrize("write", WRITERS, ids=lambda write: write.__name__)
@given(value=VALUES)
def test_any_value_becomes_text(write: Any, value: Any) -> None:
    text = write(value)
    assert isinstance(text, str)
    if write not in (fmt.line, clean_text) and fmt.number(value) is None:
        assert text == fmt.DASH


@given(value=VALUES, low=VALUES, high=VALUES, samples=VALUES)
def test_any_estimate_becomes_text(value: Any, low: Any, high: Any, samples: Any) -> None:
    estimate = Estimate(value, low, high)
    for text in (fmt.metric(estimate, samples), fmt.drop(estimate), fmt.speedup(estimate), fmt.interval(estimate)):
        assert text
        assert fmt.number(value) is not None or text == fmt.DASH or text == fmt.interval(estimate)


@given(name=st.sampled_from(["latency_s", "file_bytes", "integer_share", "epochs"]), value=VALUES)
def test_any_named_value_becomes_text(name: str, value: Any) -> None:
    assert isinstance(fmt.by_name(name, value), str)


@given(st.floats(min_value=1e-9, max_value=1e3))
def test_a_latency_reads_back_to_three_digits(seconds: float) -> None:
    digits, unit = fmt.duration(seconds).split(" ")
    scale = {"ns": 1e-9, "µs": 1e-6, "ms": 1e-3, "s": 1.0}[unit]
    assert float(digits) * scale == pytest.approx(seconds, rel=5.1e-3)
    assert 1 <= float(digits) < 1000 or unit == "s"


@given(st.integers(min_value=1, max_value=10**15))
def test_a_size_reads_back_to_three_digits(count: int) -> None:
    digits, unit = fmt.size(count).split(" ")
    scale = {"B": 1, "KB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12}[unit]
    assert float(digits) * scale == pytest.approx(count, rel=5.1e-3)


@given(st.floats(min_value=0, max_value=1))
def test_a_share_that_is_not_whole_is_never_written_as_whole(fraction: float) -> None:
    text = fmt.percent(fraction)
    if 1e-6 < fraction < 1 - 1e-6:
        assert float(text.removesuffix(" %")) not in (0.0, 100.0)


@pytest.mark.parametrize(
    ("found", "wanted"),
    [
        (fmt.duration(38.2e-6), "38.2 µs"),
        (fmt.duration(1.2349e-3), "1.23 ms"),
        (fmt.duration(999.9e-6), "1.00 ms"),
        (fmt.duration(2.5), "2.50 s"),
        (fmt.duration(0), "0 s"),
        (fmt.elapsed(0.42), "0.4 s"),
        (fmt.elapsed(185), "3 min 05 s"),
        (fmt.elapsed(3720), "1 h 02 min"),
        (fmt.size(812), "812 B"),
        (fmt.size(96_400), "96.4 KB"),
        (fmt.size(999_999), "1.00 MB"),
        (fmt.size(1_091_204), "1.09 MB"),
        (fmt.count(272_186), "272 k"),
        (fmt.count(31_021_000), "31.0 M"),
        (fmt.count(360), "360"),
        (fmt.percent(0.9722), "97.2 %"),
        (fmt.percent(0.9997), "99.97 %"),
        (fmt.percent(1.0), "100.0 %"),
        (fmt.share(1.0), "100 %"),
        (fmt.share(0), "0 %"),
        (fmt.share(0.875), "87.5 %"),
        (fmt.points(0.0028), "0.28 points"),
        (fmt.points(-0.014), "−1.40 points"),
        (fmt.points(-1e-9), "0.00 points"),
        (fmt.times(5.8), "5.80×"),
        (fmt.times(12.97), "13.0×"),
        (fmt.times(0.83), "0.83×"),
        (fmt.times(0.999), "0.999×"),
        (fmt.metric(Estimate(0.9722, 0.95, 0.985), 360), "97.2 % [95.0, 98.5]"),
        (fmt.metric(Estimate(0.93091, 0.9258, 0.936), 10_000), "93.09 % [92.58, 93.60]"),
        (fmt.metric(Estimate(14.25, 13.0, 15.5)), "14.25 [13.00, 15.50]"),
        (fmt.drop(Estimate(0.0028, -0.0083, 0.0139)), "0.28 points [−0.83, 1.39]"),
        (fmt.speedup(Estimate(5.8, 5.61, 6.02)), "5.80× [5.61, 6.02]"),
        (fmt.speedup(Estimate(1.01, 0.97, 1.05)), "1.01× [0.97, 1.05] ≈"),
        (fmt.speedup(Estimate(1.0, 1.0, 1.0)), "1.00× [1.00, 1.00]"),
        (fmt.by_name("latency_s", 0.0021), "2.10 ms"),
        (fmt.by_name("kept", True), "yes"),
        (fmt.by_name("top1_agreement", 0.9997), "99.97 %"),
        (fmt.duration(None), "–"),
        (fmt.size(float("nan")), "–"),
        (fmt.line("a\n\x1b[31m\u202eb"), "a \N{REPLACEMENT CHARACTER}[31m\N{REPLACEMENT CHARACTER}b"),
    ],
)
def test_examples(found: str, wanted: str) -> None:
    assert found == wanted


def test_a_ratio_of_times_is_shown_as_a_speed_up() -> None:
    assert fmt.faster(Estimate(0.19, 0.18, 0.2)) == "5.26× [5.00, 5.56]"
    assert fmt.faster(Estimate(1.3, 1.25, 1.35)) == "0.769× [0.741, 0.800]"
    for broken in (None, Estimate(0.0, 0.0, 0.0), Estimate(float("nan"), 1.0, 1.0), Estimate(1.0, 0.0, 2.0)):
        assert fmt.faster(broken) == fmt.DASH
