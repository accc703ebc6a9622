"""ONNX files that no exporter writes whole: what each holds, as a function that damages a small linear model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from onnx import AttributeProto, ModelProto, TensorProto, helper, numpy_helper

WIDE, NARROW = 8, 3


def linear() -> ModelProto:
    """Make a linear layer [n, 8] -> [n, 3] between two elementwise operators."""
    x, y = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", size])
        for name, size in (("x", WIDE), ("y", NARROW))
    )
    weight = numpy_helper.from_array(np.linspace(-1, 1, WIDE * NARROW, dtype=np.float32).reshape(WIDE, NARROW), "w")
    nodes = [
        helper.make_node("Relu", ["x"], ["a"]),
        helper.make_node("MatMul", ["a", "w"], ["b"]),
        helper.make_node("Tanh", ["b"], ["y"]),
    ]
    graph = helper.make_graph(nodes, "g", [x], [y], [weight])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


Damage = Callable[[ModelProto], Any]
DAMAGE: dict[str, Damage | bytes] = {
    "an empty file": b"",
    "zeros": bytes(64),
    "a text": b"model: linear\n",
    "a pickle": b"\x80\x04\x95\x0b\x00\x00\x00\x00\x00\x00\x00\x8c\x07builtins\x94.",
    "a zip": b"PK\x03\x04" + bytes(60),
    "half of it": linear().SerializeToString()[: linear().ByteSize() // 2],
    "all but a byte": linear().SerializeToString()[:-1],
    "twice": linear().SerializeToString() * 2,
    "a length of 4 GB": b"\x08\x08\x3a\xff\xff\xff\xff\x0f",
}


def damages(name: str) -> Callable[[Damage], Damage]:
    """Enter a function of the model into the corpus."""

    def enter(damage: Damage) -> Damage:
        DAMAGE[name] = damage
        return damage

    return enter


def _typed(kind: int, where: str) -> Damage:
    def damage(model: ModelProto) -> None:
        if where == "weight":
            model.graph.initializer[0].data_type = kind
            return
        value = model.graph.input[0] if where == "input" else model.graph.output[0]
        value.type.tensor_type.elem_type = kind

    return damage


for _kind in (
    0,
    99,
    2**31 - 1,
    *(getattr(TensorProto, _name) for _name in ("COMPLEX64", "STRING", "BFLOAT16", "INT4", "BOOL")),
):
    for _where in ("input", "output", "weight"):
        DAMAGE[f"type {_kind} of the {_where}"] = _typed(_kind, _where)
for _name in ("FLOAT8E4M3FN", "FLOAT4E2M1", "UINT4", "UINT64", "DOUBLE", "COMPLEX128"):
    DAMAGE[f"{_name} input"] = _typed(getattr(TensorProto, _name, 98), "input")


def _sized(size: int | str, axis: int = 1) -> Damage:
    def damage(model: ModelProto) -> None:
        dim = model.graph.input[0].type.tensor_type.shape.dim[axis]
        dim.Clear()
        if isinstance(size, str):
            dim.dim_param = size
        else:
            dim.dim_value = size

    return damage


for _size in (2**62, 2**63 - 1, 2**40, -1, -(2**63), 0, "?", "", "\0", "a" * 10_000):
    for _axis in (0, 1):
        DAMAGE[f"size {_size!r:.30} on axis {_axis}"] = _sized(_size, _axis)


def _weight(**fields: Any) -> Damage:
    """Set fields of the weight; lists replace what is there."""

    def damage(model: ModelProto) -> None:
        tensor = model.graph.initializer[0]
        for key, value in fields.items():
            if isinstance(value, list):
                del getattr(tensor, key)[:]
                getattr(tensor, key).extend(value)
            else:
                setattr(tensor, key, value)

    return damage


DAMAGE |= {
    "weight of 2^62 rows": _weight(dims=[2**62, 4]),
    "weight of 2^31 by 2^31": _weight(dims=[2**31, 2**31]),
    "weight of more bytes than it has": _weight(dims=[WIDE, 10**6]),
    "weight of a negative size": _weight(dims=[-WIDE, NARROW]),
    "weight of two negative sizes": _weight(dims=[-WIDE, -NARROW]),
    "weight of no size": _weight(dims=[]),
    "weight of zero rows": _weight(dims=[0, NARROW]),
    "weight without bytes": _weight(raw_data=b""),
    "weight of half its bytes": _weight(raw_data=bytes(20)),
    "weight of odd bytes": _weight(raw_data=bytes(13)),
    "weight in two fields": _weight(float_data=[1.0]),
    "weight without a name": _weight(name=""),
    "weight of another name": _weight(name="v"),
    "weight in segments": lambda model: setattr(model.graph.initializer[0].segment, "begin", 7),
    "weight of NaN": _weight(raw_data=np.full((WIDE, NARROW), np.nan, np.float32).tobytes()),
}


def _external(**entries: Any) -> Damage:
    def damage(model: ModelProto) -> None:
        tensor = model.graph.initializer[0]
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in entries.items():
            for each in value if isinstance(value, list) else [value]:
                tensor.external_data.add(key=key, value=str(each))

    return damage


BESIDE = "data"
"""A file of 96 bytes, as many as the weight has, that lies beside the model."""
DAMAGE |= {
    "no location": _external(),
    "offset that is no number": _external(location=BESIDE, offset="x"),
    "offset of half a byte": _external(location=BESIDE, offset=0.5),
    "offset below zero": _external(location=BESIDE, offset=-4),
    "offset beyond the end": _external(location=BESIDE, offset=2**40),
    "offset beyond 64 bits": _external(location=BESIDE, offset=10**30),
    "offset not aligned": _external(location=BESIDE, offset=1, length=95),
    "offset of 5,000 digits": _external(location=BESIDE, offset="9" * 5000),
    "length below zero": _external(location=BESIDE, length=-1),
    "length beyond the end": _external(location=BESIDE, length=10**9),
    "length of too little": _external(location=BESIDE, length=20),
    "length of nothing": _external(location=BESIDE, length=0),
    "length beyond 64 bits": _external(location=BESIDE, length=10**30),
    "two locations": _external(location=[BESIDE, "../other"]),
    "unknown entries": _external(location=BESIDE, whatever="x", checksum="y"),
}


@damages("no graph")
def _(model: ModelProto) -> None:
    model.ClearField("graph")


@damages("no nodes")
def _(model: ModelProto) -> None:
    del model.graph.node[:]


@damages("no outputs")
def _(model: ModelProto) -> None:
    del model.graph.output[:]


@damages("no inputs")
def _(model: ModelProto) -> None:
    del model.graph.input[:]


@damages("nothing but a name")
def _(model: ModelProto) -> None:
    model.graph.Clear()
    model.graph.name = "g"


def _opset(version: int | None, domain: str = "") -> Damage:
    def damage(model: ModelProto) -> None:
        del model.opset_import[:]
        if version is not None:
            model.opset_import.add(domain=domain, version=version)

    return damage


DAMAGE |= {f"opset {version}": _opset(version) for version in (None, 0, -1, 1, 6, 999, 2**62)}
DAMAGE |= {
    "opset of another domain": _opset(1, "com.example"),
    "opset twice": lambda model: model.opset_import.add(domain="", version=9),
    "IR version 0": lambda model: setattr(model, "ir_version", 0),
    "IR version 999": lambda model: setattr(model, "ir_version", 999),
    "IR version below zero": lambda model: setattr(model, "ir_version", -1),
}


def _node(number: int = 1, **fields: Any) -> Damage:
    def damage(model: ModelProto) -> None:
        node = model.graph.node[number]
        for key, value in fields.items():
            if isinstance(value, list):
                del getattr(node, key)[:]
                getattr(node, key).extend(value)
            else:
                setattr(node, key, value)

    return damage


DAMAGE |= {
    "operator that is none": _node(op_type="Nothing"),
    "operator without a name": _node(op_type=""),
    "domain that is none": _node(domain="com.example"),
    "domain of a long name": _node(domain="x" * 10_000),
    "a cycle": _node(0, input=["y"]),
    "a node that reads itself": _node(0, input=["a"]),
    "a name that nobody makes": _node(input=["a", "nobody"]),
    "a node without inputs": _node(input=[]),
    "a node without outputs": _node(output=[]),
    "a product of one input": _node(input=["a"]),
    "a convolution of two axes": _node(op_type="Conv"),
    "one name made twice": _node(2, output=["a"]),
    "an input that is made again": _node(0, output=["x"]),
    "the weight as an output": _node(output=["w"]),
    "nodes in the wrong order": lambda model: model.graph.node.append(model.graph.node.pop(0)),
    "an input twice": lambda model: model.graph.input.append(model.graph.input[0]),
    "an output twice": lambda model: model.graph.output.append(model.graph.output[0]),
    "a weight twice": lambda model: model.graph.initializer.append(model.graph.initializer[0]),
    "a weight that is an output": lambda model: setattr(model.graph.output[0], "name", "w"),
    "an output that nobody makes": lambda model: setattr(model.graph.output[0], "name", "nobody"),
    "an input without a name": lambda model: setattr(model.graph.input[0], "name", ""),
    "an output without a type": lambda model: model.graph.output[0].ClearField("type"),
    "an input without a type": lambda model: model.graph.input[0].ClearField("type"),
    "an input without a shape": lambda model: model.graph.input[0].type.tensor_type.ClearField("shape"),
    "an input that nobody reads": lambda model: model.graph.input.append(
        helper.make_tensor_value_info("unread", TensorProto.FLOAT, [2**62])
    ),
    "an attribute without a type": lambda model: model.graph.node[1].attribute.add(name="axis"),
    "an attribute of another type": lambda model: model.graph.node[1].attribute.append(
        helper.make_attribute("transA", "x")
    ),
    "a sparse weight": lambda model: model.graph.sparse_initializer.add(),
    "types of values that contradict": lambda model: model.graph.value_info.append(
        helper.make_tensor_value_info("b", TensorProto.INT8, [2**62, -1])
    ),
    "a fixed batch of 10^9": lambda model: setattr(
        model.graph.input[0].type.tensor_type.shape.dim[0], "dim_value", 10**9
    ),
}


def _input(kind: str) -> Damage:
    def damage(model: ModelProto) -> None:
        value, tensor = model.graph.input[0], onnx.TypeProto()
        tensor.tensor_type.elem_type = TensorProto.FLOAT
        value.type.Clear()
        if kind == "map":
            value.type.map_type.key_type = TensorProto.STRING
            value.type.map_type.value_type.CopyFrom(tensor)
        else:
            getattr(value.type, f"{kind}_type").elem_type.CopyFrom(tensor)

    return damage


DAMAGE |= {f"an input that is a {kind}": _input(kind) for kind in ("sequence", "optional", "map")}


@damages("an input that is a sparse tensor")
def _(model: ModelProto) -> None:
    model.graph.input[0].type.sparse_tensor_type.elem_type = TensorProto.FLOAT


@damages("an output that is a sequence")
def _(model: ModelProto) -> None:
    model.graph.node[2].op_type = "SequenceConstruct"
    kind = onnx.TypeProto()
    kind.tensor_type.elem_type = TensorProto.FLOAT
    model.graph.output[0].type.sequence_type.elem_type.CopyFrom(kind)


def _function(calls: str) -> Damage:
    def damage(model: ModelProto) -> None:
        for name, inner in (("F", calls), ("G", "F")):
            node = helper.make_node(inner, ["p"], ["q"], domain="mine")
            imports = [helper.make_opsetid("mine", 1)]
            model.functions.append(helper.make_function("mine", name, ["p"], ["q"], [node], imports))
        model.opset_import.add(domain="mine", version=1)
        model.graph.node[0].op_type, model.graph.node[0].domain = "F", "mine"

    return damage


DAMAGE |= {"a function that calls itself": _function("F"), "functions that call each other": _function("G")}


def _field(number: int, inner: bytes) -> bytes:
    """Write a field of a protobuf message that holds bytes."""
    size, digits = len(inner), []
    while size > 127:
        digits.append(size & 127 | 128)
        size >>= 7
    return bytes([number << 3 | 2, *digits, size]) + inner


def nested(levels: int) -> bytes:
    """Write a model whose first node lies in so many branches within branches, deeper than onnx itself would write."""
    node = helper.make_node("Relu", ["x"], ["a"]).SerializeToString()
    for _ in range(levels):
        graph = _field(1, node) + _field(2, b"branch") + _field(12, _field(1, b"a"))
        branches = [
            _field(5, _field(1, name) + bytes([20 << 3 & 127 | 128, 1, AttributeProto.GRAPH]) + _field(6, graph))
            for name in ((b"then_branch", b"else_branch") if levels < 9 else (b"then_branch",))
        ]
        node = _field(1, b"yes") + _field(2, b"a") + _field(4, b"If") + b"".join(branches)
    model = linear()
    model.graph.node.pop(0)
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "yes"))
    whole = _field(1, node) + bytes(model.graph.SerializeToString())
    model.ClearField("graph")
    return bytes(model.SerializeToString()) + _field(7, whole)


DAMAGE |= {f"{levels} branches within each other": nested(levels) for levels in (1, 8, 20, 45, 1000)}


@damages("metadata twice")
def _(model: ModelProto) -> None:
    for value in ("arm", "\0", "x" * 10**6):
        model.metadata_props.add(key="target", value=value)


@damages("names of 100,000 letters")
def _(model: ModelProto) -> None:
    model.graph.node[0].output[0] = model.graph.node[1].input[0] = "n" * 100_000


def content(name: str) -> bytes:
    """Return the bytes of a file of the corpus."""
    damage = DAMAGE[name]
    if isinstance(damage, bytes):
        return damage
    model = linear()
    damage(model)
    return bytes(model.SerializeToString())
