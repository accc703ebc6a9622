from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.errors import UserError
from distill.intervals import Estimate, Z, paired_drop, wilson
from distill.runtime import quality as estimates
from distill.runtime.facts import Quality
from distill.runtime.quality import judge_drop, quality, weak_evidence, weak_splits
from distill.tasks import metrics
from distill.types import Array


def answers(right: Array, target: Array, classes: int = 3) -> Array:
    """Logits that are right where ``right`` says so, else one class off."""
    said = np.where(right, target, (target + 1) % classes)
    return (4 * np.eye(classes)[said]).astype(np.float32)


def plain(logits: Array, target: Array) -> dict[str, float]:
    return {"accuracy": metrics.accuracy(logits, target)}


def both(logits: Array, target: Array) -> dict[str, float]:
    return {"accuracy": metrics.accuracy(logits, target), "f1": metrics.f1(logits, target)}


def judged(logits: Array, target: Array, teacher: Array | None = None, **options: Any) -> Quality:
    options = {"metrics": plain, "metric": "accuracy", "limit": 0.01, **options}
    return quality("test", logits, target, teacher=teacher, **options)


def test_z_is_the_normal_quantile() -> None:
    assert 0.5 * (1 + math.erf(Z / math.sqrt(2))) == pytest.approx(0.975, abs=1e-12)


@settings(max_examples=80, deadline=None)
@given(data=st.data(), n=st.integers(1, 20_000))
def test_wilson_ends_are_the_roots_of_the_score_equation(data: st.DataObject, n: int) -> None:
    successes = data.draw(st.integers(0, n))
    found, share = wilson(successes, n), successes / n
    # (p - share)² = z² p (1 - p) / n, as a polynomial in p
    low, high = sorted(np.roots([1 + Z**2 / n, -2 * share - Z**2 / n, share**2]).real)
    assert found.value == share
    assert (found.low, found.high) == pytest.approx((max(0, low), min(1, high)), abs=1e-7)
    assert 0 <= found.low <= share + 1e-12
    assert share <= found.high + 1e-12 <= 1 + 1e-12


def test_wilson_of_nothing_is_everything() -> None:
    assert (wilson(0, 0).low, wilson(0, 0).high) == (0.0, 1.0)


@pytest.mark.parametrize(("n", "share"), [(57, 0.9), (360, 0.97), (360, 0.995), (10_000, 0.93), (40, 0.5)])
def test_wilson_covers(n: int, share: float) -> None:
    drawn = np.random.default_rng(1).binomial(n, share, 4000)
    ends = [wilson(int(one), n) for one in drawn]
    assert np.mean([one.low <= share <= one.high for one in ends]) >= 0.925


@settings(max_examples=80, deadline=None)
@given(data=st.data(), n=st.integers(1, 20_000))
def test_the_paired_interval_is_walds_with_one_added_to_each_count(data: st.DataObject, n: int) -> None:
    lost = data.draw(st.integers(0, n))
    won = data.draw(st.integers(0, n - lost))
    found = paired_drop(lost, won, n)
    # The sample variance of +1, -1 and 0, counted out one by one, after adding one of each sign.
    total = np.float64(n + 2)
    mean = np.float64(lost - won) / total
    variance = ((lost + 1) * (1 - mean) ** 2 + (won + 1) * (1 + mean) ** 2 + (n - lost - won) * mean**2) / total
    half = Z * np.sqrt(variance / total)
    assert found.value == pytest.approx((lost - won) / n, abs=1e-12)
    assert (found.low, found.high) == pytest.approx((max(-1, mean - half), min(1, mean + half)), abs=1e-9)


@pytest.mark.parametrize(
    ("n", "lost", "won"),
    [(57, 0.02, 0.0), (360, 0.01, 0.005), (360, 0.0, 0.0), (360, 0.04, 0.02), (10_000, 0.02, 0.012)],
)
def test_the_paired_interval_covers(n: int, lost: float, won: float) -> None:
    drawn = np.random.default_rng(2).multinomial(n, [lost, won, 1 - lost - won], 4000)
    ends = [paired_drop(int(b), int(c), n) for b, c, _ in drawn]
    assert np.mean([one.low <= lost - won <= one.high for one in ends]) >= 0.93


def test_swapping_the_sides_turns_the_interval_round() -> None:
    one, other = paired_drop(7, 3, 100), paired_drop(3, 7, 100)
    assert (one.value, one.low, one.high) == pytest.approx((-other.value, -other.high, -other.low))


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [(-0.01, 0.005, "met"), (-0.01, 0.01, "met"), (0.02, 0.03, "missed"), (0.0, 0.02, "unresolved")],
)
def test_a_drop_is_judged_by_its_interval(low: float, high: float, verdict: str) -> None:
    assert judge_drop(Estimate((low + high) / 2, low, high), 0.01).verdict == verdict


def test_what_changed_sides_is_counted() -> None:
    target = np.arange(30) % 3
    teacher_right, right = np.ones(30, bool), np.ones(30, bool)
    teacher_right[:4] = False
    right[2:9] = False
    found = judged(answers(right, target), target, answers(teacher_right, target), limit=0.5)
    assert (found.flips_lost, found.flips_won, found.samples) == (5, 2, 30)
    assert found.drop is not None
    assert found.drop.value == pytest.approx(3 / 30)
    assert found.metrics["accuracy"].value == pytest.approx(23 / 30)
    assert found.agreement is not None
    assert found.agreement.value == pytest.approx(23 / 30)


