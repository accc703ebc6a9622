"""Which widths are chosen for a speed: told by costs that are made up, so that the best choice is known."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.prune.widths.latency import Ladder, LayerCosts, choose_seconds, given_back, ladder, snap
from distill.prune.widths.selection import Candidate

WIDTH = 64


class Costs:
    """Layers of their own for each group: ``steps`` channels cost as much as the next multiple of it."""

    def __init__(self, prices: dict[str, float], step: int = 16, slow: tuple[int, ...] = ()) -> None:
        self.prices, self.step, self.slow = prices, step, slow
        self.sizes = SimpleNamespace(touched=lambda group: (group,))
        self.shapes = {name: [] for name in prices}

    def prefetch(self, states: Any) -> None:
        list(states)

    def of_group(self, group: str, gone: Any) -> float:
        width = WIDTH - gone.get(group, 0)
        return self.prices[group] * -(-width // self.step) * (1.5 if width in self.slow else 1.0)

    def total(self, gone: Any) -> float:
        return sum(self.of_group(name, gone) for name in self.prices)


def made(prices: dict[str, float], **options: Any) -> LayerCosts:
    return cast(LayerCosts, Costs(prices, **options))


def rungs(name: str, scores: list[float] | None = None, weight: float = 1.0) -> Ladder:
    scores = scores or [1.0] * WIDTH
    return ladder(Candidate(name, name, tuple(scores), 1, WIDTH), weight, round_to=4, max_ratio=0.75)


def test_a_ladder_stops_on_multiples_and_its_last_units_are_the_dearest() -> None:
    found = rungs("a", [float(i + 1) for i in range(WIDTH)])
    assert found.fine == tuple(range(4, 49, 4))
    assert set(found.stops) <= set(found.fine)
    assert 48 in found.stops
    assert len(found.stops) <= 9
    assert found.ranked == tuple(range(WIDTH))
    steps = [after - before for before, after in zip(found.harm, found.harm[1:], strict=False)]
    assert steps == sorted(steps)


def test_the_group_that_saves_most_goes_first() -> None:
    gone = choose_seconds([rungs("cheap"), rungs("dear")], made({"cheap": 1.0, "dear": 10.0}), 34.0)
    assert set(gone) == {"dear"}
    assert gone["dear"] == 16


def test_of_equal_prices_the_less_important_goes() -> None:
    small = [0.01] * 32 + [1.0] * 32
    gone = choose_seconds([rungs("even"), rungs("half idle", small)], made({"even": 1.0, "half idle": 1.0}), 6.0)
    assert gone == {"half idle": 32}


def test_what_saves_nothing_is_skipped() -> None:
    """Widths end where a step does: 48 and not 52, which costs as much as 64."""
    for goal in (3.9, 3.0):
        gone = choose_seconds([rungs("a")], made({"a": 1.0}), goal)
        assert gone == {"a": 16}


def test_out_of_reach_everything_goes_that_may() -> None:
    assert choose_seconds([rungs("a"), rungs("b")], made({"a": 1.0, "b": 1.0}), 0.5) == {"a": 48, "b": 48}


def test_what_was_not_needed_is_given_back() -> None:
    costs = made({"a": 1.0, "b": 1.0})
    assert given_back([rungs("a"), rungs("b")], costs, {"a": 48, "b": 48}, 8.0) == {}
    assert costs.total(given_back([rungs("a"), rungs("b")], costs, {"a": 48, "b": 48}, 5.0)) == 5.0
    assert given_back([rungs("a")], made({"a": 1.0}), {"a": 48}, 0.5) == {"a": 48}


@pytest.mark.parametrize(("gone", "snapped"), [(20, 16), (28, 16), (16, 16), (32, 32), (4, 0), (44, 32)])
def test_a_width_goes_to_the_end_of_its_step(gone: int, snapped: int) -> None:
    found = snap([rungs("a")], made({"a": 1.0}), {"a": gone})
    assert found.get("a", 0) == snapped


def test_a_width_leaves_a_slow_place() -> None:
    """32 channels that cost more than 40: the wider it is."""
    assert snap([rungs("a")], made({"a": 1.0}, slow=(32,)), {"a": 32}) == {"a": 16}


@given(
    st.dictionaries(st.sampled_from("abcd"), st.floats(0.1, 10), min_size=1),
    st.floats(0.3, 1.0),
    st.lists(st.floats(0.01, 5), min_size=WIDTH, max_size=WIDTH),
)
@settings(max_examples=40, deadline=None)
def test_the_goal_is_held_whenever_it_can_be(prices: dict[str, float], share: float, scores: list[float]) -> None:
    costs, ladders = made(prices), [rungs(name, scores) for name in prices]
    goal = share * costs.total({})
    chosen = choose_seconds(ladders, costs, goal)
    assert costs.total(chosen) <= goal * (1 + 1e-9)
    moved = snap(ladders, costs, chosen)
    assert costs.total(moved) <= costs.total(chosen) * 1.01 ** len(prices)
    assert all(moved.get(name, 0) <= count for name, count in chosen.items())
    # Nothing more can be given back.
    assert costs.total(given_back(ladders, costs, chosen, goal)) <= goal * (1 + 1e-9)
