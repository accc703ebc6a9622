from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from distill import sealed_files as sealed
from distill.distillation import teachers
from distill.distillation.teachers import (
    CachedTeacher,
    LiveTeacher,
    MeanTeacher,
    StoredTeacher,
    fits_cache,
    teacher_for,
)
from distill.errors import UserError
from distill.tasks.base import Task
from distill.training.taps import Answers, Tap
from distill.types import Array


def counting(calls: list[int]) -> Callable[[int], Array]:
    def compute(view: int) -> Array:
        calls.append(view)
        return np.random.default_rng(view).normal(size=(20, 3)).astype(np.float32)

    return compute


def test_the_teacher_answers_once_for_each_view(tmp_path: Path) -> None:
    calls: list[int] = []
    index = torch.tensor([3, 1, 19])
    teacher = CachedTeacher("key", tmp_path / "cache", counting(calls))
    first = [teacher(index, None, view).logits for view in (0, 1, 0, 1)]
    again = [
        CachedTeacher("key", tmp_path / "cache", counting(calls))(index, None, view).logits for view in (0, 1, 0, 1)
    ]
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
    assert torch.isfinite(CachedTeacher("key", tmp_path, lambda view: huge)(torch.tensor([0]), None, 0).logits).all()


def test_a_live_teacher_gives_no_gradient() -> None:
    weight = torch.ones(3, requires_grad=True)
    live = LiveTeacher(lambda batch: Answers(batch * weight))
    logits = live(torch.arange(2), torch.ones(2, 3), 0).logits
    assert not logits.requires_grad


def test_what_is_too_large_for_the_cache_is_asked_live(
    tiny_task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3))
    options = {"key": "k", "folder": tmp_path, "device": torch.device("cpu")}
    assert isinstance(teacher_for(model, tiny_task, views=1, **options), CachedTeacher)
    assert isinstance(teacher_for(model, tiny_task, views=0, **options), LiveTeacher)
    assert model.training
    assert fits_cache(tiny_task, 8)
    monkeypatch.setattr(teachers, "CACHE_LIMIT_BYTES", 100)
    assert isinstance(teacher_for(model, tiny_task, views=8, **options), LiveTeacher)


def test_tapped_features_come_from_the_teacher_itself(tiny_task: Task, tmp_path: Path) -> None:
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 5), torch.nn.Linear(5, 3))
    options = {"key": "k", "folder": tmp_path, "device": torch.device("cpu")}
    teacher = teacher_for(model, tiny_task, views=1, taps=(Tap("elsewhere", "1"),), **options)
    index = torch.arange(4)
    batch = tiny_task.data["train"].fetch(index, 0)
    answers = teacher(index, batch, 0)
    torch.testing.assert_close(model[2](answers.tapped[0]), answers.logits)
    assert not answers.tapped[0].requires_grad
    assert not list(tmp_path.iterdir())


def logits(seed: int) -> Array:
    return np.random.default_rng(seed).normal(size=(6, 3)).astype(np.float32)


def test_stored_logits_answer_for_their_samples(tmp_path: Path) -> None:
    np.save(tmp_path / "logits.npy", logits(0))
    np.savez(tmp_path / "logits.npz", logits=logits(0).astype(np.float16))
    index = torch.tensor([4, 0])
    exact, halves = (StoredTeacher.read(tmp_path / name, 6, 3)(index, None, 7) for name in ("logits.npy", "logits.npz"))
    assert torch.equal(exact.logits, torch.from_numpy(logits(0))[index])
    torch.testing.assert_close(halves.logits, exact.logits, rtol=2**-10, atol=1e-6)
    assert halves.logits.dtype == torch.float32


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (logits(0)[:5], r"holds \[5, 3\], must be logits \[6, 3\]"),
        (np.full((6, 3), np.nan), "finite"),
        (np.full((6, 3), "a"), "finite"),
        (np.full((6, 3), None, object), "numpy.save"),
        (None, "numpy.save"),
    ],
)
def test_a_file_of_other_answers_is_refused(tmp_path: Path, content: Any, message: str) -> None:
    path = tmp_path / "logits.npy"
    if content is not None:
        np.save(path, content, allow_pickle=True)
    with pytest.raises(UserError, match=message):
        StoredTeacher.read(path, 6, 3)


def test_several_teachers_answer_with_their_mean() -> None:
    members, index = [StoredTeacher(logits(seed)) for seed in (0, 1)], torch.tensor([2, 5])
    one, other = (torch.from_numpy(logits(seed))[index] for seed in (0, 1))
    mean = MeanTeacher(members)(index, None, 0).logits.softmax(1)
    torch.testing.assert_close(mean, (one.softmax(1) + other.softmax(1)) / 2)
    torch.testing.assert_close(MeanTeacher(members, "logits")(index, None, 0).logits, (one + other) / 2)
    with pytest.raises(UserError, match="at least one"):
        MeanTeacher([])
