"""The user's own data sets as splits whose samples can be fetched by number and replayed by view."""

from __future__ import annotations

import contextlib
import operator
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from distill.errors import UserError
from distill.references.functions import call_user
from distill.tasks.arrays import as_array, as_tensor
from distill.tasks.augment import hash_words
from distill.tasks.base import Batch, Data
from distill.tasks.hooks import Hooks, Where, named_inputs

_UNSEEN_VIEW = -1


@dataclass(frozen=True)
class ArrayData:
    """Samples held as tensors of one length: a tuple or a mapping of them. They are not augmented by any view."""

    arrays: tuple[Tensor, ...] | dict[str, Tensor]
    rows: Tensor

    def __len__(self) -> int:
        """Count the samples."""
        return len(self.rows)

    def fetch(self, index: Tensor, view: int | None) -> Batch:
        """Return the same tuple or mapping, of the rows ``index`` (int64 [B])."""
        rows = self.rows[index.cpu()]
        return tree_map(lambda array: array[rows], self.arrays)


@dataclass(frozen=True)
class ItemData:
    """A map-style data set; each item is fetched with all random numbers fixed by (seed, view, item)."""

    dataset: Any
    collate: Callable[[list[Any]], Batch]
    split: str
    seed: int
    rows: Tensor

    def __len__(self) -> int:
        """Count the samples."""
        return len(self.rows)

    def fetch(self, index: Tensor, view: int | None) -> Batch:
        """Return what ``collate`` makes of the items ``index`` (int64 [B]).

        The random numbers of torch, random and numpy (the global ones) are seeded for every item and put back
        afterwards, so an augmentation that draws from them replays. A generator that the data set keeps for itself
        does not.
        """
        rows: list[int] = self.rows[index.cpu()].tolist()
        view = _UNSEEN_VIEW if view is None else view
        items = []
        with restored_random_state():
            for row in rows:
                seed_all(hash_words(self.seed, view, row))
                items.append(call_user(operator.getitem, f"the {self.split} data set's item {row}", self.dataset, row))
            seed_all(hash_words(self.seed, view, *rows))
            return call_user(self.collate, "collate", items)


def naming(split: str, index: Tensor) -> Where:
    """Return what names a sample of a batch by its place: the batch holds the samples ``index`` of a split."""
    return lambda place: f"the {split} data, sample {int(index[place])}"


class CheckedData:
    """Looks at every sample the first time that it is fetched: targets in range, no NaN in the model's inputs."""

    def __init__(self, data: Data, split: str, hooks: Hooks) -> None:
        self._data, self._split, self._hooks = data, split, hooks
        self._seen = torch.zeros(len(data), dtype=torch.bool)

    def __len__(self) -> int:
        """Count the samples."""
        return len(self._data)

    def fetch(self, index: Tensor, view: int | None) -> Batch:
        """Return the batch of the samples ``index``.

        Raises:
            UserError: a sample holds NaN or a target out of range; the message names its split and number.
        """
        index = index.cpu()
        batch = self._data.fetch(index, view)
        if not bool(self._seen[index].all()):
            self._check(batch, index)
            self._seen[index] = True
        return batch

    def _check(self, batch: Batch, index: Tensor) -> None:
        sample_name = naming(self._split, index)
        target = self._hooks.target(batch, sample_name)
        if len(target) != len(index):
            raise UserError(f"the {self._split} data: {len(index)} samples were collated to {len(target)} targets")
        args, kwargs = self._hooks.inputs(batch)
        if self._hooks.preprocess is not None:
            return  # it may take NaN away
        for name, value in named_inputs(args, kwargs):
            bad = torch.isnan(value)
            if bool(bad.any()):
                by_sample = value.ndim > 0 and len(value) == len(index)
                first = int(bad.reshape(len(index), -1).any(1).nonzero()[0]) if by_sample else 0
                raise UserError(f"{sample_name(first)}: {name} holds NaN; mend or remove the sample")


