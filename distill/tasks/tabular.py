"""Classification of rows: scikit-learn's breast-cancer data and CSV files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from distill.errors import UserError
from distill.export import FeaturesPreprocess, Preprocess
from distill.files import at_home
from distill.references.digest import Digest
from distill.tasks.base import SPLITS, Facts, Inputs, Task
from distill.tasks.classifier import Classifier
from distill.tasks.columns import class_numbers, fit_columns, named_cells
from distill.tasks.custom_data import ArrayData
from distill.tasks.settings import BreastCancerSettings, CsvSettings, DataSettings
from distill.tasks.splits import Rows, check_splits, cut_off_train, missing_splits, split_named, unused_shares
from distill.tasks.table_file import Table, read_table
from distill.types import Array, Feed, Progress

RowBatch = tuple[Tensor, Tensor, Tensor]
"""Features float32 [B, F], class numbers int64 [B], row numbers int64 [B] in the whole table; no augmentation."""

_FEWEST_ROWS = 3
_MANY_CLASSES = 20
_RESERVED = frozenset({"logits", "atol", "rtol", "file", "allow_pickle"})
"""Names that the shipped file's output and its vectors.npz need for themselves."""


@dataclass(frozen=True)
class RowData(ArrayData):
    """One split of a table: ``arrays`` is a batch of all rows, ``raw`` their cells before any preprocessing."""

    arrays: RowBatch
    raw: Mapping[str, Array]


class TabularTask(Classifier[RowData, Preprocess]):
    """Rows in, class out. The model sees what ``graph_preprocess`` makes of the raw columns, float32 [B, F]."""

    kind = "tabular"
    available = ("accuracy", "auroc", "f1")

    def inputs(self, batch: RowBatch) -> Inputs:
        """Return one positional tensor, float32 [B, F]."""
        return (batch[0],), {}

    def raw(self, batch: RowBatch) -> Feed:
        """Return the rows as they were before any preprocessing: one array an input of the shipped file."""
        rows = batch[2].cpu().numpy()
        return {name: column[rows] for name, column in self._splits["train"].raw.items()}

    def _hash(self, digest: Digest) -> Digest:
        train = self._splits["train"]
        features, targets, _ = train.arrays
        digest.add(train.raw).add(features).add(targets)
        for split in SPLITS:
            digest.add(split).add(self._splits[split].rows)
        return digest


def load_breast_cancer(
    settings: BreastCancerSettings, *, seed: int, folder: Path, progress: Progress | None = None
) -> Task:
    """Return scikit-learn's embedded Breast Cancer Wisconsin data: 569 rows of 30 features, malignant or benign."""
    from sklearn.datasets import load_breast_cancer as embedded

    samples = embedded()
    features, target = samples.data.astype(np.float32), samples.target.astype(np.int64)
    labels = tuple(str(name) for name in samples.target_names)
    rows, _ = _split({"train": np.arange(len(target))}, target, None, settings, seed)
    targets = {split: target[rows[split]] for split in SPLITS}
    warnings = check_splits(targets, labels, own=(), source="breast-cancer")
    train = features[rows["train"]].astype(np.float64)
    mean, deviation = train.mean(0), train.std(0)
    preprocess = FeaturesPreprocess(tuple(mean.tolist()), tuple(mean.tolist()), tuple((1 / deviation).tolist()))
    settings = replace(settings, positive=settings.positive or "malignant")
    data, facts = _data({"features": features}, target, rows, preprocess)
    return TabularTask("breast-cancer", data, labels, preprocess, facts, settings, warnings=warnings)


def load_csv(settings: CsvSettings, *, seed: int, folder: Path, progress: Progress | None = None) -> Task:
    """Return the task of a CSV file, or of a folder with train.csv and perhaps validation.csv and test.csv.

    Raises:
        UserError: a file, a column or a value is missing or wrong; the message names the line or the column.
    """
    table = read_table(folder / at_home(settings.path))
    warnings: list[str] = []
    labels, target = class_numbers(table, settings, warnings)
    for field in ("drop", "categorical", "numeric"):
        for name in getattr(settings, field):
            table.column(name, f"data.{field}")
    groups = None
    if settings.group is not None:
        groups = named_cells(table, settings.group, "data.group", "group", settings, warnings)
    own_rows = _own_rows(table, settings)
    if len(own_rows) == 1 and groups is None:
        _check_counts(settings.target, labels, target)
    rows, split_warnings = _split(own_rows, target, groups, settings, seed)
    targets = {split: target[rows[split]] for split in SPLITS}
    warnings += [*split_warnings, *check_splits(targets, labels, own=own_rows, source="csv")]
    raw, preprocess = fit_columns(table, _input_names(table, settings), rows["train"], settings, warnings, target)
    data, facts = _data(raw, target, rows, preprocess)
    return TabularTask("csv", data, labels, preprocess, facts, settings, own=own_rows, warnings=warnings)


def _data(
    raw: Mapping[str, Array], target: Rows, rows: Mapping[str, Rows], preprocess: Preprocess
) -> tuple[dict[str, RowData], Facts]:
    features = torch.from_numpy(np.ascontiguousarray(preprocess.apply(dict(raw)), np.float32))
    arrays = (features, torch.from_numpy(target), torch.arange(len(target)))
    data = {split: RowData(arrays, torch.from_numpy(rows[split]), raw) for split in SPLITS}
    return data, {"features": features.shape[1]}


def _input_names(table: Table, settings: CsvSettings) -> list[str]:
    """Return the columns that the model is fed with."""
    others = {settings.target, settings.group, settings.split, *settings.drop}
    names = [name for name in table.columns if name not in others]
    for name in names:
        if name in _RESERVED:
            raise UserError(
                f"column {name!r}: the shipped file's output has this name, or its vectors.npz; rename the column"
            )
    return names


def _own_rows(table: Table, settings: CsvSettings) -> dict[str, Rows]:
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
    own_rows: Mapping[str, Rows],
    target: Rows,
    groups: Sequence[str] | None,
    settings: DataSettings,
    seed: int,
) -> tuple[dict[str, Rows], list[str]]:
    """Cut the splits that the data lack off train; return every split's rows, and warnings."""
    warnings = unused_shares(own_rows, settings)
    missing = missing_splits(own_rows)
    if len(own_rows) > 1:
        warnings += [f"the data have no {split} split: it is cut off train by seed" for split in missing]
    train = own_rows["train"]
    members: list[str] | None = None
    if groups is not None:
        _check_groups(own_rows, groups)
        members = [groups[row] for row in train.tolist()]
        if len(set(members)) <= len(missing):
            name = getattr(settings, "group", None)
            raise UserError(f"data.group={name!r}: {len(set(members))} group(s) cannot fill {len(missing) + 1} splits")
    parts = cut_off_train(len(train), missing, settings, seed, target=target[train], groups=members)
    return {**own_rows, **{split: train[part] for split, part in parts.items()}}, warnings


def _check_groups(own_rows: Mapping[str, Rows], groups: Sequence[str]) -> None:
    home: dict[str, str] = {}
    for split, rows in own_rows.items():
        for group in sorted({groups[row] for row in rows.tolist()}):
            if home.setdefault(group, split) != split:
                raise UserError(f"data.group: the group {group!r} lies in {home[group]} and in {split}; keep it in one")


def _check_counts(name: str, labels: Sequence[str], target: Rows) -> None:
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
