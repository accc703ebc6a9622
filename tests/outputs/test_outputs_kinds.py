"""What outputs say, how far two are apart, and what one loses against another."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.errors import UserError
from distill.intervals import paired_drop, wilson
from distill.outputs import Comparison, Output, degenerate
from distill.types import Array

CLASSES, BINARY, LABELS, NUMBERS = Output("classes"), Output("binary"), Output("labels"), Output("numbers")
CHANCE = Output("binary", probabilities=True)


def normal(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(size=shape)


def softmax(logits: Array, axis: int) -> Array:
    grown = np.exp(logits - logits.max(axis, keepdims=True))
    return np.asarray(grown / grown.sum(axis, keepdims=True))


def sigmoid(logits: Array) -> Array:
    return np.asarray(1 / (1 + np.exp(-logits)))


def scores(answers: Array) -> Array:
    """Return logits [n, 3, …] whose strongest classes are these."""
    return np.moveaxis(np.eye(3)[answers], -1, 1)


@pytest.mark.parametrize(
    ("output", "shape", "answers"),
    [
        (CLASSES, (4, 3), (4,)),
        (CLASSES, (4, 3, 5, 6), (4, 5, 6)),
        (Output("classes", 2), (4, 5, 3), (4, 5)),
        (BINARY, (4,), (4,)),
        (BINARY, (4, 1), (4,)),
        (LABELS, (4, 3), (4, 3)),
        (NUMBERS, (4, 3), (4, 3)),
    ],
)
def test_every_kind_has_its_answers(output: Output, shape: tuple[int, ...], answers: tuple[int, ...]) -> None:
    assert output.answers(normal(*shape)).shape == answers


def test_a_probability_is_a_yes_above_a_half_and_a_logit_above_nothing() -> None:
    logits = normal(50, 1)
    assert (BINARY.answers(logits) == CHANCE.answers(sigmoid(logits))).all()
    assert not CHANCE.answers(sigmoid(logits)).all()
    assert BINARY.answers(sigmoid(logits)).all()  # what a threshold of 0 makes of probabilities


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 12), st.integers(2, 6), st.integers(1, 4), st.integers(0, 999), st.booleans())
def test_divergences_are_those_of_the_probabilities(n: int, c: int, places: int, seed: int, shares: bool) -> None:
    first, second = normal(n, places, c, seed=seed), normal(n, places, c, seed=seed + 1)
    p, q = softmax(first, 2), softmax(second, 2)
    expected = float((p * np.log(p / q)).sum(2).mean())
    output = Output("classes", 2, shares)
    assert output.divergence(*((p, q) if shares else (first, second))) == pytest.approx(expected, abs=1e-6)
    p, q = sigmoid(first), sigmoid(second)
    expected = float((p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))).mean())
    output = Output("labels", probabilities=shares)
    assert output.divergence(*((p, q) if shares else (first, second))) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("output", [CLASSES, Output("classes", 2, True), BINARY, LABELS, CHANCE])
def test_logits_of_classes_are_the_same_of_arrays_and_tensors(output: Output) -> None:
    values = sigmoid(normal(5, 1)) if output.kind == "binary" else sigmoid(normal(5, 3, 4))
    values = values.astype(np.float32)
    tensor = torch.from_numpy(values).requires_grad_()
    found = output.class_logits(tensor, torch)
    np.testing.assert_allclose(found.detach().numpy(), output.class_logits(values), rtol=1e-5, atol=1e-6)
    found.sum().backward()
    assert tensor.grad is not None and tensor.grad.abs().sum() > 0


def test_certain_probabilities_stay_finite() -> None:
    sure = np.array([[0.0], [1.0]], np.float16)
    assert np.isfinite(CHANCE.divergence(sure, sure[::-1]))
    assert CHANCE.divergence(sure, sure) == 0
    assert CHANCE.divergence(sure, np.full_like(sure, np.nan)) == math.inf
    with pytest.raises(ValueError, match="cannot be compared"):
        CHANCE.divergence(sure, sure[:1])


def test_classes_and_a_yes_or_no_are_paired() -> None:
    before, after = normal(60, 3), normal(60, 3, seed=1)
    labels = before.argmax(1)
    changed = int((after.argmax(1) != labels).sum())
    assert Comparison(CLASSES, before).drop(after) == wilson(changed, 60)
    assert Comparison(CLASSES, before, labels).drop(after) == paired_drop(changed, 0, 60)
    constant = np.full((60, 1), 0.7)
    loss = Comparison(CHANCE, sigmoid(normal(60, 1)), (normal(60, 1) > 0)[:, 0]).drop(constant)
    assert loss.low > 0.3  # half of the rows are yes


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(1, 9), st.integers(0, 1000))
def test_f1_of_labels_is_that_of_each_row(count: int, width: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    truth, found = rng.random((count, width)) < 0.3, rng.random((count, width)) < 0.4
    expected = []
    for right, said in zip(truth, found, strict=True):
        total = int(right.sum() + said.sum())
        expected.append(2 * int((right & said).sum()) / total if total else 1.0)
    compared = Comparison(LABELS, np.where(truth, 1.0, -1.0), truth)
    values = np.where(found, 1.0, -1.0)
    assert compared.row_scores(values) == pytest.approx(expected)
    assert compared.value(values) == pytest.approx(float(np.mean(expected)))
    drop = compared.drop(values)
    assert drop.value == pytest.approx(1 - float(np.mean(expected)))
    assert drop.low <= drop.value <= drop.high


def test_no_label_at_all_is_no_small_loss_where_labels_are_rare() -> None:
    """By accuracy of single labels it would lose two in a hundred."""
    truth = np.zeros((200, 100), bool)
    truth[:, :2] = True
    drop = Comparison(LABELS, np.where(truth, 3.0, -3.0), truth).drop(np.full((200, 100), -3.0))
    assert drop.value == 1


@settings(max_examples=40, deadline=None)
@given(st.integers(5, 60), st.integers(1, 4), st.integers(0, 999))
def test_numbers_lose_what_is_no_longer_explained(count: int, width: int, seed: int) -> None:
    before, after, truth = (normal(count, width, seed=seed + i) for i in range(3))

    def r2(values: Array, right: Array) -> float:
        return float((1 - ((values - right) ** 2).sum(0) / ((right - right.mean(0)) ** 2).sum(0)).mean())

    assert Comparison(NUMBERS, before).drop(after).value == pytest.approx(1 - r2(after, before))
    labelled = Comparison(NUMBERS, before, truth)
    assert labelled.value(after) == pytest.approx(r2(after, truth))
    drop = labelled.drop(after)
    assert drop.value == pytest.approx(r2(before, truth) - r2(after, truth))
    assert drop.low <= drop.value <= drop.high
    assert Comparison(NUMBERS, before).drop(before).value == 0


def test_a_small_column_counts_as_much_as_a_large_one() -> None:
    before = normal(100, 2) * [1000, 1]
    after = before.copy()
    after[:, 1] = 0
    assert Comparison(NUMBERS, before).drop(after).value == pytest.approx(0.5, abs=0.02)


def test_numbers_of_16_bits_do_not_overflow() -> None:
    before = (1000 * normal(50, 2)).astype(np.float16)
    drop = Comparison(NUMBERS, before).drop(-before)
    assert 3.5 < drop.value < 4.5


def test_numbers_that_never_vary_cannot_be_judged() -> None:
    with pytest.raises(UserError, match="the same for all 5 judged rows; give rows that differ"):
        Comparison(NUMBERS, np.ones((5, 2))).drop(np.zeros((5, 2)))


def test_intervals_of_numbers_cover() -> None:
    covered = []
    for seed in range(200):
        rng = np.random.default_rng(seed)
        before = rng.normal(size=(120, 1))
        after = before + 0.3 * rng.normal(size=(120, 1))
        drop = Comparison(NUMBERS, before, seed=seed).drop(after)
        covered.append(drop.low <= 0.09 <= drop.high)
    assert np.mean(covered) > 0.88


def test_a_metric_of_the_users_is_a_difference_with_an_interval() -> None:
    def mean_error(values: Array, labels: Array | None) -> float:
        return -float(np.abs(values - labels).mean())

    labels = normal(80, 2)
    compared = Comparison(NUMBERS, labels, labels, mean_error)
    drop = compared.drop(labels + 0.5)
    assert (drop.value, drop.low, drop.high) == pytest.approx((0.5, 0.5, 0.5))
    assert (compared.name, compared.counts_changes) == ("mean_error", False)

    def picky(values: Array, labels: Array | None) -> float:
        raise KeyError("classes")

    with pytest.raises(UserError, match=r"--metric: it raised KeyError: 'classes'"):
        Comparison(NUMBERS, labels, labels, picky).drop(labels)
    with pytest.raises(UserError, match="returned nan; it must return a finite number"):
        Comparison(NUMBERS, labels, labels, lambda values, labels: float("nan")).drop(labels)


def test_a_metric_that_resamples_have_not_is_unresolved_and_not_exact() -> None:
    def only_whole(values: Array, labels: Array | None) -> float:
        assert len(np.unique(values)) == len(values)
        return float(values.mean())

    drop = Comparison(NUMBERS, normal(50, 1), None, only_whole).drop(normal(50, 1, seed=1))
    assert (drop.low, drop.high) == (-math.inf, math.inf)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(1, 9), st.integers(0, 1000))
def test_positions_of_a_dense_prediction_count_as_shares_of_their_row(count: int, side: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    before, after, truth = (rng.integers(0, 3, (count, side, 2)) for _ in range(3))
    changed = Comparison(CLASSES, scores(before)).drop(scores(after))
    lost = Comparison(CLASSES, scores(before), truth).drop(scores(after))
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
        found = Comparison(CLASSES, scores(before)).drop(scores(after))
        covered.append(found.low <= 0.1 <= found.high)
    assert np.mean(covered) >= 0.95


NONE, SOME = np.zeros(200, int), np.arange(200) % 3
RARE = (np.arange(200) == 7).astype(int)


@pytest.mark.parametrize(
    ("before", "after", "labels", "says"),
    [
        (SOME, SOME, SOME, ()),
        (SOME, None, None, ()),
        (NONE, None, None, ("the float one gives all 200 judged rows", "(class 0)")),
        (NONE, NONE, RARE, ("the float one and the int8 one give", "right for 99.5 % of the labels")),
        (NONE, SOME, None, ("the float one gives", "a small drop proves nothing")),
        (RARE, NONE, RARE, ("the int8 one gives all 200", "which the float one does not")),
        (np.zeros((9, 4), bool), np.zeros((9, 4), bool), None, ("all 9 judged rows the same answer",)),
        (np.tile([0, 1], (9, 1)), np.tile([0, 1], (9, 1)), None, ("the same answer",)),
    ],
)
def test_answers_that_are_all_alike_prove_little(
    before: Array, after: Array | None, labels: Array | None, says: tuple[str, ...]
) -> None:
    found = degenerate(before, after, labels, names=("the float one", "the int8 one"))
    assert (found is None) == (not says)
    assert [text for text in says if text not in (found or "")] == []


def test_a_model_that_is_no_better_than_an_answer_without_looking_is_remarked() -> None:
    rng = np.random.default_rng(0)
    numbers, many = rng.normal(size=(200, 2)), rng.random((200, 6))
    several = many > 0.7
    cases = [
        (Comparison(Output("numbers"), numbers, rng.normal(size=(200, 2)) + 5), "always gives their mean"),
        (
            Comparison(Output("labels", probabilities=True), many, rng.random((200, 6)) > 0.3),
            "the same labels for",
        ),
        (Comparison(Output("classes"), many, rng.integers(0, 2, 200)), "always names the most frequent class"),
    ]
    for comparison, says in cases:
        assert says in (comparison.chance_remark("the model") or "")
    sound = [
        Comparison(Output("numbers"), numbers, numbers + 0.1 * rng.normal(size=(200, 2))),
        Comparison(Output("labels", probabilities=True), np.where(several, 0.9, 0.1), several),
        Comparison(Output("classes"), many, many.argmax(1)),
        Comparison(Output("numbers"), numbers),
    ]
    assert [comparison.chance_remark("the model") for comparison in sound] == [None] * 4
