"""A run that touches every stage in seconds: two batches a split, one epoch, the shortest timing."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

from torch import Tensor

from distill.config.loading import RunConfig
from distill.tasks.base import Batch, Data, Task


def smoke_config(config: RunConfig) -> RunConfig:
    """Return the configuration with everything long made short."""
    changes: dict[str, Any] = {"teacher": dataclasses.replace(config.teacher, epochs=1)}
    if config.distill:
        changes["distill"] = dataclasses.replace(config.distill, epochs=1, views=min(1, config.distill.views))
    if config.prune:
        changes["prune"] = dataclasses.replace(config.prune, epochs=min(1, config.prune.epochs), batches=2)
    if config.benchmark:
        changes["benchmark"] = dataclasses.replace(config.benchmark, session_pairs=2, seconds_per_pair=0.2)
    changes["search"] = dataclasses.replace(config.search, trials=min(2, config.search.trials))
    return dataclasses.replace(config, **changes)


class First:
    """The first samples of a split."""

    def __init__(self, data: Data, count: int) -> None:
        self._data, self._count = data, min(count, len(data))

    def __len__(self) -> int:
        return self._count

    def fetch(self, index: Tensor, view: int | None) -> Batch:
        """Collate the samples ``index`` (int64 [B])."""
        return self._data.fetch(index, view)


def with_data(task: Task, data: dict[str, Data]) -> Task:
    """Return the task with other samples; the one that came in keeps its own."""
    other = copy.copy(task)
    other.data = data
    return other


def smoke_task(task: Task, config: RunConfig) -> Task:
    """Return the task with every split cut to two batches."""
    size = max(config.teacher.batch_size, config.distill.batch_size if config.distill else 1)
    return with_data(task, {name: First(data, 2 * min(size, 64)) for name, data in task.data.items()})
