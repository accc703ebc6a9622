"""Steps that random graphs are made of: each adds one operator of the standard, in one of its many forms."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from onnx import TensorProto, helper
from random_graphs import BOOL, FLOAT, INT64, Builder, Skip, Step, Value, add_input

_UNARY: dict[str, tuple[int, dict[str, Any]]] = {
    "Relu": (1, {}), "Neg": (1, {}), "Abs": (1, {}), "Sigmoid": (1, {}), "Tanh": (1, {}), "Softplus": (1, {}),
    "Erf": (9, {}), "LeakyRelu": (1, {"alpha": 0.01}), "Elu": (1, {"alpha": 1.0}), "Sin": (7, {}), "Selu": (1, {}),
    "HardSigmoid": (1, {"alpha": 0.2, "beta": 0.5}), "HardSwish": (14, {}), "Identity": (1, {}), "Mish": (18, {}),
    "Gelu": (20, {"approximate": "tanh"}), "ThresholdedRelu": (10, {"alpha": 0.0}), "Softsign": (1, {}),
}  # fmt: skip
_MEANS = ("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL2", "ReduceL1", "ReduceLogSumExp")


def unary(g: Builder) -> None:
    """A function of each number, with attributes written out or left to their defaults."""
    op, (since, attributes) = g.pick(list(_UNARY.items()))
    if since > g.opset:
        raise Skip
    g.add(op, [g.value().name], **(attributes if g.chance(0.5) else {}))


def identities(g: Builder) -> None:
    """A chain of copies."""
    value = g.value()
    for _ in range(int(g.rng.integers(1, 4))):
        value = g.add("Identity", [value.name])[0]


def binary(g: Builder) -> None:
    """A sum, difference or product with another tensor, itself, or a constant."""
    value, op = g.value(), g.pick(["Add", "Sub", "Mul", "Max", "Min"])
    others = [v for v in g.values if v.kind == FLOAT and v.shape == value.shape]
    way = g.rng.random()
    other = g.pick(others).name if way < 0.4 else g.constant(g.normal(*value.shape[1:])) if way < 0.7 else ""
    other = other or g.constant(g.pick([0.0, -0.0, 1.0, 0.5, 2.0]))
    g.add(op, [value.name, other] if g.chance(0.7) else [other, value.name])


def division(g: Builder) -> None:
    """A division by what is not near zero."""
    value = g.value()
    if g.chance(0.5):
        g.add("Div", [value.name, g.constant(g.pick([2.0, math.sqrt(2.0), 0.5]))])
        return
    size = g.add("Abs", [g.value().name])[0]
    g.add("Div", [g.pick([value.name, g.constant(1.0)]), g.add("Add", [size.name, g.constant(1.0)])[0].name])


def gelu(g: Builder) -> None:
    """GELU written out, with parts that something else may read."""
    x = g.value()
    erf = g.add("Erf", [g.add("Div", [x.name, g.constant(math.sqrt(2.0))])[0].name])[0]
    above = g.add("Add", [erf.name, g.constant(1.0)])[0]
    half = g.add("Mul", [g.constant(0.5), above.name])[0]
    g.add("Mul", [x.name, half.name])


def convolution(g: Builder) -> None:
    """Conv or ConvTranspose with strides, groups, dilations and pads of all kinds."""
    x = g.value(ranks=(4,), least=1)
    channels, sides = x.shape[1], x.shape[2:]
    transposed = g.chance(0.2)
    group = int(g.pick([n for n in (1, 1, channels, 2) if channels % n == 0]))
    outputs = int(g.pick([1, 2, 3])) * (1 if transposed else group)
    kernel = [int(g.pick([1, 2, 3])) for _ in sides]
    shape = (channels, outputs, *kernel) if transposed else (outputs, channels // group, *kernel)
    weight = g.constant(g.normal(*shape) / math.sqrt(channels * math.prod(kernel)))
    attributes: dict[str, Any] = {"group": group} if group > 1 or g.chance(0.3) else {}
    if g.chance(0.6):
        attributes["kernel_shape"] = kernel
    attributes |= window(g, kernel, dilated=True)
    total = outputs * group if transposed else outputs
    bias = [g.constant(g.normal(total))] if g.chance(0.6) else []
    g.add("ConvTranspose" if transposed else "Conv", [x.name, weight, *bias], **attributes)


def window(g: Builder, kernel: list[int], *, dilated: bool) -> dict[str, Any]:
    """Draw how a window moves, with what the standard says anyway written out or not."""
    found: dict[str, Any] = {}
    way = g.rng.random()
    if way < 0.3:
        found["pads"] = [int(g.rng.integers(0, min(k, 2))) for k in kernel * 2]
    elif way < 0.5:
        found["auto_pad"] = g.pick(["SAME_UPPER", "SAME_LOWER", "VALID", "NOTSET"])
    elif way < 0.6:
        found["pads"] = [0] * 2 * len(kernel)
    if g.chance(0.4):
        found["strides"] = [int(g.pick([1, 1, 2])) for _ in kernel]
    if dilated and g.chance(0.2):
        found["dilations"] = [1] * len(kernel) if g.chance(0.5) else [2] * len(kernel)
    return found


def pool(g: Builder) -> None:
    """A pool, with indices that may be read by nobody."""
    x = g.value(ranks=(4,), least=2)
    op = g.pick(["MaxPool", "MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "LpPool"])
    if op.startswith("Global"):
        g.add(op, [x.name])
        return
    kernel = [int(g.pick([1, 2, 2])) for _ in x.shape[2:]]
    attributes = {"kernel_shape": kernel} | window(g, kernel, dilated=False)
    if attributes.get("auto_pad", "").startswith("SAME"):  # onnxruntime fails at windows that leave gaps
        attributes.pop("strides", None)
    if op != "LpPool" and g.chance(0.3):
        attributes["ceil_mode"] = int(g.pick([0, 1]))
    if op == "AveragePool" and g.chance(0.4):
        attributes["count_include_pad"] = int(g.pick([0, 1]))
    g.add(op, [x.name], 2 if op == "MaxPool" and g.chance(0.4) else 1, **attributes)


def product(g: Builder) -> None:
    """Gemm or MatMul with constant or computed factors."""
    x = g.value(ranks=(2, 3, 4), least=1)
    inner, outer = x.shape[-1], int(g.pick([1, 3, 4, 8]))
    weight = g.normal(inner, outer) / math.sqrt(inner)
    if len(x.shape) > 2 or g.chance(0.5):
        if len(x.shape) > 2 and g.chance(0.2):
            turned = [*range(len(x.shape) - 2), len(x.shape) - 1, len(x.shape) - 2]
            g.add("MatMul", [x.name, g.add("Transpose", [x.name], perm=turned)[0].name])
            return
        made = g.add("MatMul", [x.name, g.constant(weight)])[0]
        if g.chance(0.6):
            g.add(
                "Add",
                [made.name, g.constant(g.normal(outer))] if g.chance(0.5) else [g.constant(g.normal(outer)), made.name],
            )
        return
    turned = bool(g.chance(0.5))
    attributes: dict[str, Any] = {"transB": 1} if turned else {"transB": 0} if g.chance(0.3) else {}
    if g.chance(0.3):
        attributes |= {"alpha": float(g.pick([1.0, 0.5])), "beta": float(g.pick([1.0, 2.0]))}
    bias = [[], [g.constant(g.normal(outer))], [g.constant(g.normal(1, outer))], [g.constant(0.5)]][
        int(g.rng.integers(4))
    ]
    g.add("Gemm", [x.name, g.constant(weight.T if turned else weight), *bias], **attributes)


def shared_weights(g: Builder) -> None:
    """Two products of one weight, which something else may read too."""
    x = g.value(ranks=(2, 3), least=1)
    size = x.shape[-1]
    weight = g.constant(g.normal(size, size) / math.sqrt(size), plain=True)
    bias = g.constant(g.normal(size), plain=True)
    made = x
    for _ in range(2):
        made = g.add("MatMul", [made.name, weight])[0]
        made = g.add("Relu", [g.add("Add", [made.name, bias])[0].name])[0]
    if g.chance(0.5):
        g.add("Mul", [made.name, bias])
    if g.chance(0.3):
        g.add("Gather", [weight, g.constant([0, -1], np.int64)], axis=0)


def chain(g: Builder) -> None:
    """Convolution, normalisation, rectifier and convolution, as networks have them."""
    x = g.value(ranks=(4,), least=1)
    channels = x.shape[1]
    for count in range(2):
        kernel = int(g.pick([1, 3]))
        shape = (4, channels, kernel, kernel)
        weight = g.constant(g.normal(*shape) / math.sqrt(channels * kernel * kernel), plain=g.chance(0.7))
        x, channels = g.add("Conv", [x.name, weight], pads=[kernel // 2] * 4)[0], 4
        if count == 0 and g.chance(0.5):
            x = batch_norm_of(g, x)
        x = g.add(g.pick(["Relu", "LeakyRelu", "HardSwish" if g.opset > 13 else "Relu"]), [x.name])[0]
    x = mean_of(g, x, (2, 3)) if g.chance(0.7) else g.add("GlobalAveragePool", [x.name])[0]
    if len(x.shape) == 4:
        x = g.add("Flatten", [x.name])[0]
    g.add("Gemm", [x.name, g.constant(g.normal(x.shape[1], 3)), g.constant(g.normal(3))])


def batch_norm_of(g: Builder, x: Value) -> Value:
    """Normalise by statistics of training."""
    size = x.shape[1]
    parts = [np.abs(g.normal(size)) + 0.5, g.normal(size), g.normal(size), np.abs(g.normal(size)) + 0.5]
    attributes = {"epsilon": 1e-5, "momentum": 0.9} if g.chance(0.5) else {"epsilon": 1e-3}
    return g.add("BatchNormalization", [x.name, *(g.constant(part) for part in parts)], **attributes)[0]


def batch_norm(g: Builder) -> None:
    """A batch normalisation wherever it is."""
    batch_norm_of(g, g.value(ranks=(2, 3, 4), least=1))


def norm(g: Builder) -> None:
    """Layer, group or instance normalisation, and a mean beside it that may be read."""
    way = g.rng.random()
    if way < 0.6 and g.opset >= 17:
        x = g.value(ranks=(2, 3), least=2)
        axis = int(g.pick([-1, -1, len(x.shape) - 1]))
        shape = x.shape[-1:]
        shift = [g.constant(g.normal(*shape))] if g.chance(0.7) else []
        gain = g.constant(1 + 0.3 * g.normal(*shape))
        g.add("LayerNormalization", [x.name, gain, *shift], int(g.pick([1, 1, 2, 3])), axis=axis)
        return
    x = g.value(ranks=(3, 4), least=2)
    size = x.shape[1]
    if way < 0.8 and g.opset >= 21:
        g.add("GroupNormalization", [x.name, g.constant(g.normal(size)), g.constant(g.normal(size))], num_groups=1)
        return
    g.add("InstanceNormalization", [x.name, g.constant(g.normal(size)), g.constant(g.normal(size))])


def softmax(g: Builder) -> None:
    """Softmax over some axis."""
    x = g.value(ranks=(1, 2, 3, 4), least=1)
    g.add(
        g.pick(["Softmax", "LogSoftmax"]),
        [x.name],
        **({"axis": int(g.pick([-1, len(x.shape) - 1]))} if g.chance(0.6) else {}),
    )


def clip(g: Builder) -> None:
    """Clip with both bounds, one, or none; a bound that is left out in the middle is an empty name."""
    x, low, high = g.value(), g.constant(g.pick([-1.0, 0.0])), g.constant(g.pick([1.0, 6.0]))
    g.add("Clip", g.pick([[x.name, low, high], [x.name, "", high], [x.name, low], [x.name], [x.name, low, ""]]))


def pad(g: Builder) -> None:
    """Pad in all its modes."""
    x = g.value(ranks=(2, 3, 4), least=3)
    mode = g.pick(["constant", "reflect", "edge", "constant"])
    pads = np.zeros((2, len(x.shape)), np.int64)
    pads[:, -1] = g.rng.integers(0, 2, 2)
    more = [g.constant(g.pick([0.0, 1.0, -2.0]))] if mode == "constant" and g.chance(0.5) else []
    g.add(
        "Pad",
        [x.name, g.constant(pads.reshape(-1), np.int64), *more],
        **({"mode": mode} if mode != "constant" or g.chance(0.5) else {}),
    )


def resize(g: Builder) -> None:
    """Resize by scales, with an empty name for the region."""
    x = g.value(ranks=(4,), least=2)
    scales = g.constant([1.0, 1.0, 2.0, float(g.pick([2.0, 1.0]))])
    mode = g.pick(["nearest", "linear"])
    how = g.pick(["half_pixel", "asymmetric", "align_corners"])
    g.add("Resize", [x.name, "", scales], mode=mode, coordinate_transformation_mode=how)


def reduction(g: Builder) -> None:
    """A reduction whose axes are an attribute, an input or left out."""
    x = g.value(ranks=(1, 2, 3, 4), least=1)
    axes = [int(axis) for axis in g.rng.permutation(len(x.shape))[: int(g.rng.integers(1, len(x.shape) + 1))]]
    if g.chance(0.4) and len(x.shape) == 4:
        axes = g.pick([[2, 3], [-1, -2], [3, 2]])
    reduce(g, g.pick(_MEANS), x, axes if g.chance(0.9) else None)


def reduce(g: Builder, op: str, x: Value, axes: list[int] | None) -> Value:
    """Reduce over axes as the opset has it."""
    attributes: dict[str, Any] = {"keepdims": int(g.pick([0, 1]))} if g.chance(0.8) else {}
    if axes is None:
        return g.add(op, [x.name], **attributes)[0]
    if g.opset >= (13 if op == "ReduceSum" else 18):
        return g.add(op, [x.name, g.constant(axes, np.int64)], **attributes)[0]
    return g.add(op, [x.name], axes=axes, **attributes)[0]


def mean_of(g: Builder, x: Value, axes: tuple[int, ...]) -> Value:
    """Take a mean, of floats."""
    return reduce(g, "ReduceMean", x, list(axes))


def integer_mean(g: Builder) -> None:
    """A mean of integers, which is one of integers."""
    x = g.value(ranks=(4,), least=1)
    g.continuous = False
    reduce(g, "ReduceMean", g.add("Cast", [x.name], to=TensorProto.INT32)[0], [2, 3])


def cast(g: Builder) -> None:
    """To another type and back."""
    x = g.value()
    kind = g.pick([TensorProto.DOUBLE, TensorProto.FLOAT16, INT64, BOOL])
    g.continuous &= kind == TensorProto.DOUBLE
    g.add("Cast", [g.add("Cast", [x.name], to=kind)[0].name], to=FLOAT)


def where(g: Builder) -> None:
    """One of two numbers, by a comparison."""
    x = g.value()
    g.continuous = False
    positive = g.add(g.pick(["Greater", "Less", "GreaterOrEqual"]), [x.name, g.constant(0.0)])[0]
    g.add("Where", [positive.name, x.name, g.constant(g.pick([0.0, -1.0]))])


def dropout(g: Builder) -> None:
    """Dropout of a graph that only answers, with a mask."""
    ratio = [g.constant(0.5)] if g.chance(0.5) else []
    training = [g.constant(False, np.bool_)] if ratio and g.chance(0.5) else []
    g.add("Dropout", [g.value().name, *ratio, *training], int(g.pick([1, 2])))


def overridable(g: Builder) -> None:
    """A constant that the caller may replace."""
    x = g.value(ranks=(2,), least=1)
    name = g.constant(g.normal(x.shape[-1]), plain=True)
    g.inputs.append(helper.make_tensor_value_info(name, FLOAT, list(g.stored[-1].dims)))
    g.add("Add", [x.name, name])


def unread_input(g: Builder) -> None:
    """Another input, which may be read by nobody."""
    if len(g.inputs) < 4:
        add_input(g)


def dequantized(g: Builder) -> None:
    """A weight that is stored in 8 bits, by which onnxruntime may multiply in integers."""
    x = g.value(ranks=(2,), least=1)
    g.continuous = False
    stored = g.constant(g.rng.integers(-100, 100, (x.shape[-1], 3)), np.int8)
    zero = [g.constant(0, np.int8)] if g.chance(0.5) else []
    weight = g.add("DequantizeLinear", [stored, g.constant(0.01), *zero])[0]
    g.add("MatMul", [x.name, weight.name])


def random_numbers(g: Builder) -> None:
    """Noise with a seed: two of the same seed are two nodes all the same."""
    x = g.value()
    noise = g.add("RandomNormalLike", [x.name], seed=1.0, scale=0.1)[0]
    g.add("Add", [x.name, noise.name])


STEPS: list[tuple[Step, float]] = [
    (unary, 4), (identities, 1), (binary, 3), (division, 1), (gelu, 1), (convolution, 2), (pool, 2), (product, 3),
    (shared_weights, 1), (chain, 1), (batch_norm, 1), (norm, 1.5), (softmax, 0.7), (clip, 1), (pad, 1), (resize, 0.5),
    (reduction, 2), (integer_mean, 0.2), (cast, 0.3), (where, 0.5), (dropout, 0.7), (overridable, 0.3),
    (unread_input, 0.3), (dequantized, 0.15), (random_numbers, 0.1),
]  # fmt: skip
