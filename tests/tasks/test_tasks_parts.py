"""Augmentation, splits, metrics and hashes: the mathematics under the tasks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import f1_score, roc_auc_score

from distill.errors import UserError
from distill.references.digest import Digest
from distill.tasks import metrics
from distill.tasks.augment import counter_hash, draw, hash_words, shift_and_flip
from distill.tasks.splits import by_group, check_splits, part_size, shuffled, stratified

MASK = (1 << 64) - 1
words = st.integers(min_value=-(2**63), max_value=2**63 - 1)


def splitmix64(seed: int, count: int) -> list[int]:
    """Follow the published C code, in whole numbers."""
    out = []
    for _ in range(count):
        seed = (seed + 0x9E3779B97F4A7C15) & MASK
        z = seed
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
        out.append(z ^ (z >> 31))
    return out


def test_the_hash_is_splitmix64() -> None:
    assert splitmix64(0, 1) == [0xE220A8397B1DCDAF]
    found = [value & MASK for value in counter_hash(0, torch.arange(5)).tolist()]
    assert found == splitmix64(0, 5)


@given(key=st.integers(0, MASK), index=st.lists(st.integers(0, 10_000), min_size=1, max_size=8))
@settings(max_examples=50, deadline=None)
def test_the_hash_agrees_with_whole_numbers(key: int, index: list[int]) -> None:
    expected = splitmix64(key, max(index) + 1)
    found = counter_hash(key, torch.tensor(index))
    assert [value & MASK for value in found.tolist()] == [expected[one] for one in index]
    for limit in (1, 2, 5, 129):
        for place in range(3):
            drawn = draw(found, place, limit)
            assert 0 <= int(drawn.min()) <= int(drawn.max()) < limit


@given(st.lists(words, min_size=1, max_size=4))
def test_hashed_words_depend_on_order_and_stay_in_64_bits(values: list[int]) -> None:
    assert 0 <= hash_words(*values) <= MASK
    assert values == values[::-1] or hash_words(*values) != hash_words(*values[::-1])


def test_draws_are_even() -> None:
    bits = counter_hash(hash_words(3, 1), torch.arange(50_000))
    for place in range(3):
        counts = torch.bincount(draw(bits, place, 5), minlength=5)
        assert (counts - 10_000).abs().max() < 5 * (50_000 * 0.2 * 0.8) ** 0.5


def shifted_by_hand(image: np.ndarray, down: int, right: int, flip: bool) -> np.ndarray:
    out = np.zeros_like(image)
    height, width, _ = image.shape
    for row in range(height):
        for column in range(width):
            y, x = row + down, column + right
            if 0 <= y < height and 0 <= x < width:
                out[row, column] = image[y, x]
    return out[:, ::-1] if flip else out


@given(
    seed=st.integers(0, 2**32),
    view=st.integers(0, 100),
    padding=st.integers(1, 3),
    flip=st.booleans(),
    channels=st.sampled_from([1, 3]),
)
@settings(max_examples=25, deadline=None)
def test_an_augmented_image_is_a_shift_of_itself(seed: int, view: int, padding: int, flip: bool, channels: int) -> None:
    images = torch.from_numpy(np.random.default_rng(0).integers(1, 256, (6, 5, 4, channels), dtype=np.uint8))
    index = torch.tensor([5, 0, 17, 3, 900, 2])
    found = shift_and_flip(images, index, seed=seed, view=view, padding=padding, flip=flip)
    assert found.shape == images.shape
    assert found.dtype == torch.uint8
    moves = range(-padding, padding + 1)
    for image, result in zip(images.numpy(), found.numpy(), strict=True):
        options = (
            shifted_by_hand(image, down, right, mirrored)
            for down in moves
            for right in moves
            for mirrored in ((False, True) if flip else (False,))
        )
        assert any(np.array_equal(option, result) for option in options)
    alone = shift_and_flip(images[2:3], index[2:3], seed=seed, view=view, padding=padding, flip=flip)
    assert torch.equal(alone[0], found[2])


def test_views_differ_and_cover_every_shift_and_both_sides() -> None:
    image = torch.arange(1, 10, dtype=torch.uint8).reshape(1, 3, 3, 1)
    seen = {
        bytes(shift_and_flip(image, torch.tensor([4]), seed=0, view=view, padding=1, flip=True).numpy().tobytes())
        for view in range(300)
    }
    assert len(seen) == 18


@given(
    counts=st.lists(st.integers(3, 60), min_size=2, max_size=6),
    seed=st.integers(0, 1000),
    shares=st.tuples(st.floats(0.05, 0.4), st.floats(0.05, 0.4)),
)
@settings(max_examples=60, deadline=None)
def test_a_stratified_split_is_a_partition_in_proportion(
    counts: list[int], seed: int, shares: tuple[float, float]
) -> None:
    target = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)), counts))
    sizes = [part_size(len(target), share, 0.1) for share in shares]
    parts = stratified(target, sizes, seed)
    assert [len(part) for part in parts[:2]] == sizes
    assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(len(target)))
    for part in parts:
        assert np.array_equal(part, np.sort(part))
    taken = np.zeros(len(counts))
    for part, size in zip(parts, np.cumsum([*sizes, 0]), strict=True):
        taken += np.bincount(target[part], minlength=len(counts))
        if len(part) and size < len(target):
            # Cut at one quantile of every class at once: each class is there to within about one row.
            assert (np.abs(taken - np.array(counts) * size / len(target)) <= 1.5).all() or part is parts[-1]
    again = stratified(target, sizes, seed)
    assert all(np.array_equal(one, other) for one, other in zip(parts, again, strict=True))


@given(groups=st.lists(st.sampled_from("abcdefghijklmnop"), min_size=30, max_size=120), seed=st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_no_group_lies_in_two_parts(groups: list[str], seed: int) -> None:
    parts = by_group(groups, [len(groups) // 5, len(groups) // 10], seed)
    assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(len(groups)))
    homes = [{groups[row] for row in part} for part in parts]
    assert sum(map(len, homes)) == len(set(groups))


def test_seeds_decide_the_order() -> None:
    assert sorted(shuffled(100, 3).tolist()) == list(range(100))
    assert not np.array_equal(shuffled(100, 3), shuffled(100, 4))


def test_shares_round_up_and_the_default_gives_at_least_ten() -> None:
    assert part_size(1797, None, 0.2) == 360
    assert part_size(60_000, None, 1 / 12) == 5000
    assert part_size(40, None, 0.1) == 10
    assert part_size(40, 0.1, 0.2) == 4


def test_a_class_that_train_lacks_is_refused_and_a_rare_one_is_told() -> None:
    many, few = np.zeros(20, np.int64), np.arange(20) % 2
    with pytest.raises(UserError, match=r"class 'b' occurs in validation but not in train"):
        check_splits({"train": many, "validation": few, "test": many}, ("a", "b"), own=())
    (warning,) = check_splits({"train": few, "validation": few, "test": many}, ("a", "b"), own=())
    assert "no sample of 'b' in the test split" in warning


def test_a_small_split_is_refused_with_the_share_that_would_do() -> None:
    y = np.arange(40) % 2
    with pytest.raises(UserError, match=r"the validation split has 4 samples.*data.validation to at least 0.2"):
        check_splits({"train": y[:26], "validation": y[:4], "test": y[:20]}, ("a", "b"), own=())


@given(st.integers(0, 10_000), st.integers(2, 5))
@settings(max_examples=30, deadline=None)
def test_metrics_agree_with_their_definitions(seed: int, classes: int) -> None:
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(60, classes)).astype(np.float32)
    target = np.concatenate([np.arange(classes), rng.integers(0, classes, 60 - classes)])
    predicted = logits.argmax(1)
    assert metrics.accuracy(logits, target) == pytest.approx(np.mean(predicted == target))
    assert metrics.f1(logits, target) == pytest.approx(f1_score(target, predicted, average="macro", zero_division=0))
    z = np.exp(logits.astype(np.float64))
    p = z / z.sum(1, keepdims=True)
    expected = roc_auc_score(target, p[:, 1]) if classes == 2 else roc_auc_score(target, p, multi_class="ovr")
    assert metrics.auroc(logits, target) == pytest.approx(expected)


def test_metrics_of_odd_cases() -> None:
    target = np.array([0, 1, 1])
    logits = np.array([[2, 0], [0, 1], [np.nan, 0]], np.float32)
    assert metrics.accuracy(logits, target) == pytest.approx(2 / 3)
    assert metrics.f1(logits, target, positive=1) == pytest.approx(2 / 3)
    assert np.isnan(metrics.auroc(logits, target))
    assert np.isnan(metrics.auroc(logits[:2], np.array([1, 1])))
    saturated = np.array([[0, 400.0, 0], [0, 300.0, 0], [0, 0, 90.0], [90.0, 0, 0]], np.float32)
    assert metrics.auroc(saturated, np.array([1, 0, 2, 0])) == pytest.approx((3 / 4 + 1 + 1) / 3)


def test_the_positive_label_and_the_metric_are_checked() -> None:
    assert metrics.positive_number(None, ("no", "yes")) == 1
    assert metrics.positive_number("no", ("no", "yes")) == 0
    for positive, labels, said in (("yse", ("no", "yes"), "did you mean 'yes'"), ("a", ("a", "b", "c"), "3 classes")):
        with pytest.raises(UserError, match=said):
            metrics.positive_number(positive, labels)
    with pytest.raises(UserError, match=r"did you mean 'accuracy'"):
        metrics.chosen_metric("acuracy", ("accuracy", "f1"))


def test_digests_tell_contents_apart() -> None:
    contents = [
        [1, 2], [[1], 2], (1, "2"), {"a": 1}, {"b": 1}, b"12", "12", None, 1.0, 1, True,
        np.zeros(3, np.float32), np.zeros(3, np.float64), np.zeros((3, 1), np.float32), np.array(["a", "b", "c"]),
        torch.zeros(3), torch.zeros(3, dtype=torch.bfloat16), torch.zeros(()), torch.zeros(0),
    ]  # fmt: skip
    digests = [Digest().add(one).hexdigest() for one in contents]
    assert len(set(digests)) == len(digests)
    assert digests == [Digest().add(one).hexdigest() for one in contents]
    assert Digest().add(object()).hexdigest() == Digest().add(object()).hexdigest()
    assert Digest().add(np.array(["a"], object)).hexdigest() == Digest().add(np.array(["a"], object)).hexdigest()
