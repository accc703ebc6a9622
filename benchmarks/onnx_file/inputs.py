"""Inputs for any ONNX file, made from the file's own signature."""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from distill.benchmarks.onnx_file.axes import Place, batch_axes, open_axes, places_of, take, told_apart
from distill.benchmarks.onnx_file.drawn_values import draw
from distill.benchmarks.onnx_file.signature import Signature, load_proto, signature
from distill.bounds import MOST_VALUES
from distill.errors import UserError
from distill.types import Array, Feed


def make_inputs(
    path: str | Path,
    batch: int,
    *,
    seed: int = 0,
    rows: Mapping[str, Array] | None = None,
    dims: Mapping[str, int] | None = None,
    places: Mapping[Place, int] | None = None,
) -> Feed:
    """Make inputs for one call of the file at `path` with `batch` rows, equal for equal seeds and input names.

    The batch is an input's first dynamic axis, and every axis of the same name. Numbers are drawn to suit the input:
    floats are standard normal, uint8 and int8 cover their range, indices stay within the table that they look up,
    masks are ones, a single number is one that the graph compares it with, strings are categories that the graph
    knows. `rows` replaces some or all inputs by real rows, which are cycled up to the batch along all of its axes, and
    settles axes that the signature leaves open; `dims` settles axes by name, `places` by input and axis.

    Raises UserError where the file is broken, where an axis other than the batch is open and nothing was given for
    it, where the file's batch is fixed at another size, and where `rows` or `dims` do not fit the signature.
    """
    return inputs_and_assumptions(path, batch, seed=seed, rows=rows, dims=dims, places=places)[0]


def inputs_and_assumptions(
    path: str | Path,
    batch: int,
    *,
    seed: int = 0,
    rows: Mapping[str, Array] | None = None,
    dims: Mapping[str, int] | None = None,
    places: Mapping[Place, int] | None = None,
) -> tuple[Feed, list[str]]:
    """Make inputs as `make_inputs` does; return with them what was assumed that a user may know better."""
    if batch < 1:
        raise UserError(f"batch={batch}: must be at least 1")
    proto = load_proto(path)
    inputs = signature(proto)
    rows = {name: np.asarray(values) for name, values in (rows or {}).items()}
    unknown = sorted(set(rows) - {item.name for item in inputs})
    if unknown:
        names = ", ".join(item.name for item in inputs)
        raise UserError(f"{path}: given inputs {unknown} are not in its signature; it takes {names}")
    inputs, assumed = told_apart(inputs, rows)
    # An axis further in whose size is given is no batch, though it be the only open one.
    places = {**(places or {}), **places_of([path], dims or {})}
    axes = batch_axes(inputs, places)
    if inputs and not any(axes.values()):
        _check_fixed_batch(path, inputs, batch)
    settled = {(name, axis): batch for name, own in axes.items() for axis in own}
    settled |= _placed_sizes(path, inputs, places, axes)
    sizes = {name: settled[place] for place, name in open_axes(inputs) if name is not None and place in settled}
    feeds: Feed = {}
    for item in inputs:
        if item.name in rows:
            feeds[item.name] = _fit(item, rows[item.name], batch, axes[item.name], sizes)
    assumed += _uneven(rows, axes)
    for item in inputs:
        if item.name not in feeds:
            # The name is in the seed, so that two files get equal values for equal inputs in any order.
            rng = np.random.default_rng([seed, zlib.crc32(item.name.encode())])
            shape = _shape(item, sizes, settled)
            if math.prod(shape) > MOST_VALUES:
                raise UserError(
                    f"input {item.name!r}: {list(shape)} is too large to draw; {MOST_VALUES} values are most"
                )
            feeds[item.name] = values = draw(proto, item, shape, rng)
            if item.shape in ((), (1,)):  # one number may decide what the graph does, as a sampling rate
                assumed.append(f"its input {item.name!r} was drawn as {values.item()!r}; give yours with --inputs")
    return {item.name: feeds[item.name] for item in inputs}, assumed


