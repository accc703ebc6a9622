"""Classification of rows: scikit-learn's breast-cancer data and CSV files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from distill.errors import UserError
from distill.export import FeaturesPreprocess, Preprocess
from distill.references.digest import Digest
from distill.tasks import metrics as measure
from distill.tasks.base import SPLITS, Data, Inputs, OpenAxes, Task
from distill.tasks.columns import class_numbers, fit_columns, named_cells
from distill.tasks.outputs import checked_logits, cross_entropy, plain_logits
from distill.tasks.settings import DataSettings
from distill.tasks.splits import by_group, check_splits, part_size, split_named, stratified, unused_shares
from distill.tasks.table import Table, read_table
from distill.types import Feed, Progress

Numbers = NDArray[np.int64]
RowBatch = tuple[Tensor, Tensor, Tensor]
"""Features float32 [B, F], class numbers int64 [B], row numbers int64 [B] in the whole table."""

_FEWEST_ROWS = 3
_MANY_CLASSES = 20
_TAKEN = frozenset({"logits", "atol", "rtol", "file", "allow_pickle"})
"""Names that the shipped file's output and its vectors.npz need for themselves."""


@dataclass(frozen=True)
class RowData:
    """One split: ``rows`` of the whole table."""

    features: Tensor
    targets: Tensor
    rows: Tensor

    def __len__(self) -> int:
        """Count the rows."""
        return len(self.rows)

    def fetch(self, index: Tensor, view: int | None) -> RowBatch:
        """Return (float32 [B, F], int64 [B], int64 [B]) of the rows ``index``; rows are not augmented by any view."""
        rows = self.rows[index.cpu()]
        return self.features[rows], self.targets[rows], rows


class TabularTask:
    """Rows in, class out. The model sees what ``graph_preprocess`` makes of the raw columns, float32 [B, F]."""

    kind = "tabular"

    def __init__(
        self,
        name: str,
        raw: Mapping[str, NDArray[Any]],
        target: Numbers,
        rows: Mapping[str, Numbers],
        labels: Sequence[str],
        preprocess: Preprocess,
        *,
        metric: str | None = None,
        positive: str | None = None,
        given_splits: Sequence[str] = (),
        warnings: Sequence[str] = (),
    ) -> None:
        self.name = name
        self.labels = tuple(labels)
        self.given_splits = tuple(given_splits)
        self.graph_preprocess: Preprocess | None = preprocess
        self.module_preprocess: nn.Module | None = None
        self.open_axes: OpenAxes = ()
        self.warnings = tuple(warnings)
        self._raw = dict(raw)
        features = torch.from_numpy(np.ascontiguousarray(preprocess.apply(self._raw), np.float32))
        self.facts: dict[str, Any] = {"classes": len(labels), "features": features.shape[1]}
        self._positive = measure.positive_number(positive, labels)
        self.metric = measure.chosen_metric(metric, ("accuracy", "auroc", "f1"))
        targets = torch.from_numpy(target)
        self._splits = {split: RowData(features, targets, torch.from_numpy(rows[split])) for split in SPLITS}
        self.data: dict[str, Data] = dict(self._splits)
        self._fingerprint: str | None = None

    def inputs(self, batch: RowBatch) -> Inputs:
        """Return one positional tensor, float32 [B, F]."""
        return (batch[0],), {}

    def target(self, batch: RowBatch) -> Tensor:
        """Return the class numbers, int64 [B]."""
        return batch[1]

    def logits(self, output: Any) -> Tensor:
        """Return the logits, [B, classes]; UserError if the model returned something else."""
        return checked_logits(plain_logits(output), len(self.labels))

    def loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the mean cross entropy."""
        return cross_entropy(logits, target)

    def metrics(self, logits: NDArray[Any], target: NDArray[Any]) -> dict[str, float]:
        """Return accuracy, auroc (macro one-vs-rest beyond two classes) and f1 (macro beyond two classes).

        auroc is NaN where the targets hold one class only.
        """
        return {
            "accuracy": measure.accuracy(logits, target),
            "auroc": measure.auroc(logits, target, positive=self._positive),
            "f1": measure.f1(logits, target, positive=self._positive),
        }

    def raw(self, batch: RowBatch) -> Feed:
        """Return the rows as they were before any preprocessing: one array an input of the shipped file."""
        rows = batch[2].cpu().numpy()
        taken = {name: column[rows] for name, column in self._raw.items()}
        return {name: column.astype(str) if column.dtype == object else column for name, column in taken.items()}

    def fingerprint(self) -> str:
        """Return a hash of the features after preprocessing, the raw columns, the classes and the split."""
        if self._fingerprint is None:
            train = self._splits["train"]
            digest = Digest().add([self.labels, self.metric, self._positive]).add(self._raw)
            digest.add(train.features).add(train.targets)
            for split in SPLITS:
                digest.add(split).add(self._splits[split].rows)
            self._fingerprint = digest.hexdigest()
        return self._fingerprint


def load_breast_cancer(settings: DataSettings, *, seed: int, folder: Path, progress: Progress | None = None) -> Task:
    """Return scikit-learn's embedded Breast Cancer Wisconsin data: 569 rows of 30 features, malignant or benign."""
    from sklearn.datasets import load_breast_cancer as embedded

    held = embedded()
    features, target = held.data.astype(np.float32), held.target.astype(np.int64)
    labels = tuple(str(name) for name in held.target_names)
    rows, _ = _split({"train": np.arange(len(target))}, target, None, settings, seed)
    warnings = check_splits({split: target[rows[split]] for split in SPLITS}, labels, given=(), what="breast-cancer")
    train = features[rows["train"]].astype(np.float64)
    mean, deviation = train.mean(0), train.std(0)
    preprocess = FeaturesPreprocess(tuple(mean.tolist()), tuple(mean.tolist()), tuple((1 / deviation).tolist()))
    return TabularTask(
        "breast-cancer",
        {"features": features},
        target,
        rows,
        labels,
        preprocess,
        metric=settings.metric,
        positive=settings.positive or "malignant",
        warnings=warnings,
    )


