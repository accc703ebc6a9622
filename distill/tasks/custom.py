"""Classification of the user's own data, by way of a function that makes them."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from distill.errors import UserError
from distill.export.preprocess import Preprocess
from distill.references.digest import Digest
from distill.references.functions import call_user, load_reference, source_hash
from distill.references.objects import PREFIX
from distill.tasks import metrics as measure
from distill.tasks.augment import hash_words
from distill.tasks.base import SPLITS, Batch, Data, Facts, OpenAxes, Task
from distill.tasks.custom_data import (
    ArrayData,
    CheckedData,
    ItemData,
    as_data,
    naming,
    restored_random_state,
    seed_all,
    spread,
    to_single,
)
from distill.tasks.dynamic_axes import seen_axes, stated_axes
from distill.tasks.hooks import Hooks
from distill.tasks.settings import CustomSettings
from distill.tasks.splits import Rows, check_sizes, cut_off_train, missing_splits, unused_shares
from distill.types import Feed, Progress

_AT_ONCE = 256  # samples
_SAMPLES_LOOKED_AT = 64
_SAMPLES_COMPARED = 16  # one by one, to see whether they differ in length

Split = ArrayData | ItemData


class CustomTask:
    """The user's data and whatever hooks they define: ``inputs``, ``target``, ``logits``, ``loss``, ``metrics``."""

    kind = "custom"

    def __init__(
        self,
        name: str,
        hooks: Hooks,
        data: Mapping[str, Split],
        *,
        metric: str | None = None,
        given_splits: Sequence[str] = (),
        warnings: Sequence[str] = (),
        identity: str = "",
    ) -> None:
        self.name = name
        self.labels = hooks.labels
        self.given_splits = tuple(given_splits)
        self.warnings = tuple(warnings)
        self.graph_preprocess: Preprocess | None = None
        self.module_preprocess: nn.Module | None = hooks.preprocess
        self._hooks = hooks
        self._identity = identity
        self._splits = dict(data)
        self._fingerprint: str | None = None
        self.inputs, self.target, self.logits = hooks.inputs, hooks.target, hooks.logits
        self.loss, self.metrics = hooks.loss, hooks.metrics
        self.data: dict[str, Data] = {split: CheckedData(samples, split, hooks) for split, samples in data.items()}
        self._look_at_samples()
        self.facts = self._facts()
        self.open_axes = self._open_axes()
        self.metric = measure.chosen_metric(metric or hooks.get("metric"), self._metric_names())

    def raw(self, batch: Batch) -> Feed | None:
        """Return None: the shipped file is fed with what ``inputs`` returns."""
        return None

    def fingerprint(self) -> str:
        """Return a hash of the user's sources and arguments, and of the data: arrays whole, else 64 samples a split."""
        if self._fingerprint is None:
            digest = Digest().add([self._identity, self.labels, self.metric])
            for split in SPLITS:
                data = self._splits[split]
                digest.add([split, len(data)]).add(data.rows)
                if isinstance(data, ArrayData):
                    digest.add(data.arrays)
                    continue
                batch = data.fetch(spread(len(data), _SAMPLES_LOOKED_AT), None)
                digest.add(data.seed).add(self.inputs(batch)).add(self.target(batch))
            self._fingerprint = digest.hexdigest()
        return self._fingerprint

    def _look_at_samples(self) -> None:
        """Look before anything is trained: at all samples in arrays, else at some of each split."""
        for split, data in self.data.items():
            count = len(data)
            whole = isinstance(self._splits[split], ArrayData)
            for piece in torch.split(torch.arange(count), _AT_ONCE) if whole else [spread(count, _SAMPLES_LOOKED_AT)]:
                data.fetch(piece, None)

    def _facts(self) -> Facts:
        facts: dict[str, Any] = {"classes": len(self.labels)}
        args, kwargs = self.inputs(self._splits["train"].fetch(torch.arange(2), None))
        shape: tuple[int, ...] = tuple(args[0].shape) if len(args) == 1 and not kwargs else ()
        if len(shape) == 2:
            facts["features"] = shape[1]
        elif len(shape) == 4:
            facts["channels"] = shape[1]
            if shape[2] == shape[3]:
                facts["image_size"] = shape[2]
        return {**facts, **self._hooks.facts()}

    def _open_axes(self) -> OpenAxes:
        """Return the axes that the user calls open, or those whose length differs among some samples."""
        train, stated = self._splits["train"], self._hooks.get("open_axes")
        if stated is not None:
            return stated_axes(stated, self._hooks.source, self.inputs(train.fetch(torch.arange(2), None)))
        if isinstance(train, ArrayData):
            return ()
        places = spread(len(train), _SAMPLES_COMPARED)
        return seen_axes(self.inputs(train.fetch(place.reshape(1), None)) for place in places)

    def _metric_names(self) -> list[str]:
        """Call the metrics once, on perfect answers, so that a mistake in them shows before training."""
        target = np.tile(np.arange(len(self.labels)), 4)
        names = list(self.metrics(10 * np.eye(len(self.labels), dtype=np.float32)[target], target))
        if not names:
            raise UserError("metrics returned no metric; return a dict such as {'accuracy': 0.9}")
        return names


