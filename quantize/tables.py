"""Embedding tables with rows of 8 bits: most of the bytes of a small transformer, and none of its time."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
from numpy.typing import NDArray
from onnx import GraphProto, NodeProto, TensorProto, helper, numpy_helper

from distill.export.graph import (
    add_constant,
    attribute,
    consumers,
    fresh_name,
    initializers,
    operator,
    output_names,
    remove_nodes,
    sort_nodes,
)

_LEAST_BYTES = 1 << 16  # below which a table is not worth the three nodes
_INT8_MAX = 127
_FLOAT = TensorProto.FLOAT


def tables_of(graph: GraphProto, keep_float: Collection[str] = ()) -> dict[str, list[NodeProto]]:
    """Find the float32 tables [rows, width] that nothing but lookups of rows reads, each with these lookups.

    A table is left out where one of its lookups writes a tensor in ``keep_float``.
    """
    readers = consumers(graph)
    outputs = output_names(graph)
    return {
        name: readers[name]
        for name, value in initializers(graph).items()
        if name not in outputs
        and value.data_type == _FLOAT
        and len(value.dims) == 2
        and 4 * value.dims[0] * value.dims[1] >= _LEAST_BYTES
        and readers.get(name)
        and all(_looks_up(node, name, keep_float) for node in readers[name])
    }


def _looks_up(node: NodeProto, table: str, keep_float: Collection[str]) -> bool:
    return (
        operator(node) == "Gather"
        and node.input[0] == table
        and node.input[1] != table
        and attribute(node, "axis", 0) in (0, -2)
        and not set(node.output) & set(keep_float)
    )


def round_rows(table: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Round each row of a table [rows, width] to multiples of its own scale [rows, 1], its largest value over 127.

    No value is moved by more than half a scale; a row of zeros stays one.
    """
    largest = np.abs(table).max(axis=1, keepdims=True)
    scale = np.where(largest > 0, largest / _INT8_MAX, 1).astype(np.float32)
    # A row of subnormals has a scale of too few digits, or none.
    scale = np.where(scale < np.finfo(np.float32).tiny, 1, scale).astype(np.float32)
    return np.clip(np.rint(table / scale), -_INT8_MAX, _INT8_MAX).astype(np.int8), scale


def narrow_tables(graph: GraphProto, keep_float: Collection[str] = ()) -> list[str]:
    """Store embedding tables in 8 bits with a scale for each row, in place; returns the names of those that were.

    What a lookup returns is made float at once, so nothing behind it changes. Rows have scales of their own since some
    words have much larger vectors than others, and a lookup of a scale costs nothing.
    """
    tables = tables_of(graph, keep_float)
    for name, lookups in tables.items():
        rows, scales = round_rows(numpy_helper.to_array(initializers(graph)[name]))
        narrow, scale = add_constant(graph, f"{name}/rows", rows), add_constant(graph, f"{name}/scales", scales)
        for node in lookups:
            out, ids = node.output[0], node.input[1]
            parts = [fresh_name(graph, f"{out}/{part}") for part in ("rows", "scales", "float")]
            graph.node.extend(
                [
                    helper.make_node("Gather", [narrow, ids], [parts[0]], name=parts[0]),
                    helper.make_node("Gather", [scale, ids], [parts[1]], name=parts[1]),
                    helper.make_node("Cast", [parts[0]], [parts[2]], name=parts[2], to=TensorProto.FLOAT),
                    helper.make_node("Mul", [parts[2], parts[1]], [out], name=f"{out}/scaled"),
                ]
            )
        graph.initializer.remove(initializers(graph)[name])
    if tables:
        # At once: what is removed makes the nodes of the graph other objects.
        remove_nodes(graph, [node for lookups in tables.values() for node in lookups])
        sort_nodes(graph)
    return list(tables)
