"""What a graph tells of its output: the operator behind it, and the axis of its classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from distill.export.outputs import tail_of
from distill.outputs import Tail

Constants = dict[str, Any]


def node(kind: str, inputs: str, output: str, **attributes: Any) -> NodeProto:
    return helper.make_node(kind, inputs.split(), [output], **attributes)


def model(
    nodes: Sequence[NodeProto], constants: Constants | None = None, *, rank: int = 2, opset: int = 17
) -> ModelProto:
    """Make a graph of x [n, 4, …, 4] in which z is a linear layer's output of 6 columns, and y what comes out."""
    shape = ["n", *[4] * (rank - 1)]
    stored = {"w": np.zeros((4, 6), np.float32), **(constants or {})}
    graph = helper.make_graph(
        [node("MatMul", "x w", "z"), *nodes],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in stored.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])


def ints(*values: int) -> np.ndarray[Any, Any]:
    return np.array(values, np.int64)


ONE = np.float32(1)
CASES: list[tuple[str, list[NodeProto], Constants, int, int, Tail]] = [
    ("linear", [node("Identity", "z", "y")], {}, 2, 2, Tail("MatMul", "linear", 1)),
    ("bias", [node("Add", "z b", "y")], {"b": np.zeros(6, np.float32)}, 2, 2, Tail("MatMul", "linear", 1, True)),
    ("by position", [node("Identity", "z", "y")], {}, 3, 3, Tail("MatMul", "linear", 2)),
    ("transposed", [node("Transpose", "z", "y", perm=[0, 2, 1])], {}, 3, 3, Tail("MatMul", "linear", 1)),
    ("mean", [node("ReduceMean", "z", "y", axes=[1], keepdims=0)], {}, 3, 2, Tail("MatMul", "linear", 1)),
    ("last", [node("Gather", "z i", "y", axis=1)], {"i": np.int64(-1)}, 3, 2, Tail("MatMul", "linear", 1)),
    ("new axis", [node("Unsqueeze", "z a", "y")], {"a": ints(1)}, 2, 3, Tail("MatMul", "linear", 2)),
    ("new axis last", [node("Unsqueeze", "z a", "y")], {"a": ints(-1)}, 2, 3, Tail("MatMul", "linear", 1)),
    ("reshaped", [node("Reshape", "z s", "y")], {"s": ints(-1, 6, 1)}, 2, 3, Tail("MatMul", "linear", 1)),
    ("merged", [node("Reshape", "z s", "y")], {"s": ints(-1, 24)}, 3, 2, Tail("MatMul", "linear")),
    ("flattened", [node("Flatten", "z", "y")], {}, 3, 2, Tail("MatMul", "linear")),
    ("sigmoid", [node("Sigmoid", "z", "y")], {}, 2, 2, Tail("Sigmoid", "sigmoid")),
    ("hard", [node("HardSigmoid", "z", "y")], {}, 2, 2, Tail("HardSigmoid", "sigmoid")),
    ("cast", [node("Sigmoid", "z", "s"), node("Cast", "s", "y", to=10)], {}, 2, 2, Tail("Sigmoid", "sigmoid")),
    (
        "scaled",
        [node("Sigmoid", "z", "s"), node("Mul", "s k", "y")],
        {"k": ONE},
        2,
        2,
        Tail("Sigmoid", "sigmoid", None, True),
    ),
    (
        "written out",
        [node("Neg", "z", "a"), node("Exp", "a", "b"), node("Add", "b one", "c"), node("Div", "one c", "y")],
        {"one": ONE},
        2,
        2,
        Tail("Sigmoid", "sigmoid"),
    ),
    ("softmax", [node("Softmax", "z", "y")], {}, 2, 2, Tail("Softmax", "softmax", 1)),
    ("by position, softmax", [node("Softmax", "z", "y")], {}, 3, 3, Tail("Softmax", "softmax", 2)),
    ("softmax of positions", [node("Softmax", "z", "y", axis=1)], {}, 3, 3, Tail("Softmax", "softmax", 1)),
    ("log", [node("LogSoftmax", "z", "y", axis=-1)], {}, 2, 2, Tail("LogSoftmax", "log_softmax", 1)),
    (
        "one class",
        [node("Softmax", "z", "s"), node("Gather", "s i", "y", axis=1)],
        {"i": np.int64(1)},
        2,
        1,
        Tail("Softmax", "softmax"),
    ),
    (
        "boxes",
        [node("Sigmoid", "z", "s"), node("Concat", "z s", "y", axis=1)],
        {},
        2,
        2,
        Tail("Concat of MatMul, Sigmoid", "mixed"),
    ),
    ("heads", [node("Concat", "z z", "y", axis=1)], {}, 2, 2, Tail("MatMul", "linear", 1)),
    ("gated", [node("Sigmoid", "z", "s"), node("Mul", "z s", "y")], {}, 2, 2, Tail("Mul", "other")),
    ("two", [node("Add", "z z", "y")], {}, 2, 2, Tail("Add", "linear", 1, True)),
    ("tanh", [node("Tanh", "z", "y")], {}, 2, 2, Tail("Tanh", "other")),
    ("input", [node("Identity", "x", "y")], {}, 2, 2, Tail("an input", "other")),
]


@pytest.mark.parametrize(
    ("nodes", "constants", "rank", "after", "tail"), [pytest.param(*c[1:], id=c[0]) for c in CASES]
)
def test_the_operator_behind_an_output_is_found(
    nodes: list[NodeProto], constants: Constants, rank: int, after: int, tail: Tail
) -> None:
    assert tail_of(model(nodes, constants, rank=rank), "y", after) == tail


def test_a_convolution_has_its_classes_second() -> None:
    nodes = [
        node("Conv", "x k", "c"),
        node("Relu", "c", "r"),
        node("GlobalAveragePool", "r", "g"),
        node("Flatten", "g", "y"),
    ]
    kernel = {"k": np.zeros((5, 4, 3, 3), np.float32)}
    assert tail_of(model(nodes[:1], kernel, rank=4), "c", 4) == Tail("Conv", "linear", 1)
    assert tail_of(model(nodes, kernel, rank=4), "y", 2) == Tail("Conv", "linear", 1)


@pytest.mark.parametrize(("opset", "rank", "axis"), [(11, 2, 1), (11, 3, None), (13, 3, 2)])
def test_before_opset_13_a_softmax_takes_all_axes_from_the_second_on(opset: int, rank: int, axis: int | None) -> None:
    assert tail_of(model([node("Softmax", "z", "y")], rank=rank, opset=opset), "y", rank).axis == axis
