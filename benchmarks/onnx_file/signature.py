"""An .onnx file as a caller meets it: the graph without its data, and what it takes."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from distill.errors import UserError

# What exporters write where they know no name: no two axes of such a "name" need be one size.
_NAMELESS = re.compile(r"[?*_\s]*|-1|none|null|any|unk|unknown|dyn|dynamic|undefined", re.I)


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
        kinds = {path.is_dir(): "is a folder, not an .onnx file", not path.exists(): "does not exist"}
        problem = kinds.get(True, "is no regular file")
        raise UserError(f"{path}: {problem}; give the path of an .onnx file")
    if path.stat().st_size >= onnx.checker.MAXIMUM_PROTOBUF:
        raise UserError(
            f"{path}: is larger than the 2 GiB of any ONNX file; export it with its weights in a file beside"
        )
    try:
        proto = onnx.load(str(path), format="protobuf", load_external_data=False)
    except DecodeError as error:
        raise UserError(f"{path}: not an ONNX file, or a truncated one ({error}); export it again") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    if not proto.graph.output:
        problem = "its graph has no output" if proto.graph.node else "holds no graph"
        raise UserError(f"{path}: {problem}; export it again")
    return proto


def element_name(kind: int) -> str:
    """Return what ONNX calls an element type, or its number where that is of none."""
    kinds = onnx.TensorProto.DataType
    return str(kinds.Name(kind)) if kind in kinds.values() else f"{kind}, which is none of ONNX"


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
            name = element_name(tensor.elem_type)
            raise UserError(f"input {value.name!r} has the type {name}, which numpy cannot hold: feed another type")
    if not tensor.HasField("shape"):
        return Signature(value.name, dtype, None)
    return Signature(value.name, dtype, tuple(_axis(dim) for dim in tensor.shape.dim))


def _axis(dim: onnx.TensorShapeProto.Dimension) -> int | str | None:
    if dim.HasField("dim_value") and dim.dim_value >= 0:
        return int(dim.dim_value)
    return None if _NAMELESS.fullmatch(dim.dim_param) else dim.dim_param