def load_custom(
    settings: CustomSettings, *, seed: int, folder: Path | None = None, progress: Progress | None = None
) -> Task:
    """Return the task that the user's function ``data.source`` makes, called with ``data.args``.

    Raises:
        UserError: the function is missing or raises, or what it returns is no data.
    """
    hooks = _call(settings, seed, folder)
    splits, warnings = _read_splits(hooks, seed)
    own = tuple(splits)
    target: Rows | None = None
    missing = missing_splits(splits)
    train = splits["train"]
    if not hooks.labels or (missing and isinstance(train, ArrayData)):
        target = _targets(train, hooks, progress)
        hooks.labels = hooks.labels or _numbered(target)
    warnings += unused_shares(splits, settings)
    if missing:
        warnings.append(f"the data have no {' and no '.join(missing)} split: cut off train by seed")
        parts = cut_off_train(len(train), missing, settings, seed, target=target)
        splits |= {split: replace(train, rows=train.rows[torch.from_numpy(rows)]) for split, rows in parts.items()}
    check_sizes({split: len(data) for split, data in splits.items()}, own=own, source=hooks.source)
    return CustomTask(
        _name(hooks.source),
        hooks,
        {split: splits[split] for split in SPLITS},
        metric=settings.metric,
        given_splits=own if len(own) > 1 else (),
        warnings=warnings,
        identity=Digest().add([source_hash(hooks.source, folder=folder), settings.args]).hexdigest(),
    )


def _call(settings: CustomSettings, seed: int, folder: Path | None) -> Hooks:
    """Call the user's function."""
    function = load_reference(settings.source, field="data.source", folder=folder)
    try:
        inspect.signature(function).bind(**settings.args)
    except TypeError as error:
        raise UserError(f"data.args={settings.args}: {settings.source} does not take them: {error}") from None
    except ValueError:
        pass  # a function without a signature of its own, such as a built-in: calling it will tell
    with restored_random_state():
        # Data that are drawn at random are the same in every process of a run.
        seed_all(hash_words(seed))
        return Hooks(call_user(function, f"data.source={settings.source!r}", **settings.args), settings.source)


def _read_splits(hooks: Hooks, seed: int) -> tuple[dict[str, Split], list[str]]:
    splits: dict[str, Split] = {}
    warnings = []
    for split in SPLITS:
        value = hooks.get(split)
        if value is None:
            continue
        if isinstance(value, torch.utils.data.DataLoader):
            warnings.append(
                f"the {split} DataLoader: its data set and collate_fn are used, batch size and order are not"
            )
        data: Split = as_data(value, f"{hooks.source}: {split}", hooks.get("collate"), seed)
        if isinstance(data, ArrayData):
            data, narrowed = to_single(data)
            if narrowed:
                warnings.append(f"the {split} data hold float64; the model is given float32")
        splits[split] = data
    return splits, warnings


def _targets(data: Split, hooks: Hooks, progress: Progress | None) -> Rows:
    """Return the targets of every training sample, int64 [N]."""
    parts = []
    for index in torch.split(torch.arange(len(data)), _AT_ONCE):
        parts.append(hooks.target(data.fetch(index, None), naming("train", index)))
        if progress is not None:
            progress("read targets", int(index[-1]) + 1, len(data))
    targets: Rows = torch.cat(parts).numpy()
    if len(targets) != len(data):
        raise UserError(f"{hooks.source}: {len(data)} samples of train have {len(targets)} targets")
    return targets


def _numbered(targets: Rows) -> tuple[str, ...]:
    classes = int(targets.max()) + 1
    if classes < 2:
        raise UserError("every target of the train data is 0; a classifier needs at least two classes")
    if classes > len(targets):
        raise UserError(
            f"the largest target of the train data is {classes - 1}, of {len(targets)} samples: labels out of range; "
            "number the classes from 0, or give `labels`"
        )
    return tuple(str(number) for number in range(classes))


def _name(source: str) -> str:
    """Return a name for folders: the file's or module's last part."""
    place, _, last = source.rpartition(":")
    if source.startswith(PREFIX):
        return last.rpartition("-")[0]
    last = Path(place).stem if place.endswith(".py") else place.rpartition(".")[2]
    return re.sub(r"[^A-Za-z0-9_-]+", "-", last) or "custom"
