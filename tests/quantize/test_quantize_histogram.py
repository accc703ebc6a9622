from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from distill.quantize.histogram import Histogram

values = arrays(np.float32, st.integers(1, 40), elements=st.floats(-1e4, 1e4, width=32))


def filled(batches) -> Histogram:
    histogram = Histogram()
    for batch in batches:
        histogram.add(np.asarray(batch))
    return histogram


@settings(max_examples=60, deadline=None)
@given(st.lists(values, min_size=1, max_size=5))
def test_counts_are_those_of_all_values_at_once(batches):
    histogram = filled(batches)
    everything = np.concatenate(batches).astype(np.float64)
    edges = np.linspace(-histogram.reach, histogram.reach, len(histogram.counts) + 1)
    np.testing.assert_array_equal(histogram.counts, np.histogram(everything, edges)[0])
    assert (histogram.low, histogram.high) == (everything.min(), everything.max())
    assert np.abs(everything).max() < histogram.reach


@settings(max_examples=60, deadline=None)
@given(st.lists(values, min_size=1, max_size=4), st.sampled_from([90.0, 99.0, 100.0]))
def test_percentile_ranges_hold_their_share_and_stay_inside_the_data(batches, percent):
    histogram = filled(batches)
    everything = np.concatenate(batches).astype(np.float64)
    low, high = histogram.percentile_range(percent)
    assert everything.min() <= low <= high <= everything.max()
    bin_width = 2 * histogram.reach / len(histogram.counts)
    inside = (everything >= low - bin_width) & (everything <= high + bin_width)
    assert inside.mean() >= percent / 100 - 1e-9
    if percent == 100.0:
        assert (low, high) == (everything.min(), everything.max())


def test_percentiles_match_numpy_on_many_values():
    data = np.random.default_rng(0).normal(size=100_000).astype(np.float32)
    histogram = filled(np.array_split(data, 7))
    low, high = histogram.percentile_range(99.0)
    np.testing.assert_allclose([low, high], np.quantile(data, [0.005, 0.995]), atol=0.01)
    positive = filled([np.abs(data)])
    np.testing.assert_allclose(
        positive.percentile_range(99.0), [np.abs(data).min(), np.quantile(np.abs(data), 0.99)], atol=0.01
    )


def test_entropy_drops_a_far_outlier_and_keeps_an_even_spread():
    even = np.linspace(-1, 1, 100_001).astype(np.float32)
    np.testing.assert_allclose(filled([even]).entropy_range(), (-1, 1), atol=0.05)
    outlier = np.append(np.random.default_rng(0).normal(size=100_000), 100.0).astype(np.float32)
    low, high = filled([outlier]).entropy_range()
    assert 2 < high < 10 and low < -2
    relu = np.maximum(outlier, 0)
    low, high = filled([relu]).entropy_range()
    assert low == 0 and 2 < high < 10


def squared_error(data: np.ndarray, low: float, high: float) -> float:
    """The oracle: quantise every value itself, in float64."""
    step = (high - low) / 255
    shown = np.rint(data.astype(np.float64) / step).clip(round(low / step), round(high / step)) * step
    return float(((data - shown) ** 2).mean())


@pytest.mark.parametrize("kind", ["normal", "relu", "laplace", "outlier", "shifted"])
def test_mse_is_no_worse_than_any_other_share_of_the_range(kind: str) -> None:
    rng = np.random.default_rng(0)
    data = {
        "normal": rng.normal(size=40_000),
        "relu": np.maximum(rng.normal(size=40_000), 0),
        "laplace": rng.laplace(size=40_000),
        "outlier": np.append(rng.normal(size=40_000), 30.0),
        "shifted": rng.normal(3.0, 1.0, 40_000),
    }[kind].astype(np.float32)
    low, high = filled(np.array_split(data, 5)).mse_range()
    found = squared_error(data, min(low, 0), max(high, 0))
    others = [squared_error(data, min(data.min(), 0) * share, data.max() * share) for share in np.linspace(0.1, 1, 31)]
    assert found <= 1.02 * min(others)
    assert data.min() <= low <= high <= data.max()
    assert kind != "laplace" or found < 0.96 * others[-1]


@pytest.mark.parametrize("data", [[0.0, 0.0], [1e-20], [5.0]])
def test_hardly_any_data_still_give_a_range(data):
    histogram = filled([data])
    for low, high in (histogram.percentile_range(99.0), histogram.entropy_range(), histogram.mse_range()):
        assert np.isfinite([low, high]).all() and low <= high