def _placed_sizes(
    path: str | Path, inputs: Sequence[Signature], places: Mapping[Place, int], batch: Mapping[str, Sequence[int]]
) -> dict[Place, int]:
    """Check the sizes that the user gave for an axis of an input, and leave out those of fixed axes."""
    for (name, axis), size in places.items():
        if axis in batch.get(name, ()):
            raise UserError(f"{path}: axis {axis} of input {name!r} is the batch; say --batch {size}")
        if size < 1:
            raise UserError(f"{path}: axis {axis} of input {name!r}: {size} must be at least 1")
    return {place: places[place] for place, _ in open_axes(inputs) if place in places}


def _shape(item: Signature, sizes: Mapping[str, int], settled: Mapping[Place, int]) -> tuple[int, ...]:
    """Settle the shape to draw; raises UserError for an axis whose size nothing tells."""
    if item.shape is None:
        raise UserError(f"input {item.name!r} has no shape in its signature: give example rows for it")
    shape = []
    for axis, size in enumerate(item.shape):
        if isinstance(size, int):
            shape.append(size)
        elif (item.name, axis) in settled:
            shape.append(settled[item.name, axis])
        elif size is not None and size in sizes:
            shape.append(sizes[size])
        else:
            name, dim = (f"{size!r} (axis {axis})", size) if size else (f"axis {axis}", f"{item.name}:{axis}")
            raise UserError(
                f"input {item.name!r}: the size of {name} is open; say --dim {dim}=SIZE, or give example rows for this "
                "input"
            )
    return tuple(shape)


def _fit(item: Signature, rows: Array, batch: int, axes: Sequence[int], sizes: dict[str, int]) -> Array:
    """Check given rows against the signature, cycle them up to the batch, and note the axes that they settle."""
    if item.dtype == object:
        rows = rows.astype(object) if rows.dtype.kind in "UO" else rows
    if rows.dtype != item.dtype:
        want = "str" if item.dtype == object else item.dtype.name
        raise UserError(f"input {item.name!r}: given rows are {rows.dtype.name}, the file takes {want}; convert them")
    if item.shape is None:
        return np.ascontiguousarray(rows)
    if rows.ndim != len(item.shape):
        raise UserError(
            f"input {item.name!r}: the given rows have the shape {list(rows.shape)}, the file takes {_show(item.shape)}"
        )
    for axis, (have, size) in enumerate(zip(rows.shape, item.shape, strict=True)):
        if axis in axes:
            if not have:
                raise UserError(f"input {item.name!r}: the given rows are none; give at least one")
            continue
        expected = size if isinstance(size, int) else sizes.setdefault(size, have) if size else have
        if have != expected:
            why = f" as {size!r} is in another input" if isinstance(size, str) else ""
            raise UserError(
                f"input {item.name!r}: the given rows have {have} on axis {axis}, the file takes {expected}{why}"
            )
    # An array of no axes stays one, which numpy's own function does not let it.
    return np.asarray(take(rows, np.arange(batch), axes), order="C")


def _uneven(rows: Mapping[str, Array], axes: Mapping[str, Sequence[int]]) -> list[str]:
    """Say where the given rows are not as many in every axis of the batch: each was cycled by itself."""
    counts = {f"{name}:{axis}": values.shape[axis] for name, values in rows.items() for axis in axes[name]}
    if len(set(counts.values())) < 2:
        return []
    each = ", ".join(f"{count} in {place}" for place, count in counts.items())
    return [f"the given rows are {each}, all of which is the batch: each was cut or repeated by itself"]


def _show(shape: Sequence[int | str | None]) -> str:
    return "[" + ", ".join("?" if size is None else str(size) for size in shape) + "]"


def _check_fixed_batch(path: str | Path, inputs: Sequence[Signature], batch: int) -> None:
    """Refuse another batch where no axis is open: the file has its batch baked in."""
    leading = {item.shape[0] for item in inputs if item.shape}
    if leading and batch not in leading:
        fixed = sorted(str(size) for size in leading)
        raise UserError(
            f"{path}: its batch is fixed at {' or '.join(fixed)}, {batch} was asked for; export it with a dynamic batch"
        )
