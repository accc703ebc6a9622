"""Inputs for any ONNX file, made from the file's own signature."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from distill.errors import UserError
from distill.types import Array, Feed

Place = tuple[str, int]  # an input's name, and one of its axes
# Operators that hand integers or strings on without changing what they mean.
_TRANSPARENT = {"Cast", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity", "Transpose"}


@dataclass(frozen=True)
class Signature:
    """One input of a file; `shape` holds sizes, axis names, and None for an axis without a name (or as a whole)."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | str | None, ...] | None


def load_proto(path: str | Path) -> onnx.ModelProto:
    """Read an .onnx file without its external data. Raises UserError for one that is missing or broken."""
    path = Path(path)
    if not path.is_file():
        problem = "is a folder, not an .onnx file" if path.is_dir() else "does not exist"
        problem = "is no regular file" if path.exists() and not path.is_dir() else problem
        raise UserError(f"{path}: {problem}; give the path of an .onnx file")
    try:
        proto = onnx.load(str(path), format="protobuf", load_external_data=False)
    except DecodeError as error:
        raise UserError(f"{path}: not an ONNX file, or a truncated one ({error}); export it again") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    if not proto.graph.node and not proto.graph.output:
        raise UserError(f"{path}: holds no graph; export it again")
    return proto


def signature(proto: onnx.ModelProto) -> list[Signature]:
    """List the inputs that a caller has to give, in order; initializers that are also listed as inputs are not."""
    stored = {item.name for item in proto.graph.initializer}
    stored |= {item.values.name for item in proto.graph.sparse_initializer}
    return [_signature_of(value) for value in proto.graph.input if value.name not in stored]


def _signature_of(value: onnx.ValueInfoProto) -> Signature:
    """Read one input; raises UserError for sequences, optionals and types that numpy does not have."""
    kind = value.type.WhichOneof("value")
    if kind != "tensor_type":
        raise UserError(f"input {value.name!r} is a {kind or 'value without a type'}: only tensors can be timed")
    tensor = value.type.tensor_type
    if tensor.elem_type == onnx.TensorProto.STRING:
        dtype = np.dtype(object)
    else:
        try:
            dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type))
        except KeyError:
            dtype = np.dtype(np.void)
        if dtype.kind not in "fiub":
            name = onnx.TensorProto.DataType.Name(tensor.elem_type)
            raise UserError(f"input {value.name!r} has the type {name}, which numpy cannot hold: feed another type")
    if not tensor.HasField("shape"):
        return Signature(value.name, dtype, None)
    return Signature(value.name, dtype, tuple(_axis(dim) for dim in tensor.shape.dim))


def _axis(dim: onnx.TensorShapeProto.Dimension) -> int | str | None:
    if dim.HasField("dim_value") and dim.dim_value >= 0:
        return int(dim.dim_value)
    return dim.dim_param or None


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
    masks are ones, strings are categories that the graph knows. `rows` replaces some or all inputs by real rows,
    which are cycled up to the batch, and settles axes that the signature leaves open; `dims` settles axes by name,
    `places` by input and axis.

    Raises UserError where the file is broken, where an axis other than the batch is open and nothing was given for
    it, where the file's batch is fixed at another size, and where `rows` or `dims` do not fit the signature.
    """
    if batch < 1:
        raise UserError(f"batch={batch}: must be at least 1")
    proto = load_proto(path)
    inputs = signature(proto)
    rows = dict(rows or {})
    unknown = sorted(set(rows) - {item.name for item in inputs})
    if unknown:
        names = ", ".join(item.name for item in inputs)
        raise UserError(f"{path}: given inputs {unknown} are not in its signature; it takes {names}")
    # An axis further in whose size is given is no batch, though it be the only open one.
    places = {**(places or {}), **places_of([path], dims or {})}
    axes = {name: axis for name, axis in _batch_axes(inputs).items() if axis == 0 or (name, axis) not in places}
    if inputs and not axes:
        _check_fixed_batch(path, inputs, batch)
    settled = {(name, axis): batch for name, axis in axes.items()} | _placed_sizes(path, inputs, places, axes)
    sizes = {name: settled[place] for place, name in _open(inputs) if name is not None and place in settled}
    feeds: Feed = {}
    for item in inputs:
        if item.name in rows:
            feeds[item.name] = _fit(item, np.asarray(rows[item.name]), batch, axes, sizes)
    for item in inputs:
        if item.name not in feeds:
            # The name is in the seed, so that two files get equal values for equal inputs in any order.
            rng = np.random.default_rng([seed, zlib.crc32(item.name.encode())])
            feeds[item.name] = _draw(proto, item, _shape(item, sizes, settled), rng)
    return {item.name: feeds[item.name] for item in inputs}


def _placed_sizes(
    path: str | Path, inputs: list[Signature], places: dict[Place, int], batch: dict[str, int]
) -> dict[Place, int]:
    """Check the sizes that the user gave for an axis of an input, and leave out those of fixed axes."""
    for (name, axis), size in places.items():
        if batch.get(name) == axis:
            raise UserError(f"{path}: axis {axis} of input {name!r} is the batch; say --batch {size}")
        if size < 1:
            raise UserError(f"{path}: axis {axis} of input {name!r}: {size} must be at least 1")
    return {place: places[place] for place, _ in _open(inputs) if place in places}


def _open(inputs: list[Signature]) -> Iterator[tuple[Place, str | None]]:
    """List the open axes: input and axis, and the axis's name."""
    for item in inputs:
        for axis, size in enumerate(item.shape or ()):
            if not isinstance(size, int):
                yield (item.name, axis), size


