from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from distill import sealed
from distill.tasks.base import Batch, Task
from distill.training import views
from distill.training.views import CachedTeacher, LiveTeacher, batches, fits_cache, shuffled, teacher_for


class Numbers:
    """Samples that are their own number."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def fetch(self, index: Tensor, view: int | None) -> Batch:
        return index.clone(), view


@settings(max_examples=50, deadline=None)
@given(count=st.integers(1, 60), size=st.integers(1, 70))
def test_plain_order_covers_every_sample_once(count: int, size: int) -> None:
    seen = [index for index, _ in batches(Numbers(count), size)]
    assert torch.equal(torch.cat(seen), torch.arange(count))
    assert all(len(one) == size for one in seen[:-1])


@settings(max_examples=50, deadline=None)
@given(count=st.integers(1, 60), size=st.integers(1, 70), seed=st.integers(0, 9), epoch=st.integers(0, 9))
def test_shuffled_batches_are_full_and_repeat_no_sample(count: int, size: int, seed: int, epoch: int) -> None:
    seen = [index for index, _ in shuffled(Numbers(count), size, seed=seed, epoch=epoch, view=3)]
    assert len(seen) == max(1, count // size)
    assert all(len(one) == min(size, count) for one in seen)
    assert len(torch.cat(seen).unique()) == len(seen) * min(size, count)


def test_order_depends_on_seed_and_epoch_only() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        torch.manual_seed(np.random.randint(1000))
        parts = [index for index, _ in shuffled(Numbers(50), 10, seed=seed, epoch=epoch, view=None)]
        return [int(one) for one in torch.cat(parts)]

    assert order(1, 2) == order(1, 2)
    assert len({tuple(order(*one)) for one in ((1, 2), (2, 1), (1, 3), (0, 0))}) == 4


def test_a_view_is_passed_to_the_data() -> None:
    assert {view for _, (_, view) in shuffled(Numbers(10), 5, seed=0, epoch=0, view=7)} == {7}


def test_augmented_pixels_are_the_same_whatever_batch_asks(tiny_task: Task) -> None:
    data = tiny_task.data["train"]
    together = tiny_task.inputs(data.fetch(torch.tensor([4, 9, 1]), 2))[0][0]
    alone = tiny_task.inputs(data.fetch(torch.tensor([9]), 2))[0][0]
    assert torch.equal(together[1:2], alone)
    everything = torch.arange(len(data))
    one, other = (tiny_task.inputs(data.fetch(everything, view))[0][0] for view in (2, 3))
    assert not torch.equal(one, other)


def counting(calls: list[int]) -> Callable[[int], views.Array]:
    def compute(view: int) -> views.Array:
        calls.append(view)
        return np.random.default_rng(view).normal(size=(20, 3)).astype(np.float32)

    return compute


def test_the_teacher_answers_once_for_each_view(tmp_path: Path) -> None:
    calls: list[int] = []
    index = torch.tensor([3, 1, 19])
    teacher = CachedTeacher("key", tmp_path / "cache", counting(calls))
    first = [teacher(index, None, view) for view in (0, 1, 0, 1)]
    again = [CachedTeacher("key", tmp_path / "cache", counting(calls))(index, None, view) for view in (0, 1, 0, 1)]
    assert calls == [0, 1]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert first[0].dtype == torch.float32
    expected = torch.from_numpy(counting([])(0))[index]
    torch.testing.assert_close(first[0], expected, rtol=2**-10, atol=1e-6)
    assert not torch.equal(first[0], first[1])


def test_another_key_is_another_cache(tmp_path: Path) -> None:
    calls: list[int] = []
    for key in ("one", "other"):
        CachedTeacher(key, tmp_path, counting(calls))(torch.tensor([0]), None, 0)
    assert calls == [0, 0]


def test_a_cache_file_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def torn(tensors: dict[str, Any], path: Path, **more: Any) -> None:
        Path(path).write_bytes(b"half of it")
        raise OSError("killed")

    calls: list[int] = []
    with monkeypatch.context() as patch:
        patch.setattr(sealed, "save_file", torn)
        with pytest.raises(OSError, match="killed"):
            CachedTeacher("key", tmp_path, counting(calls))(torch.tensor([0]), None, 0)
    CachedTeacher("key", tmp_path, counting(calls))(torch.tensor([0]), None, 0)
    assert calls == [0, 0]


def test_huge_logits_stay_finite(tmp_path: Path) -> None:
    huge = np.array([[1e6, -1e6, 0.0]], np.float32)
    assert torch.isfinite(CachedTeacher("key", tmp_path, lambda view: huge)(torch.tensor([0]), None, 0)).all()


def test_a_live_teacher_gives_no_gradient() -> None:
    weight = torch.ones(3, requires_grad=True)
    live = LiveTeacher(lambda batch: (batch * weight).half())
    found = live(torch.arange(2), torch.ones(2, 3), 0)
    assert not found.requires_grad
    assert found.dtype == torch.float32


def test_what_is_too_large_for_the_cache_is_asked_live(
    tiny_task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3))
    options = {"key": "k", "folder": tmp_path, "device": torch.device("cpu")}
    assert isinstance(teacher_for(model, tiny_task, views=1, **options), CachedTeacher)
    assert isinstance(teacher_for(model, tiny_task, views=0, **options), LiveTeacher)
    assert model.training
    assert fits_cache(tiny_task, 8)
    monkeypatch.setattr(views, "CACHE_LIMIT_BYTES", 100)
    assert isinstance(teacher_for(model, tiny_task, views=8, **options), LiveTeacher)
