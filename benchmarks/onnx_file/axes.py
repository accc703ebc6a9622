"""Which axes of a file's inputs are the batch, which share a size, and which only look as if they did."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from distill.benchmarks.onnx_file.signature import Signature, load_proto, signature
from distill.errors import UserError
from distill.types import Array

Place = tuple[str, int]
"""An input's name, and one of its axes."""
# Names that exporters number by themselves, such as torch's s0, tf2onnx's unk__12, paddle's DynamicDimension.0: mostly
# one size, but two symbols that were equal once are told apart by nothing.
_NUMBERED = re.compile(r"([a-z]|unk|unknown|dim|dyn|dynamic|axis)?[_.]*\d+|.*(dim|axes|dimension)[_.]*\d+", re.I)


def open_axes(inputs: Sequence[Signature]) -> Iterator[tuple[Place, str | None]]:
    """List the open axes: input and axis, and the axis's name."""
    for item in inputs:
        for axis, size in enumerate(item.shape or ()):
            if not isinstance(size, int):
                yield (item.name, axis), size


def batch_axes(inputs: Sequence[Signature], settled: Collection[Place] = ()) -> dict[str, tuple[int, ...]]:
    """Find along which axes of each input samples lie: its first axis, where that is open, and all of such a name.

    Only where no first axis is open does one further in count, unless its size is settled: `[8, length]` beside
    `[batch, length]` has no batch, and neither has a scalar.
    """
    first: dict[str, int] = {}
    for (name, axis), _ in open_axes(inputs):
        first.setdefault(name, axis)
    leading = {place for place in first.items() if place[1] == 0}
    leading = leading or {place for place in first.items() if place not in settled}
    names = {called for place, called in open_axes(inputs) if place in leading} - {None}
    batch = {place for place, called in open_axes(inputs) if place in leading or called in names}
    return {
        item.name: tuple(axis for axis in range(len(item.shape or ())) if (item.name, axis) in batch) for item in inputs
    }


def take(rows: Array, index: Array, axes: Sequence[int]) -> Array:
    """Return rows by number, cycled where there are fewer, along every one of the axes."""
    for axis in axes:
        rows = np.take(rows, index % rows.shape[axis], axis=axis)
    return rows


def told_apart(inputs: Sequence[Signature], rows: Mapping[str, Array]) -> tuple[list[Signature], list[str]]:
    """Take from axes the name that an exporter numbered where rows of several sizes share it; say so."""
    sizes: dict[str, dict[int, str]] = {}
    for (name, axis), called in open_axes(inputs):
        if called is not None and _NUMBERED.fullmatch(called) and name in rows and rows[name].ndim > axis:
            sizes.setdefault(called, {}).setdefault(rows[name].shape[axis], f"{name}:{axis}")
    unequal = {called: places for called, places in sizes.items() if len(places) > 1}
    remarks = [
        f"axes that are all called {called!r} are {', '.join(f'{size} in {place}' for size, place in places.items())} "
        "of the given rows, and were taken as axes of their own"
        for called, places in unequal.items()
    ]
    return [
        dataclasses.replace(item, shape=item.shape and tuple(None if size in unequal else size for size in item.shape))
        for item in inputs
    ], remarks


def places_of(paths: Sequence[str | Path], dims: Mapping[str, int]) -> dict[Place, int]:
    """Find the axes that names mean, in whichever of several files has them: the others may call them otherwise.

    An axis without a name goes by its input and number, as `x:2`.

    Raises:
        UserError: none of the files has such an axis.
    """
    places: dict[str, list[Place]] = {}
    numbered: dict[str, list[Place]] = {}
    for path in paths:
        for place, name in open_axes(signature(load_proto(path))):
            numbered.setdefault(f"{place[0]}:{place[1]}", []).append(place)
            if name is not None:
                places.setdefault(name, []).append(place)
    for name, size in dims.items():
        if name not in numbered | places:
            have = f"the open axes are {', '.join(places | numbered)}" if numbered else "there is no open axis"
            raise UserError(f"{' and '.join(map(str, paths))}: --dim {name}={size}: {have}")
    return {place: size for name, size in dims.items() for place in (numbered | places)[name]}