def places_of(paths: Sequence[str | Path], dims: Mapping[str, int]) -> dict[Place, int]:
    """Find the axes that names mean, in whichever of several files has them: the others may call them otherwise.

    Raises UserError for a name that none of them has.
    """
    places: dict[str, list[Place]] = {}
    for path in paths:
        for place, name in _open(signature(load_proto(path))):
            if name is not None:
                places.setdefault(name, []).append(place)
    for name, size in dims.items():
        if name not in places:
            have = f"the open axes are {', '.join(places)}" if places else "there is no axis with a name"
            raise UserError(f"{' and '.join(map(str, paths))}: --dim {name}={size}: {have}")
    return {place: size for name, size in dims.items() for place in places[name]}


def _batch_axes(inputs: list[Signature]) -> dict[str, int]:
    """Find the batch, input name -> axis: an input's first dynamic axis, where that leads.

    Only where none leads does one further in count: `[8, length]` beside `[batch, length]` has no batch.
    """
    first: dict[str, int] = {}
    for (name, axis), _ in _open(inputs):
        first.setdefault(name, axis)
    return {name: axis for name, axis in first.items() if axis == 0} or first


def _shape(item: Signature, sizes: dict[str, int], settled: dict[Place, int]) -> tuple[int, ...]:
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
            name = f"{size!r} (axis {axis})" if size else f"axis {axis}"
            mend = f"say --dim {size}=SIZE, or give" if size else "give"
            raise UserError(f"input {item.name!r}: the size of {name} is open; {mend} example rows for this input")
    return tuple(shape)


def _fit(item: Signature, rows: Array, batch: int, axes: dict[str, int], sizes: dict[str, int]) -> Array:
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
        if axes.get(item.name) == axis:
            if not have:
                raise UserError(f"input {item.name!r}: the given rows are none; give at least one")
            rows = np.take(rows, np.arange(batch) % have, axis=axis)
            continue
        expected = size if isinstance(size, int) else sizes.setdefault(size, have) if size else have
        if have != expected:
            raise UserError(
                f"input {item.name!r}: the given rows have {have} on axis {axis}, the file takes {expected}"
            )
    return np.ascontiguousarray(rows)


def _show(shape: tuple[int | str | None, ...]) -> str:
    return "[" + ", ".join("?" if size is None else str(size) for size in shape) + "]"


def _check_fixed_batch(path: str | Path, inputs: list[Signature], batch: int) -> None:
    """Refuse another batch where no axis is open: the file has its batch baked in."""
    leading = {item.shape[0] for item in inputs if item.shape}
    if leading and batch not in leading:
        fixed = sorted(str(size) for size in leading)
        raise UserError(
            f"{path}: its batch is fixed at {' or '.join(fixed)}, {batch} was asked for; export it with a dynamic batch"
        )


def _draw(proto: onnx.ModelProto, item: Signature, shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    """Values that a graph can run on."""
    if item.dtype == object:
        categories = _categories(proto, item.name)
        return np.asarray(
            [categories[i] for i in rng.integers(len(categories), size=int(np.prod(shape)))], object
        ).reshape(shape)
    if item.dtype.kind == "f":
        return np.asarray(rng.standard_normal(shape)).astype(item.dtype)
    if item.dtype.kind == "b" or "mask" in item.name.lower():
        return np.ones(shape, item.dtype)
    rows, limits = _table_rows(proto, item.name), np.iinfo(item.dtype)
    if rows is None and item.dtype.itemsize == 1:
        return np.asarray(rng.integers(limits.min, limits.max, size=shape, endpoint=True)).astype(item.dtype)
    most = 2 if rows is None else max(1, min(rows, limits.max))
    return np.asarray(rng.integers(0, most, size=shape)).astype(item.dtype)


def _consumers(proto: onnx.ModelProto, name: str) -> Iterator[tuple[onnx.NodeProto, str]]:
    """Find the nodes that read this value, also through casts and reshapes, and the name under which they do."""
    names, seen = [name], set()
    while names:
        current = names.pop()
        seen.add(current)
        for node in proto.graph.node:
            if current in node.input:
                yield node, current
                if node.op_type in _TRANSPARENT and node.input[0] == current:
                    names += [output for output in node.output if output not in seen]


def whole_attribute(node: onnx.NodeProto, name: str, default: int = 0) -> int:
    """Return a node's attribute that is a whole number."""
    return next((int(attribute.i) for attribute in node.attribute if attribute.name == name), default)


def _table_rows(proto: onnx.ModelProto, name: str) -> int | None:
    """How many values an index may take: the rows of the smallest table that it looks up, None without a table."""
    tables = {item.name: item for item in proto.graph.initializer}
    rows = []
    for node, read_as in _consumers(proto, name):
        if node.op_type == "Gather" and node.input[1] == read_as and node.input[0] in tables:
            rows.append(int(tables[node.input[0]].dims[whole_attribute(node, "axis")]))
    return min(rows, default=None)


def _categories(proto: onnx.ModelProto, name: str) -> list[str]:
    """List the strings that the graph's own encoder knows for this input, else one of no meaning."""
    for node, _ in _consumers(proto, name):
        for attribute in node.attribute:
            if attribute.name in ("keys_strings", "cats_strings", "classlabels_strings") and attribute.strings:
                return [text.decode("utf-8", "replace") for text in attribute.strings]
    return ["a"]