def as_data(value: Any, split: str, collate: Callable[[list[Any]], Batch] | None, seed: int) -> ArrayData | ItemData:
    """Take what the user gave for a split: a tuple or mapping of arrays, a map-style data set, or a DataLoader of one.

    Raises:
        UserError: it is neither, its arrays differ in length, or it is empty.
    """
    if isinstance(value, tuple | Mapping):
        return _arrays(value, split)
    if isinstance(value, torch.utils.data.DataLoader):
        if not isinstance(value.sampler, torch.utils.data.RandomSampler | torch.utils.data.SequentialSampler):
            sampler = type(value.sampler).__name__
            raise UserError(f"{split}: is a DataLoader with a {sampler}, which nothing follows; give its data set")
        return as_data(value.dataset, split, collate or value.collate_fn, seed)
    if isinstance(value, torch.utils.data.IterableDataset) or not (
        hasattr(value, "__len__") and hasattr(value, "__getitem__")
    ):
        raise UserError(
            f"{split}: is a {type(value).__name__}; expected a data set with __len__ and __getitem__, or a tuple of "
            "tensors or arrays"
        )
    count = call_user(len, f"len of the {split} data set", value)
    if count == 0:
        raise UserError(f"{split}: the data set is empty")
    if collate is None:
        collate = torch.utils.data.default_collate
    return ItemData(value, collate, split, seed, torch.arange(count))


def _arrays(value: tuple[Any, ...] | Mapping[str, Any], split: str) -> ArrayData:
    named = dict(value) if isinstance(value, Mapping) else {str(number): array for number, array in enumerate(value)}
    tensors = {name: _tensor(array, f"{split}[{name}]") for name, array in named.items()}
    lengths = {name: len(tensor) for name, tensor in tensors.items()}
    if len(tensors) < 2:
        raise UserError(f"{split}: holds {len(tensors)} array(s); expected inputs and targets, such as (x, y)")
    if len(set(lengths.values())) != 1:
        raise UserError(f"{split}: the arrays differ in length: {', '.join(f'{k}: {n}' for k, n in lengths.items())}")
    count = next(iter(lengths.values()))
    if count == 0:
        raise UserError(f"{split}: the arrays are empty")
    arrays = tensors if isinstance(value, Mapping) else tuple(tensors.values())
    return ArrayData(arrays, torch.arange(count))


def _tensor(value: Any, name: str) -> Tensor:
    if isinstance(value, Tensor):
        tensor = as_tensor(name, value)
    else:
        array = as_array(name, value)
        if array.dtype.kind not in "biuf":
            raise UserError(f"{name}: an array of type {array.dtype}; expected numbers")
        # A copy: the user's array may be read-only, and must not be changed by us.
        tensor = torch.from_numpy(np.array(array))
    if tensor.ndim == 0:
        raise UserError(f"{name}: a single number; expected an array with one row a sample")
    return tensor


def to_single(data: ArrayData) -> tuple[ArrayData, bool]:
    """Return the data with float64 arrays as float32, and whether there were any."""
    single = tree_map(lambda array: array.float() if array.dtype == torch.float64 else array, data.arrays)
    doubles = any(array.dtype == torch.float64 for array in tree_leaves(data.arrays))
    return ArrayData(single, data.rows), doubles


@contextlib.contextmanager
def restored_random_state() -> Iterator[None]:
    """Put the global random states of torch (CPU), random and numpy back at the end."""
    torch_state = torch.default_generator.get_state()
    python_state, numpy_state = random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        torch.default_generator.set_state(torch_state)
        random.setstate(python_state)
        np.random.set_state(numpy_state)


def seed_all(value: int) -> None:
    """Seed the global random numbers of torch (CPU), random and numpy with a 64-bit number."""
    # Not torch.manual_seed: it visits every accelerator, for each sample.
    torch.default_generator.manual_seed(value - (1 << 64) if value >> 63 else value)
    random.seed(value)
    np.random.seed(value & 0xFFFFFFFF)


def spread(count: int, most: int) -> Tensor:
    """Return at most ``most`` numbers spread evenly over 0..count-1, int64."""
    return torch.linspace(0, count - 1, min(count, most), dtype=torch.float64).round().long()
