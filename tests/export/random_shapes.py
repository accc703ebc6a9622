"""Steps of random graphs that move numbers about, compute shapes, or have several outputs."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from onnx import TensorProto, helper
from onnx import numpy_helper as arrays
from random_graphs import BATCH, FLOAT, INT64, Builder, Skip, Step, Value


def split(g: Builder) -> None:
    """Split evenly, by sizes, or unevenly by a number of outputs, with outputs that nobody reads."""
    x = g.value(ranks=(2, 3, 4), least=2)
    axis = int(g.pick([axis for axis in range(1, len(x.shape)) if x.shape[axis] > 1]))
    size, parts = x.shape[axis], int(g.pick([2, 3]))
    if g.chance(0.5) and size >= parts:
        sizes = [1] * (parts - 1) + [size - parts + 1]
        g.add("Split", [x.name, g.constant(sizes, np.int64)], parts, axis=axis)
    elif size % parts == 0 or (g.opset >= 18 and size > parts and math.ceil(size / parts) * (parts - 1) < size):
        g.add("Split", [x.name], parts, axis=axis, **({"num_outputs": parts} if g.opset >= 18 else {}))


def concat(g: Builder) -> None:
    """Join tensors along an axis."""
    x = g.value(ranks=(2, 3, 4), least=1)
    axis = int(g.rng.integers(1, len(x.shape)))
    same = [v for v in g.values if v.kind == FLOAT and len(v.shape) == len(x.shape)]
    same = [v for v in same if v.shape[:axis] + v.shape[axis + 1 :] == x.shape[:axis] + x.shape[axis + 1 :]]
    g.add(
        "Concat",
        [x.name, *(g.pick(same).name for _ in range(int(g.pick([1, 2]))))],
        axis=axis if g.chance(0.5) else axis - len(x.shape),
    )


def slice_(g: Builder) -> None:
    """Cut a piece out, forwards or backwards, with axes and steps or without."""
    x = g.value(ranks=(2, 3, 4), least=2)
    axis = int(g.rng.integers(1, len(x.shape)))
    start, end, step = g.pick([(0, -1, 1), (1, 2**31 - 1, 1), (-1, -(2**31), -1), (0, 1, 1), (1, 100, 2)])
    numbers = [g.constant([number], np.int64) for number in (start, end, axis, step)]
    g.add("Slice", [x.name, *numbers[: 4 if step != 1 else 3]])


def gather(g: Builder) -> None:
    """Pick by constant positions, one or several, some from behind."""
    x = g.value(ranks=(2, 3, 4), least=2)
    axis = int(g.rng.integers(1, len(x.shape)))
    where = g.pick([1, -1, [0, 1], [[0, -1]], [0, 0]])
    g.add("Gather", [x.name, g.constant(where, np.int64)], axis=axis)


def lookup(g: Builder) -> None:
    """Look rows of a table up that is large enough to be narrowed."""
    x = g.value(ranks=(2,), least=1)
    g.continuous = False
    clipped = g.add("Clip", [x.name, g.constant(0.0), g.constant(3.0)])[0]
    ids = g.add("Cast", [clipped.name], to=INT64)[0]
    g.add("Gather", [g.constant(g.normal(512, 32), plain=True), ids.name])


def transpose(g: Builder) -> None:
    """Turn axes; without a permutation all of them."""
    x = g.value(ranks=(2, 3, 4))
    rest = [int(axis) for axis in 1 + g.rng.permutation(len(x.shape) - 1)]
    g.add("Transpose", [x.name], **({} if g.chance(0.1) else {"perm": [0, *rest]}))


def reshape(g: Builder) -> None:
    """Give a constant shape, with 0 and -1, or with a batch that is taken from somewhere."""
    x = g.value(ranks=(2, 3, 4), least=1)
    size = math.prod(x.shape[1:])
    if x.shape[0] != BATCH:
        raise Skip
    way = g.rng.random()
    if way < 0.3:
        g.add("Reshape", [x.name, g.constant(g.pick([[0, -1], [-1, size], [0, 1, -1]]), np.int64)])
    elif way < 0.5:
        g.add("Flatten", [x.name], **({"axis": int(g.pick([1, 1, len(x.shape) - 1, -1]))} if g.chance(0.6) else {}))
    else:
        target = g.pick([[size], [1, size], [size, 1]])
        batch = batch_size(g, x)
        rest = [g.constant([n], np.int64) for n in target] if g.chance(0.5) else [g.constant(target, np.int64)]
        joined = g.add("Concat", [batch, *rest], axis=0, shapes=[(INT64, (1 + len(target),))])[0]
        g.values.pop()  # of no use but as a shape
        g.add("Reshape", [x.name, joined.name], shapes=[(FLOAT, (BATCH, *target))])


def batch_size(g: Builder, x: Value) -> str:
    """Compute how many rows there are, as a list of one number, in one of the ways of exporters."""
    way = g.rng.random()
    one = (INT64, (1,))
    if way < 0.3 and g.opset >= 15:
        name = g.add("Shape", [x.name], start=0, end=1, shapes=[one])[0].name
        g.values.pop()
        return name
    shape = g.add("Shape", [x.name], shapes=[(INT64, (len(x.shape),))])[0].name
    g.values.pop()
    if way < 0.6:
        bounds = [g.constant([number], np.int64) for number in (0, 1, 0)]
        name = g.add("Slice", [shape, *bounds], shapes=[one])[0].name
    else:
        row = g.add("Gather", [shape, g.constant(0, np.int64)], axis=0, shapes=[(INT64, ())])[0].name
        g.values.pop()
        name = g.add("Unsqueeze", [row, g.constant([0], np.int64)], shapes=[one])[0].name
    g.values.pop()
    return name


def filled(g: Builder) -> None:
    """Make numbers of a shape that is computed."""
    x = g.value(ranks=(2, 3))
    shape = g.add("Shape", [x.name], shapes=[(INT64, (len(x.shape),))])[0]
    g.values.pop()
    value = {"value": arrays.from_array(np.array([g.pick([0.0, -0.0, 2.0])], np.float32), "v")} if g.chance(0.7) else {}
    made = g.add("ConstantOfShape", [shape.name], shapes=[(FLOAT, x.shape)], **value)[0]
    g.add("Add", [x.name, made.name])


def expand(g: Builder) -> None:
    """Repeat along new or single axes."""
    x = g.value(ranks=(1, 2, 3), least=1)
    g.add("Expand", [x.name, g.constant([2, *[1] * len(x.shape)], np.int64)])


def squeeze(g: Builder) -> None:
    """Add an axis of one and perhaps take it away again."""
    x = g.value(ranks=(1, 2, 3))
    made = g.add("Unsqueeze", [x.name, g.constant([g.pick([1, -1, len(x.shape)])], np.int64)])[0]
    single = [axis for axis, size in enumerate(made.shape) if size == 1 and axis > 0]
    if single and g.chance(0.6):
        g.add("Squeeze", [made.name, g.constant(single, np.int64)] if g.chance(0.8) else [made.name])


def top_k(g: Builder) -> None:
    """The largest numbers and where they were."""
    x = g.value(ranks=(2, 3), least=2)
    g.continuous = False
    g.add("TopK", [x.name, g.constant([2], np.int64)], 2, axis=-1)


def argmax(g: Builder) -> None:
    """Where the largest number is."""
    x = g.value(ranks=(2, 3), least=1)
    g.continuous = False
    g.add("ArgMax", [x.name], axis=int(g.pick([-1, 1])), keepdims=int(g.pick([0, 1])))


def recurrent(g: Builder) -> None:
    """LSTM or GRU, of whose outputs any may be left out or unread."""
    x = g.value(ranks=(3,), least=1)
    size, hidden = x.shape[2], 3
    lstm = g.chance(0.5)
    gates = 4 if lstm else 3
    weights = [g.constant(0.5 * g.normal(1, gates * hidden, width)) for width in (size, hidden)]
    bias = [g.constant(g.normal(1, 2 * gates * hidden))] if g.chance(0.5) else []
    outputs = int(g.pick([1, 2, 3])) if lstm else int(g.pick([1, 2]))
    made = g.add("LSTM" if lstm else "GRU", [x.name, *weights, *bias], outputs, hidden_size=hidden)
    if outputs > 1 and g.chance(0.3):  # the sequence itself is left out
        g.nodes[-1].output[0] = ""
        g.values = [value for value in g.values if value.name != made[0].name]


def einsum(g: Builder) -> None:
    """A product by its formula."""
    x = g.value(ranks=(2,), least=1)
    g.add("Einsum", [x.name, g.constant(g.normal(x.shape[1], 4))], equation="bi,ij->bj")


def sequence(g: Builder) -> None:
    """Through a sequence of tensors and back."""
    x = g.value(ranks=(2, 3), least=2)
    name, out = g.name(), (FLOAT, (*x.shape[:-1], 1))
    g.nodes.append(helper.make_node("SplitToSequence", [x.name], [name], axis=-1))
    copy = g.name()
    g.nodes.append(helper.make_node("Identity", [name], [copy]))
    if g.opset >= 14:
        name = copy
    g.add("SequenceAt", [name, g.constant(g.pick([0, -1]), np.int64)], shapes=[out])


def text(g: Builder) -> None:
    """Words, of which two lists are one when they are joined, looked up and compared."""
    if g.opset < 19:
        raise Skip
    words = g.pick([[b"a\0b", b"c"], [b"a", b"b\0c"], [b"na\xc3\xafve", b""]])
    names = [g.name(), g.name()]
    for name, listed in zip(names, (words, [b"a", b"b\0c"]), strict=True):
        g.stored.append(helper.make_tensor(name, TensorProto.STRING, [2], listed))
    same = g.add("Equal", names, shapes=[(TensorProto.BOOL, (2,))])[0]
    g.add("Cast", [same.name], to=FLOAT)


def odd_constants(g: Builder) -> None:
    """Constants of the rarer types, brought to float32; infinite and empty ones, too."""
    x = g.value(ranks=(2,), least=1)
    kind = g.pick([TensorProto.BFLOAT16, TensorProto.FLOAT16, TensorProto.UINT8, TensorProto.BOOL, TensorProto.INT32])
    name = g.name()
    numbers: list[Any] = [1, 0, 1]
    g.stored.append(helper.make_tensor(name, kind, [3, 1], numbers))
    made = g.add("Cast", [name], to=FLOAT, shapes=[(FLOAT, (3, 1))])[0]
    other = g.add("Concat", [made.name, g.constant(np.zeros((0, 1)), plain=True)], axis=0, shapes=[(FLOAT, (3, 1))])[0]
    g.add("MatMul", [other.name, g.constant(g.normal(1, x.shape[1]))], shapes=[(FLOAT, (3, x.shape[1]))])


SHAPE_STEPS: list[tuple[Step, float]] = [
    (split, 2), (concat, 1.5), (slice_, 1), (gather, 1), (lookup, 0.3), (transpose, 1.5), (reshape, 2), (filled, 0.5),
    (expand, 0.3), (squeeze, 1), (top_k, 0.5), (argmax, 0.3), (recurrent, 0.5), (einsum, 0.2), (sequence, 0.3),
    (text, 0.3), (odd_constants, 0.3),
]  # fmt: skip