def load_csv(settings: DataSettings, *, seed: int, folder: Path, progress: Progress | None = None) -> Task:
    """Return the task of a CSV file, or of a folder with train.csv and perhaps validation.csv and test.csv.

    Raises:
        UserError: a file, a column or a value is missing or wrong; the message names the line or the column.
    """
    assert settings.path is not None
    assert settings.target is not None
    table = read_table(folder / settings.path.expanduser())
    warnings: list[str] = []
    labels, target = class_numbers(table, settings, warnings)
    for field in ("drop", "categorical", "numeric"):
        for name in getattr(settings, field):
            table.column(name, f"data.{field}")
    groups = None
    if settings.group is not None:
        groups = named_cells(table, settings.group, "data.group", "group", settings, warnings)
    given = _given_rows(table, settings)
    if len(given) == 1 and groups is None:
        _check_counts(settings.target, labels, target)
    rows, split_warnings = _split(given, target, groups, settings, seed)
    came_with = tuple(given) if len(given) > 1 else ()
    targets = {split: target[rows[split]] for split in SPLITS}
    warnings += [*split_warnings, *check_splits(targets, labels, given=came_with, what="csv")]
    apart = {settings.target, settings.group, settings.split, *settings.drop}
    names = [name for name in table.columns if name not in apart]
    for name in names:
        if name in _TAKEN:
            raise UserError(
                f"column {name!r}: the shipped file's output has this name, or its vectors.npz; rename the column"
            )
    fitted = fit_columns(table, names, rows["train"], settings)
    return TabularTask(
        "csv",
        fitted.raw,
        target,
        rows,
        labels,
        fitted.preprocess,
        metric=settings.metric,
        positive=settings.positive,
        given_splits=came_with,
        warnings=[*warnings, *fitted.warnings],
    )


def _given_rows(table: Table, settings: DataSettings) -> dict[str, Numbers]:
    """Return the rows of each split that the data came with; of all in train if they came without."""
    if settings.split is None:
        parts = table.parts or {"train": range(len(table))}
        return {split: np.asarray(rows, np.int64) for split, rows in parts.items()}
    if table.parts:
        raise UserError(f"data.split={settings.split!r}: the folder's files already say which split a row is in")
    rows: dict[str, list[int]] = {}
    for row, cell in enumerate(table.column(settings.split, "data.split")):
        split = split_named(cell)
        if split is None:
            raise UserError(
                f"{table.where(row)}: column {settings.split!r} is {cell!r}; expected train, validation or test"
            )
        rows.setdefault(split, []).append(row)
    if "train" not in rows:
        raise UserError(f"data.split={settings.split!r}: no row says train")
    return {split: np.asarray(rows[split], np.int64) for split in SPLITS if split in rows}


def _split(
    given: Mapping[str, Numbers],
    target: Numbers,
    groups: Sequence[str] | None,
    settings: DataSettings,
    seed: int,
) -> tuple[dict[str, Numbers], list[str]]:
    """Cut the splits that the data lack off train; return every split's rows, and warnings."""
    shares = {"test": (settings.test, 0.2), "validation": (settings.validation, 0.1)}
    warnings = unused_shares(given, settings)
    missing = [split for split in ("test", "validation") if split not in given]
    if len(given) > 1:
        warnings += [f"the data have no {split} split: it is cut off train by seed" for split in missing]
    pool = given["train"]
    members: list[str] = []
    if groups is not None:
        _check_groups(given, groups)
        members = [groups[row] for row in pool]
        count = len(set(members))
        if count <= len(missing):
            raise UserError(f"data.group={settings.group!r}: {count} group(s) cannot fill {len(missing) + 1} splits")
    sizes = [part_size(len(pool), *shares[split]) for split in missing]
    parts = stratified(target[pool], sizes, seed) if groups is None else by_group(members, sizes, seed)
    cut = {split: pool[part] for split, part in zip([*missing, "train"], parts, strict=True)}
    return {**given, **cut}, warnings


def _check_groups(given: Mapping[str, Numbers], groups: Sequence[str]) -> None:
    home: dict[str, str] = {}
    for split, rows in given.items():
        for group in sorted({groups[row] for row in rows}):
            if home.setdefault(group, split) != split:
                raise UserError(f"data.group: the group {group!r} lies in {home[group]} and in {split}; keep it in one")


def _check_counts(name: str, labels: Sequence[str], target: Numbers) -> None:
    """Refuse a class too small to be in every split."""
    counts = np.bincount(target, minlength=len(labels))
    few = np.flatnonzero(counts < _FEWEST_ROWS)
    if len(few):
        hint = ""
        if len(labels) > _MANY_CLASSES:
            hint = f". The column has {len(labels)} different values: only classes can be learnt, not quantities"
        count = int(counts[few[0]])
        raise UserError(
            f"data.target={name!r}: class {labels[few[0]]!r} has {count} row{'s' if count > 1 else ''}, fewer than "
            f"{_FEWEST_ROWS}; add rows or remove the class{hint}"
        )
