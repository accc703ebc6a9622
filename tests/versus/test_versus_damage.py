from dataclasses import replace

import pytest

from distill.errors import UserError
from distill.versus.damage import NETWORKS, PEER, WAYS, Bench, report


def test_every_way_leaves_what_was_asked_and_is_compared_with_the_network_it_came_from() -> None:
    bench = Bench(replace(NETWORKS["MLP"], epochs=4), seed=0)
    found = {way: bench.tried(way, 0.7) for way in (PEER, "random", "gauss_newton")}
    for row in found.values():
        assert row["macs"] == pytest.approx(0.7, abs=0.02)
        assert row["teacher"] > 0.7
    assert found["gauss_newton"]["divergence"] < found["random"]["divergence"] / 2
    assert bench.tried("random", 1.0)["divergence"] == pytest.approx(0, abs=1e-6)


def test_the_table_has_a_line_for_each_network_and_share() -> None:
    rows = [
        {
            "network": "MLP",
            "share": 0.5,
            "seed": seed,
            "way": "taylor",
            "teacher": 0.9,
            "accuracy": 0.7,
            "divergence": d,
        }
        for seed, d in ((0, 1.0), (1, 2.0))
    ]
    lines = report([*rows, rows[0] | {"share": 0.7, "way": PEER}]).splitlines()
    assert lines[0].split(" | ")[3:] == [*WAYS[:-1], f"{WAYS[-1]} |"]
    assert lines[2] == "| MLP | 50% | 90.0% | – | – | – | 70.0% (1.50) | – | – |"
    assert lines[3] == "| MLP | 70% | 90.0% | 70.0% (1.00) | – | – | – | – | – |"
    with pytest.raises(UserError, match="no results"):
        report([])
