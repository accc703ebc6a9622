"""Tasks: data, metrics, loss, and the ways in and out of a model.

``load_task`` is the door; ``Task`` in ``base`` is what everything else relies on. Importing this brings no torch, so
that a config can be read without it.
"""

from __future__ import annotations

import importlib
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from distill.errors import UserError
from distill.tasks.settings import DataSettings
from distill.wording import did_you_mean

if TYPE_CHECKING:
    from distill.tasks.base import Task
    from distill.types import Progress


class Loader(Protocol):
    """Makes a task of settings; ``folder`` is where relative paths start."""

    def __call__(self, settings: DataSettings, *, seed: int, folder: Path, progress: Progress | None = None) -> Task:
        """Read the data."""
        ...


def _later(module: str, function: str) -> Loader:
    def load(settings: DataSettings, *, seed: int, folder: Path, progress: Progress | None = None) -> Task:
        loader: Loader = getattr(importlib.import_module(f"distill.tasks.{module}"), function)
        return loader(settings, seed=seed, folder=folder, progress=progress)

    return load


TASKS: dict[str, Loader] = {
    "digits": _later("image_sets", "load_digits"),
    "breast-cancer": _later("tabular", "load_breast_cancer"),
    "fashion-mnist": _later("image_sets", "load_fashion_mnist"),
    "cifar10": _later("image_sets", "load_cifar10"),
    "csv": _later("tabular", "load_csv"),
    "imagefolder": _later("image_folder", "load_image_folder"),
}


def load_task(
    settings: DataSettings, *, seed: int, folder: Path | None = None, progress: Progress | None = None
) -> Task:
    """Read the data that ``settings.source`` names and return their task.

    ``seed`` decides every split of ours and every augmentation; ``folder`` is where relative paths and file
    references start (default: the current folder). ``progress`` is called with (what, done, total).

    Raises:
        UserError: no such source, or the data are missing or wrong.
    """
    source = settings.source
    if source is None:
        raise UserError(f"data.source is missing; give {', '.join(TASKS)}, or a function of yours: ./file.py:function")
    metric = settings.metric if ":" in (settings.metric or "") else None
    if metric is not None:
        settings = replace(settings, metric=None)
    custom = _later("custom", "load_custom")
    loader = custom if ":" in source else TASKS.get(source)
    if loader is None:
        raise UserError(
            f"data.source={source!r}: no such data{did_you_mean(source, TASKS)} "
            "(a function of yours is written ./file.py:function)"
        )
    folder = folder or Path.cwd()
    task = loader(settings, seed=seed, folder=folder, progress=progress)
    if metric is None:
        return task
    from distill.tasks.scored import scored

    return scored(task, metric, folder)


__all__ = ["TASKS", "DataSettings", "Loader", "load_task"]
