"""What an .onnx file is, read from the file alone: size, operators' work, parameters, inputs, what it was made for."""

from __future__ import annotations

import contextlib
import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, numpy_helper

from distill.benchmarks.onnx_file.drawn_values import whole_attribute
from distill.benchmarks.onnx_file.external_data import external_files, unknown_entries_ignored
from distill.benchmarks.onnx_file.saturation import saturating_share
from distill.benchmarks.onnx_file.signature import Signature, element_name, load_proto, signature
from distill.bounds import Natural, Share
from distill.errors import UserError

# Not of float16: a CPU calculates with those in float32, where they are normal, and a GPU takes them at full speed.
_TINY = {TensorProto.FLOAT: 2.0**-126, TensorProto.DOUBLE: 2.0**-1022}
_CONV = {"Conv": 1, "ConvInteger": 1, "QLinearConv": 3, "ConvTranspose": 1}
_MATMUL = {"MatMul": 1, "Gemm": 1, "MatMulInteger": 1, "QLinearMatMul": 3, "QGemm": 3}


Described = tuple[str, str, list[int | str | None] | None]
"""Name, type and shape of an input or output; None for a size without a name, or for a shape that is not said."""


@dataclass(frozen=True)
class Facts:
    """One file. `bytes` and `sha256` include external data; `macs` are for one sample, None where a shape is open.

    `made_for` is the target that distill wrote into the file, `isa` the processor feature that it says it relies on.
    `subnormal` counts weights too small for a normal float, which a CPU multiplies tens of times more slowly.
    `saturating` is the share of int8 weight pairs whose products need a processor with VNNI (`saturating_share`).
    """

    name: str
    path: str
    sha256: str
    bytes: Natural
    opset: int
    ir_version: int
    parameters: Natural
    macs: Natural | None
    inputs: list[Described]
    outputs: list[Described]
    made_for: str | None = None
    isa: str | None = None
    subnormal: Natural = 0
    saturating: Share = 0.0


def read_facts(path: str | Path, name: str | None = None) -> Facts:
    """Read a file. Raises UserError where it, or its external data, are missing or broken."""
    path = Path(path)
    proto = load_proto(path)
    extra = external_files(path, proto)
    try:
        inputs = [_described(item) for item in signature(proto)]
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    digest = hashlib.sha256()
    for file in (path, *extra):
        with file.open("rb") as opened:
            while block := opened.read(1 << 20):
                digest.update(block)
    metadata = {entry.key: entry.value for entry in proto.metadata_props}
    return Facts(
        name=name or path.stem,
        path=str(path),
        sha256=digest.hexdigest(),
        bytes=sum(file.stat().st_size for file in (path, *extra)),
        opset=next((imported.version for imported in proto.opset_import if imported.domain in ("", "ai.onnx")), 0),
        ir_version=proto.ir_version,
        parameters=sum(math.prod(tensor.dims) for tensor in _weights(proto)),
        macs=count_macs(proto),
        inputs=inputs,
        outputs=[_output(value) for value in proto.graph.output],
        made_for=metadata.get("target"),
        isa=metadata.get("isa"),
        subnormal=subnormal_weights(proto, path.parent),
        saturating=saturating_share(proto, path.parent),
    )


def _described(item: Signature) -> Described:
    kind = "string" if item.dtype == object else item.dtype.name
    return item.name, kind, None if item.shape is None else list(item.shape)


def _output(value: onnx.ValueInfoProto) -> Described:
    tensor = value.type.tensor_type
    kind = element_name(tensor.elem_type).lower()
    shape = [dim.dim_value if dim.HasField("dim_value") else dim.dim_param or None for dim in tensor.shape.dim]
    return value.name, kind, shape if tensor.HasField("shape") else None


def _weights(proto: ModelProto) -> Iterator[TensorProto]:
    """List the stored numbers that are no shapes, axes, scales or zero points of an operator."""
    quantizers = {
        name
        for node in proto.graph.node
        if node.op_type in ("QuantizeLinear", "DequantizeLinear")
        for name in node.input[1:]
    }
    for tensor in proto.graph.initializer:
        if tensor.name not in quantizers and not (tensor.data_type == TensorProto.INT64 and len(tensor.dims) <= 1):
            yield tensor


@unknown_entries_ignored()
def subnormal_weights(proto: ModelProto, folder: Path = Path()) -> int:
    """Count the subnormal weights; external data, looked for in ``folder``, that cannot be read count as none."""
    count = 0
    for tensor in proto.graph.initializer:
        if tensor.data_type in _TINY:
            with contextlib.suppress(OSError, ValueError, onnx.checker.ValidationError):
                size = np.abs(numpy_helper.to_array(tensor, str(folder)))
                count += int(((size > 0) & (size < _TINY[tensor.data_type])).sum())
    return count


def count_macs(proto: ModelProto) -> int | None:
    """Count the multiply-accumulates of convolutions and matrix products for one sample; None where a shape is open.

    Every open first axis is taken as the batch. ONNX's own shape inference finds the rest.
    """
    copy = ModelProto()
    copy.CopyFrom(proto)
    for value in copy.graph.input:
        dims = value.type.tensor_type.shape.dim
        if dims and not (dims[0].HasField("dim_value") and dims[0].dim_value > 0):
            dims[0].dim_value = 1
    for value in copy.graph.output:
        value.type.tensor_type.ClearField("shape")
    del copy.graph.value_info[:]
    try:
        inferred = onnx.shape_inference.infer_shapes(copy, data_prop=True)
    except Exception:  # its errors have no common base class; a file that it cannot follow is no broken file
        return None
    shapes = {tensor.name: list(tensor.dims) for tensor in inferred.graph.initializer}
    for value in (*inferred.graph.input, *inferred.graph.value_info, *inferred.graph.output):
        tensor = value.type.tensor_type
        if tensor.HasField("shape") and all(dim.HasField("dim_value") for dim in tensor.shape.dim):
            shapes[value.name] = [dim.dim_value for dim in tensor.shape.dim]
    macs = [_node_macs(node, shapes) for node in inferred.graph.node]
    return None if None in macs else sum(filter(None, macs))


def _node_macs(node: NodeProto, shapes: dict[str, list[int]]) -> int | None:
    """Count one node's; None where it multiplies and its shapes are not known."""
    if node.op_type in _CONV:
        weight = shapes.get(node.input[_CONV[node.op_type]])
        # Of a transposed convolution every input element meets the whole kernel, of a plain one every output element.
        plane = shapes.get(node.input[0] if node.op_type == "ConvTranspose" else node.output[0])
        if weight is None or plane is None:
            return None
        return math.prod(plane) * math.prod(weight[1:])
    if node.op_type in _MATMUL:
        left, out = shapes.get(node.input[0]), shapes.get(node.output[0])
        if left is None or out is None:
            return None
        swapped = node.op_type in ("Gemm", "QGemm") and whole_attribute(node, "transA")
        return math.prod(out) * (left[0 if swapped else -1] if left else 1)
    return 0