def test_the_divergence_is_that_of_a_float64_oracle() -> None:
    rng = np.random.default_rng(0)
    teacher, student = rng.normal(size=(9, 4)).astype(np.float32), rng.normal(size=(9, 4)).astype(np.float32)
    p, q = (np.exp(one.astype(np.float64)) for one in (teacher, student))
    p, q = p / p.sum(1, keepdims=True), q / q.sum(1, keepdims=True)
    found = judged(student, np.arange(9) % 4, teacher)
    assert found.kl == pytest.approx((p * np.log(p / q)).sum(1).mean())


def test_the_teacher_itself_has_no_drop() -> None:
    target = np.arange(12) % 3
    found = judged(answers(target > 0, target), target)
    assert (found.agreement, found.drop, found.kl) == (None, None, None)


def sample(n: int, seed: int, skill: float = 0.85) -> tuple[Array, Array, Array]:
    rng = np.random.default_rng(seed)
    target = rng.integers(0, 3, n)
    return answers(rng.random(n) < skill, target), target, answers(rng.random(n) < skill + 0.05, target)


def test_equal_seeds_give_equal_bootstrap_intervals() -> None:
    logits, target, teacher = sample(150, 0)
    options = {"metrics": both, "metric": "f1"}
    one, again, other = (judged(logits, target, teacher, seed=seed, **options) for seed in (3, 3, 4))
    assert one == again
    assert one.drop is not None
    assert other.drop is not None
    assert (one.drop.low, one.drop.high) != (other.drop.low, other.drop.high)
    assert one.drop.low <= one.drop.value <= one.drop.high


def test_bootstrap_intervals_cover_the_drop_of_another_metric(monkeypatch: pytest.MonkeyPatch) -> None:
    """F1 (macro) of answers that are right at a rate, and one class off else, tends to that rate."""
    monkeypatch.setattr(estimates, "RESAMPLES", 150)
    covered = []
    for seed in range(40):
        logits, target, teacher = sample(200, seed)
        drop = judged(logits, target, teacher, metrics=both, metric="f1").drop
        assert drop is not None
        covered.append(drop.low <= 0.05 <= drop.high)
    assert np.mean(covered) >= 0.85


def test_a_resample_without_a_class_is_passed_over() -> None:
    """A metric may refuse a sample in which a class is missing; the interval then rests on the others."""

    def picky(logits: Array, target: Array) -> Mapping[str, float]:
        if len(np.unique(target)) < 3:
            raise UserError("metrics raised ValueError: a class is missing")
        return both(logits, target)

    target = np.array([0] * 10 + [1] * 10 + [2])
    logits = answers(np.arange(21) % 5 > 0, target)
    found = judged(logits, target, logits, metrics=picky, metric="f1")
    assert found.metrics["f1"].low < found.metrics["f1"].value < found.metrics["f1"].high


def test_what_a_task_calls_accuracy_need_not_be_the_share_of_right_answers() -> None:
    def balanced(logits: Array, target: Array) -> dict[str, float]:
        right = logits.argmax(1) == target
        return {"accuracy": float(np.mean([right[target == label].mean() for label in np.unique(target)]))}

    target = np.array([0] * 40 + [1] * 5 + [2] * 5)
    logits = answers(target == 0, target)
    found = judged(logits, target, answers(target >= 0, target), metrics=balanced)
    assert found.metrics["accuracy"].value == pytest.approx(1 / 3)
    assert found.drop is not None
    assert found.drop.value == pytest.approx(2 / 3)


# What proves little ---------------------------------------------------------------------------------------------------


def test_one_answer_and_the_share_of_the_largest_class_prove_little() -> None:
    target = np.array([0] * 99 + [1])
    always, right = np.tile([[1.0, 0.0]], (100, 1)), np.eye(2)[target]
    options: dict[str, Any] = {"metrics": ("accuracy", "auroc", "f1"), "names": ("the teacher", "the student")}
    found = weak_evidence("test", always, target, metric="accuracy", teacher=always, **options)
    assert len(found) == 2
    assert "the teacher and the student give all 100 judged rows the same answer" in found[0]
    assert "99.0 %" in found[1] and "data.metric=auroc (auroc or f1)" in found[1]
    assert len(weak_evidence("test", always, target, metric="auroc", teacher=always, **options)) == 1
    assert (
        "which the teacher does not" in weak_evidence("test", always, target, metric="f1", teacher=right, **options)[0]
    )
    assert weak_evidence("test", right, target, metric="accuracy", teacher=right, **options) == ()
    assert weak_evidence("test", right, target, metric="accuracy", teacher=None, **options) == ()


def test_classes_that_a_split_does_not_show_are_named() -> None:
    assert weak_splits("test", np.array([0, 1, 2]), ("a", "b", "c")) == ()
    assert "no sample of class b" in weak_splits("test", np.array([0, 2]), ("a", "b", "c"))[0]
    assert "all 2 samples are of one class (c)" in weak_splits("validation", np.array([2, 2]), ("a", "b", "c"))[0]
    assert "and 4 more" in weak_splits("test", np.array([0, 1]), tuple("abcdefghijk"))[0]
