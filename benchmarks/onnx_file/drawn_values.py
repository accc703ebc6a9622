"""Values that a graph can run on, drawn to suit what it does with them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx

from distill.benchmarks.onnx_file.signature import Signature
from distill.types import Array

# Operators that hand integers or strings on without changing what they mean.
_TRANSPARENT = {"Cast", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity", "Transpose"}
_COMPARED = {"Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual"}


def draw(proto: onnx.ModelProto, item: Signature, shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    """Values that a graph can run on."""
    if item.dtype == object:
        categories = _categories(proto, item.name)
        return np.asarray(
            [categories[i] for i in rng.integers(len(categories), size=int(np.prod(shape)))], object
        ).reshape(shape)
    if int(np.prod(shape)) == 1 and (compared := _compared(proto, item)):
        return np.full(shape, compared[0], item.dtype)
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


def _compared(proto: onnx.ModelProto, item: Signature) -> list[Any]:
    """List the single numbers that the graph compares this input with, as a model of two sampling rates does."""
    constants = {tensor.name: tensor for tensor in proto.graph.initializer}
    for node in proto.graph.node:
        if node.op_type == "Constant" and node.attribute and node.attribute[0].name == "value":
            constants[node.output[0]] = node.attribute[0].t
    others = [
        constants[name]
        for node, _ in _consumers(proto, item.name)
        if node.op_type in _COMPARED
        for name in node.input
        if name in constants and constants[name].data_location == onnx.TensorProto.DEFAULT
    ]
    return [onnx.numpy_helper.to_array(tensor).item() for tensor in others if np.prod(tensor.dims, dtype=int) == 1]


def _categories(proto: onnx.ModelProto, name: str) -> list[str]:
    """List the strings that the graph's own encoder knows for this input, else one of no meaning."""
    for node, _ in _consumers(proto, name):
        for attribute in node.attribute:
            if attribute.name in ("keys_strings", "cats_strings", "classlabels_strings") and attribute.strings:
                return [text.decode("utf-8", "replace") for text in attribute.strings]
    return ["a"]
