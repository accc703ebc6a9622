"""Splitting by seed where the data come without a split of their own."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from distill.errors import UserError
from distill.tasks.augment import counter_hash, hash_words
from distill.tasks.base import SPLITS
from distill.tasks.settings import DataSettings
from distill.wording import first_of

Rows = np.ndarray[tuple[int], np.dtype[np.int64]]

FEWEST = 10
"""Samples below which a split says nothing."""

SPLIT_NAMES = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation", "holdout"),
}
_SPLIT_OF = {name: split for split, names in SPLIT_NAMES.items() for name in names}


def split_named(name: str) -> str | None:
    """Return the split that a folder, a file or a cell names, in any case, also as ``train_set`` or ``test-data``."""
    word = name.lower().replace("hold-out", "holdout").replace("hold_out", "holdout")
    return _SPLIT_OF.get(re.sub(r"[\s_-]*(set|data|split)$", "", word))


def places_of_splits(home: Path, places: Iterable[tuple[str, Path]], mend: str) -> dict[str, Path]:
    """Return those places in a folder whose name (the first of a pair) is a split's, by split.

    Raises:
        UserError: two mean the same split; ``mend`` ends the message.
    """
    splits: dict[str, Path] = {}
    for name, place in places:
        split = split_named(name)
        if split in splits:
            raise UserError(
                f"{home}: holds both {splits[split].name} and {place.name}, which both mean {split}; {mend}"
            )
        if split is not None:
            splits[split] = place
    return splits


def shuffled(count: int, seed: int, purpose: int = 0) -> Rows:
    """Return 0..count-1 in an order that depends on the seed alone: no library's generator, so no version of one."""
    keys = counter_hash(hash_words(seed, purpose), torch.arange(count))
    return np.argsort(keys.numpy(), kind="stable").astype(np.int64)


def part_size(count: int, share: float | None, default: float) -> int:
    """Return how many of ``count`` samples a split gets, rounded up (1797 × 0.2 is 360).

    The default share gives at least ten samples; a share that the user chose is taken as it is.
    """
    size = math.ceil(count * (default if share is None else share) - 1e-9)
    return max(size, FEWEST) if share is None else size


def unused_shares(own: Collection[str], settings: DataSettings) -> list[str]:
    """Return a warning for every share that the user chose for a split which is among the data's ``own``."""
    return [
        f"data.{split}={share} is not used: the data come with a {split} split"
        for split, share in settings.shares.items()
        if share is not None and split in own
    ]


def missing_splits(own: Collection[str]) -> list[str]:
    """Return the splits, beside train, that are not among the data's ``own``, in the order in which they are cut."""
    return [split for split in ("test", "validation") if split not in own]


def cut_off_train(
    count: int,
    missing: Sequence[str],
    settings: DataSettings,
    seed: int,
    *,
    target: Rows | None = None,
    groups: Sequence[str] | None = None,
    validation: float = 0.1,
) -> dict[str, Rows]:
    """Cut the missing splits off ``count`` samples; return sorted numbers of samples for them and for train.

    With ``target``, class numbers int64 [count], each split gets every class in proportion. With ``groups``, one name a
    sample, no group is divided, and ``target`` does not count. ``validation`` is that split's share where the user
    chose none.
    """
    defaults = {"test": 0.2, "validation": validation}
    sizes = [part_size(count, settings.shares[split], defaults[split]) for split in missing]
    if groups is not None:
        parts = by_group(groups, sizes, seed)
    elif target is not None:
        parts = stratified(target, sizes, seed)
    else:
        parts = _cut(shuffled(count, seed, purpose=2), sizes)
    return dict(zip([*missing, "train"], parts, strict=True))


def stratified(target: Rows, sizes: Sequence[int], seed: int) -> list[Rows]:
    """Cut row numbers into parts of exactly ``sizes`` rows, then the rest, each with every class in proportion.

    ``target`` int64 [N]. Every row gets its quantile within its own class; cutting the rows sorted by quantile gives
    each part each class's share to within one row. Returns sorted row numbers.
    """
    order = shuffled(len(target), seed, purpose=1)
    quantile = np.empty(len(target))
    for label in np.unique(target):
        members = order[target[order] == label]
        quantile[members] = (np.arange(len(members)) + 0.5) / len(members)
    ranked = order[np.argsort(quantile[order], kind="stable")]
    return _cut(ranked, sizes)


def by_group(groups: Sequence[str], sizes: Sequence[int], seed: int) -> list[Rows]:
    """Cut row numbers into parts of about ``sizes`` rows, then the rest, so that no group lies in two of them.

    Groups are taken in random order; one goes into a part while that brings its size nearer.
    """
    names = sorted(set(groups))
    number = {name: place for place, name in enumerate(names)}
    member = np.asarray([number[name] for name in groups], np.int64)
    counts = np.bincount(member, minlength=len(names))
    part_of_group = np.full(len(names), len(sizes))
    waiting = [int(group) for group in shuffled(len(names), seed, purpose=3)]
    for part, size in enumerate(sizes):
        filled = 0
        for group in list(waiting):
            if abs(size - filled - counts[group]) < abs(size - filled):
                part_of_group[group] = part
                filled += int(counts[group])
                waiting.remove(group)
    part_of_row = part_of_group[member]
    return [np.flatnonzero(part_of_row == part).astype(np.int64) for part in range(len(sizes) + 1)]


def check_splits(
    targets: Mapping[str, Rows], labels: Sequence[str], *, own: Collection[str], source: str = "data"
) -> tuple[str, ...]:
    """Refuse splits that are too small or that hold classes unknown to training; return warnings about the rest.

    ``own`` are the splits that the data came with; ``source`` opens the messages.

    Raises:
        UserError: a split has fewer than ten samples; a class of a split never occurs in train.
    """
    check_sizes({name: len(target) for name, target in targets.items()}, own=own, source=source)
    present = {name: set(np.unique(target).tolist()) for name, target in targets.items()}
    warnings = []
    for number, label in enumerate(labels):
        homes = [name for name in SPLITS if number in present[name]]
        if "train" not in homes:
            raise UserError(
                f"{source}: class {label!r} occurs in {' and '.join(homes) or 'no split'} but not in train; "
                "add samples of it to train or remove the class"
            )
    for name in SPLITS[1:]:
        absent = [label for number, label in enumerate(labels) if number not in present[name]]
        if absent:
            warnings.append(f"{source}: no sample of {first_of(map(repr, absent))} in the {name} split")
    return tuple(warnings)


def check_sizes(sizes: Mapping[str, int], *, own: Collection[str], source: str = "data") -> None:
    """Refuse a split of fewer than ten samples.

    Raises:
        UserError: it names the split, its size and the mend.
    """
    total = sum(sizes.values())
    for name in SPLITS:
        size = sizes[name]
        if size >= FEWEST:
            continue
        mend = "bring more samples"
        if name not in own and name != "train" and total >= 3 * FEWEST:
            mend = f"set data.{name} to at least {math.ceil(100 * FEWEST / total) / 100} or bring more samples"
        kind = "sample" if size == 1 else "samples"
        raise UserError(f"{source}: the {name} split has {size} {kind}, fewer than {FEWEST}; {mend}")


def _cut(order: Rows, sizes: Sequence[int]) -> list[Rows]:
    return [np.sort(part) for part in np.split(order, np.cumsum(sizes))]
