"""Who answers for the teacher: a cache, the model itself, a file of answers, or several teachers together.

Each is called as ``training.lesson.Teacher`` says, and a new one is one class. A cached logit is true for the identical
view only, so the cache's key holds everything that the logits depend on but the view's number, which names the file.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from distill.benchmarks.parse import DAMAGED_ARRAYS, member
from distill.errors import UserError
from distill.sealed_files import Tell, sealed_array
from distill.state_dicts import twin
from distill.tasks.base import Batch, Task
from distill.training.forward import predict
from distill.training.lesson import Teacher
from distill.training.taps import Answers, Tap, answer
from distill.types import Array

CACHE_LIMIT_BYTES = 2 * 2**30


def _quiet(text: str) -> None:
    """Say nothing."""


class CachedTeacher:
    """A teacher whose logits are computed once for each view and kept as fp16 beside the run.

    Args:
        key: hash of everything that the logits depend on: teacher, data, preprocessing, seed.
        folder: where the files lie; one a view.
        compute: view -> float32 logits [N, C].
        tell: hears of a file that is not what was written, whose logits are computed again.
    """

    def __init__(self, key: str, folder: Path, compute: Callable[[int], Array], tell: Tell = _quiet) -> None:
        self._key, self._folder, self._compute, self._tell = key, folder, compute, tell
        self._views: dict[int, Tensor] = {}

    def __call__(self, index: Tensor, batch: Batch, view: int) -> Answers:
        """Return the logits of samples by their numbers; the batch is not looked at."""
        if view not in self._views:
            self._views[view] = self._load(view)
        return Answers(self._views[view][index].float())

    def _load(self, view: int) -> Tensor:
        def halves() -> Array:
            # Half precision is about 3 decimal digits of a logit: far below what the temperature lets through.
            return np.clip(self._compute(view), -65000, 65000).astype(np.float16)

        path = self._folder / f"logits-{self._key}-{view}.safetensors"
        return torch.from_numpy(sealed_array(path, halves, self._tell))


class LiveTeacher:
    """A teacher that answers for every batch as it comes: for what is tapped, or too large to cache."""

    def __init__(self, call: Callable[[Batch], Answers]) -> None:
        self._call = call

    def __call__(self, index: Tensor, batch: Batch, view: int) -> Answers:
        """Return the answers for the batch, without gradients."""
        with torch.no_grad():
            return self._call(batch)


class StoredTeacher:
    """A teacher of whom only the logits are left, one row a training sample; they hold for every view of it.

    Args:
        logits: [N, C], in the training split's order.
    """

    def __init__(self, logits: Array) -> None:
        self._logits = torch.from_numpy(logits)

    def __call__(self, index: Tensor, batch: Batch, view: int) -> Answers:
        """Return the logits of samples by their numbers."""
        return Answers(self._logits[index].float())

    @classmethod
    def read(cls, path: Path, samples: int, classes: int) -> StoredTeacher:
        """Read the logits from an .npy file, or from `logits` in an .npz file.

        Raises:
            UserError: the file cannot be read, or holds something else than finite numbers [samples, classes].
        """
        if path.exists() and not path.is_file():  # a pipe would be waited for
            raise UserError(f"{path}: is no regular file; write the logits with numpy.save")
        try:
            with path.open("rb") as file:
                content = np.load(file, allow_pickle=False)
                logits = content if isinstance(content, np.ndarray) else member(content, "logits")
        except (OSError, *DAMAGED_ARRAYS) as error:
            raise UserError(f"{path}: no logits can be read ({error}); write them with numpy.save") from error
        if logits.shape != (samples, classes):
            raise UserError(
                f"{path}: holds {list(logits.shape)}, must be logits [{samples}, {classes}]: a row for each training "
                "sample, in order, and a column for each class"
            )
        if logits.dtype.kind not in "fiu" or not np.isfinite(logits).all():
            raise UserError(f"{path}: not all logits are finite numbers; write those of a teacher that answers")
        return cls(logits)


class MeanTeacher:
    """Several teachers who answer as one, with the mean of their probabilities or of their logits."""

    def __init__(self, members: Sequence[Teacher], mean: Literal["probabilities", "logits"] = "probabilities") -> None:
        if not members:
            raise UserError("a teacher of several members has none; name at least one")
        self._members, self._mean = members, mean

    def __call__(self, index: Tensor, batch: Batch, view: int) -> Answers:
        """Return the mean's logits; what single members have inside is not tapped."""
        logits = torch.stack([member(index, batch, view).logits for member in self._members])
        if self._mean == "logits":
            return Answers(logits.mean(0))
        return Answers(logits.log_softmax(2).logsumexp(0) - np.log(len(self._members)))


def fits_cache(task: Task, views: int) -> bool:
    """Tell whether the logits of ``views`` views fit the cache."""
    return views > 0 and len(task.data["train"]) * len(task.labels) * 2 * views <= CACHE_LIMIT_BYTES


def teacher_for(
    teacher: nn.Module,
    task: Task,
    *,
    views: int,
    key: str,
    folder: Path,
    device: torch.device,
    taps: Sequence[Tap] = (),
    tell: Tell = _quiet,
) -> CachedTeacher | LiveTeacher:
    """Return a cached teacher where logits are enough and the cache holds them, a live one elsewhere."""
    if fits_cache(task, views) and not taps:
        train = task.data["train"]
        return CachedTeacher(key, folder, lambda view: predict(teacher, task, train, device, view=view)[0], tell)
    teacher, places = twin(teacher).to(device).eval(), [(tap.teacher, tap.part) for tap in taps]
    return LiveTeacher(lambda batch: answer(teacher, task, batch, device, places, title="the teacher"))
