from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper
from quantize_zoo import normal
from small_graphs import GEMM, floats, graph, linear, rows

from distill.intervals import paired_drop, wilson
from distill.quantize.verb.judge import answers_of, drop_of, judge_of
from distill.quantize.verb.rows import Rows


def given_rows(labels: np.ndarray | None = None, count: int = 60) -> Rows:
    return Rows(where="rows", calibration=[], judged=[{"x": rows(count)}], labels=labels, batch=None, remarks=())


def test_the_float_graph_itself_loses_nothing() -> None:
    loss = judge_of(graph(), given_rows())(graph())
    assert (loss.drop, loss.divergence, loss.fault) == (0.0, 0.0, None)
    assert loss.interval == wilson(0, 60)


def test_changed_answers_and_lost_accuracy_are_counted() -> None:
    other = graph(weights=linear() | {"w": -linear()["w"]})
    judge = judge_of(graph(), given_rows())
    after = np.argmax(rows() @ -linear()["w"] + linear()["b"], axis=1)
    changed = int((after != judge.answers).sum())
    assert judge(other).interval == wilson(changed, 60)
    labelled = judge_of(graph(), given_rows(judge.answers))
    assert labelled(other).interval == paired_drop(changed, 0, 60)
    assert labelled(other).drop == pytest.approx(changed / 60)


@pytest.mark.parametrize(("value", "says"), [(np.nan, "NaN or infinite for 60 of 60"), (0, "all zero")])
def test_answers_that_are_none_lose_without_end(value: float, says: str) -> None:
    broken = graph(weights={name: np.full_like(one, value) for name, one in linear().items()})
    loss = judge_of(graph(), given_rows())(broken)
    assert says in (loss.fault or "")
    assert loss.drop == loss.divergence == math.inf
    assert loss.interval is None


def test_labels_of_one_logit_are_zero_and_one() -> None:
    weights = {"w": linear()["w"][:, :1], "b": linear()["b"][:1]}
    one = graph([GEMM], outputs=[floats("logits", "batch", 1)], weights=weights)
    labels = np.arange(60) % 2
    judge = judge_of(one, given_rows(labels))
    assert judge(one).drop == 0
    assert judge.unit == "share of the answers' energy"


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(1, 9), st.integers(0, 1000))
def test_positions_of_a_dense_prediction_count_as_shares_of_their_row(count: int, side: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    before, after, truth = (rng.integers(0, 3, (count, side, 2)) for _ in range(3))
    changed, lost = drop_of(before, after, None), drop_of(before, after, truth)
    assert changed.value == pytest.approx((before != after).mean())
    assert lost.value == pytest.approx((before == truth).mean() - (after == truth).mean())
    assert lost.low <= lost.value <= lost.high
    # As wide as that of so many rows, however many positions they have.
    assert changed.high - changed.low == pytest.approx(
        wilson(changed.value * count, count).high - wilson(changed.value * count, count).low
    )


def test_intervals_of_shares_cover_where_positions_of_a_row_change_together() -> None:
    rng = np.random.default_rng(0)
    covered = []
    for _ in range(600):
        shares = rng.beta(0.2, 1.8, 80)  # of a mean of a tenth, most rows with hardly any or many
        before = np.zeros((80, 50), int)
        after = (rng.random((80, 50)) < shares[:, None]).astype(int)
        found = drop_of(before, after, None)
        covered.append(found.low <= 0.1 <= found.high)
    assert np.mean(covered) >= 0.95


@pytest.mark.parametrize(
    ("shape", "answers"), [((4,), (4,)), ((4, 1), (4,)), ((4, 3), (4,)), ((4, 3, 5), (4, 5)), ((4, 3, 5, 6), (4, 5, 6))]
)
def test_every_row_or_position_has_one_answer(shape: tuple[int, ...], answers: tuple[int, ...]) -> None:
    assert answers_of(normal(*shape)).shape == answers


def test_what_makes_a_comparison_prove_little_is_remarked() -> None:
    constant = graph(weights=linear() | {"b": np.array([0, 100, 0], np.float32)})
    assert any("same answer (class 1)" in text for text in judge_of(constant, given_rows()).remarks)
    nodes = [GEMM, helper.make_node("Relu", ["logits"], ["other"])]
    two = graph(nodes, outputs=[floats("logits", "batch", 3), floats("other", "batch", 3)])
    assert any("nothing compares other" in text for text in judge_of(two, given_rows()).remarks)
    assert judge_of(graph(), given_rows()).remarks == ()


def test_a_float_model_that_is_no_better_than_the_most_frequent_class_is_remarked() -> None:
    answers = judge_of(graph(), given_rows()).answers
    (remark,) = judge_of(graph(), given_rows((answers + 1) % 3)).remarks
    assert "the float32 model is right in 0.0 % of the answers that judge" in remark
    assert judge_of(graph(), given_rows(answers)).remarks == ()
