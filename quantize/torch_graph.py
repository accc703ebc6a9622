"""An exported ONNX graph as a PyTorch module, so that it can be trained as it will run.

Training for int8 has to round where the integer graph rounds. A module of somebody's own says nothing about that; its
exported graph does, tensor by tensor. So the graph itself is what is trained: its weights are parameters, every
operator is a few lines of torch, and ``observe`` is called on each tensor as it is read.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
from torch import Tensor, nn
from torch.nn import functional

from distill.errors import UserError
from distill.export.graph import copy_of

Observe = Callable[[str, Tensor], Tensor]
_TYPES: dict[int, torch.dtype] = {
    TensorProto.FLOAT: torch.float32,
    TensorProto.INT64: torch.int64,
    TensorProto.INT32: torch.int32,
    TensorProto.BOOL: torch.bool,
    TensorProto.DOUBLE: torch.float64,
}


class GraphModule(nn.Module):
    """A float32 graph that runs in torch.

    Weights and biases of Conv, Gemm and MatMul, and gains and shifts of normalisations, are parameters by the name of
    their initializer (dots and slashes replaced); all other constants are buffers. ``observe(name, value)`` may replace
    every computed tensor and every input for its readers, but for those (node, tensor) in ``unobserved``, and
    ``observe_weight(name, value)`` every parameter.
    """

    def __init__(self, model: ModelProto) -> None:
        super().__init__()
        graph = model.graph
        unknown = sorted({node.op_type for node in graph.node if node.op_type not in OPERATORS or node.domain})
        if unknown:
            raise UserError(f"model: its operators {', '.join(unknown)} cannot be trained here")
        several = sorted({node.op_type for node in graph.node if len(node.output) > 1} - {"Split"})
        if several:
            raise UserError(f"model: second outputs of {', '.join(several)} cannot be trained here")
        self.nodes = [NodeProto.FromString(node.SerializeToString()) for node in graph.node]
        self.attributes = [{one.name: helper.get_attribute_value(one) for one in node.attribute} for node in graph.node]
        self.inputs = [value.name for value in graph.input]
        self.outputs = [value.name for value in graph.output]
        self.places: dict[str, str] = {}
        trained = {name for node in graph.node for name in _trained(node)}
        for number, tensor in enumerate(graph.initializer):
            if tensor.data_type not in _TYPES:
                kind = TensorProto.DataType.Name(tensor.data_type)
                raise UserError(f"model: constants of the type {kind}, as {tensor.name!r}, cannot be trained here")
            value = torch.from_numpy(np.array(numpy_helper.to_array(tensor)))
            place = f"{re.sub(r'[^0-9A-Za-z_]', '_', tensor.name)}_{number}"
            self.places[tensor.name] = place
            if tensor.name in trained and value.dtype == torch.float32:
                self.register_parameter(place, nn.Parameter(value))
            else:
                self.register_buffer(place, value)
        self.observe: Observe | None = None
        self.observe_weight: Observe | None = None
        self.unobserved: Collection[tuple[str, str]] = ()

    def weight(self, name: str) -> Tensor:
        """Return a parameter or buffer by the name of its initializer."""
        value = getattr(self, self.places[name])
        assert isinstance(value, Tensor)
        return value

    def forward(self, *args: Tensor, **kwargs: Tensor) -> Tensor:
        """Run the graph on its inputs, by position or name, and return its first output."""
        values: dict[str, Tensor] = dict(zip(self.inputs, args, strict=False)) | kwargs
        observed: dict[str, Tensor] = {}
        for name in self.places:
            value = self.weight(name)
            is_parameter = isinstance(value, nn.Parameter)
            values[name] = self.observe_weight(name, value) if is_parameter and self.observe_weight else value
            observed[name] = values[name]
        for node, attributes in zip(self.nodes, self.attributes, strict=True):
            given = [self._read(node.name, name, values, observed) if name else None for name in node.input]
            made = OPERATORS[node.op_type](given, attributes, len(node.output))
            values.update(zip(node.output, made if isinstance(made, tuple | list) else (made,), strict=False))
        return values[self.outputs[0]]

    def _read(self, reader: str, name: str, values: Mapping[str, Tensor], observed: dict[str, Tensor]) -> Tensor:
        """Return a tensor as a node reads it; what is observed is observed once for all readers."""
        if self.observe is None or (reader, name) in self.unobserved:
            return values[name]
        if name not in observed:
            observed[name] = self.observe(name, values[name])
        return observed[name]

    def written_into(self, model: ModelProto) -> ModelProto:
        """Return a copy of the graph with the parameters as they are now."""
        result = copy_of(model)
        for tensor in result.graph.initializer:
            value = self.weight(tensor.name)
            if isinstance(value, nn.Parameter):
                tensor.CopyFrom(numpy_helper.from_array(value.detach().cpu().numpy(), tensor.name))
        return result


def _trained(node: NodeProto) -> Sequence[str]:
    """Name the inputs of a node that are weights, where they are constants."""
    if node.op_type in ("Conv", "Gemm", "LayerNormalization"):
        return list(node.input[1:3])
    return list(node.input) if node.op_type in ("MatMul", "Add") else []


# Operators: (inputs, attributes, number of outputs) -> output, or outputs ---------------------------------------------

Given = Sequence[Any]  # tensors, and None for inputs that are left out
Attributes = Mapping[str, Any]


def _text(value: Any, default: str) -> str:
    return value.decode() if isinstance(value, bytes) else value or default


def _ints(value: Any) -> list[int]:
    return [int(one) for one in (value.tolist() if isinstance(value, Tensor) else value)]


def _padded(x: Tensor, attributes: Attributes, kernel: Sequence[int], fill: float = 0.0) -> Tensor:
    """Pad as the attributes of a window say, which may be uneven."""
    if _text(attributes.get("auto_pad"), "NOTSET") != "NOTSET":
        raise UserError("model: auto_pad cannot be trained here; export with explicit pads")
    pads = list(attributes.get("pads", [0] * (2 * len(kernel))))
    half = len(pads) // 2
    if not any(pads):
        return x
    return functional.pad(x, [one for i in reversed(range(half)) for one in (pads[i], pads[half + i])], value=fill)


def _conv(given: Given, attributes: Attributes, outputs: int) -> Tensor:
    x, weight, bias = given[0], given[1], given[2] if len(given) > 2 else None
    convolve = {3: functional.conv1d, 4: functional.conv2d, 5: functional.conv3d}[x.ndim]
    spatial = list(weight.shape[2:])
    ones = [1] * len(spatial)
    strides, dilations = list(attributes.get("strides", ones)), list(attributes.get("dilations", ones))
    padded = _padded(x, attributes, spatial)
    return convolve(padded, weight, bias, strides, 0, dilations, int(attributes.get("group", 1)))


def _gemm(given: Given, attributes: Attributes, outputs: int) -> Tensor:
    a: Tensor = given[0].T if attributes.get("transA", 0) else given[0]
    b: Tensor = given[1].T if attributes.get("transB", 0) else given[1]
    product = float(attributes.get("alpha", 1.0)) * (a @ b)
    return product if len(given) < 3 or given[2] is None else product + float(attributes.get("beta", 1.0)) * given[2]


def _pool(given: Given, attributes: Attributes, outputs: int, *, largest: bool) -> Tensor:
    x, kernel = given[0], list(attributes["kernel_shape"])
    strides = list(attributes.get("strides", [1] * len(kernel)))
    if attributes.get("ceil_mode", 0) or len(kernel) != 2:
        raise UserError("model: a pool with ceil_mode, or not over two axes, cannot be trained here")
    if largest:
        padded = _padded(x, attributes, kernel, -torch.inf)
        return functional.max_pool2d(padded, kernel, strides, 0, list(attributes.get("dilations", [1, 1])))
    if set(attributes.get("dilations", [1])) != {1}:
        raise UserError("model: an AveragePool with dilations cannot be trained here")
    pads = list(attributes.get("pads", [0] * 4))
    if any(pads) and not attributes.get("count_include_pad", 0):
        counted = functional.avg_pool2d(_padded(torch.ones_like(x), attributes, kernel), kernel, strides)
        return functional.avg_pool2d(_padded(x, attributes, kernel), kernel, strides) / counted
    return functional.avg_pool2d(_padded(x, attributes, kernel), kernel, strides)


def _batch_norm(given: Given, attributes: Attributes, outputs: int) -> Tensor:
    x, gain, shift, mean, variance = given[:5]
    return functional.batch_norm(x, mean, variance, gain, shift, False, 0.0, float(attributes.get("epsilon", 1e-5)))


def _layer_norm(given: Given, attributes: Attributes, outputs: int) -> Tensor:
    x, axis = given[0], int(attributes.get("axis", -1))
    shape = list(x.shape[axis % x.ndim :])
    shift = given[2] if len(given) > 2 else None
    return functional.layer_norm(x, shape, given[1], shift, float(attributes.get("epsilon", 1e-5)))


def _reshape(given: Given, attributes: Attributes, outputs: int) -> Tensor:
    x: Tensor = given[0]
    shape = _ints(given[1])
    if not attributes.get("allowzero", 0):
        shape = [x.shape[i] if size == 0 else size for i, size in enumerate(shape)]
    return x.reshape(shape)


def _axes(given: Given, attributes: Attributes, place: int = 1) -> list[int] | None:
    """Read axes, which are an input in newer opsets and an attribute in older ones."""
    if len(given) > place and given[place] is not None:
        return _ints(given[place])
    return list(attributes["axes"]) if "axes" in attributes else None


def _squeeze(given: Given, attributes: Attributes, outputs: int) -> Tensor:
    x: Tensor = given[0]
    axes = _axes(given, attributes)
    return x.squeeze() if axes is None else x.squeeze(tuple(axes))


def _unsqueeze(given: Given, attributes: Attributes, outputs: int) -> Tensor:
    x: Tensor = given[0]
    axes = _axes(given, attributes) or []
    rank = x.ndim + len(axes)
    for axis in sorted(one % rank for one in axes):
        x = x.unsqueeze(axis)
    return x


def _reduce(given: Given, attributes: Attributes, outputs: int, *, how: Callable[..., Tensor]) -> Tensor:
    x: Tensor = given[0]
    axes = _axes(given, attributes)
    if axes is None:
        axes = [] if attributes.get("noop_with_empty_axes", 0) else list(range(x.ndim))
    return x if not axes else how(x, dim=axes, keepdim=bool(attributes.get("keepdims", 1)))


def _slice(given: Given, attributes: Attributes, outputs: int) -> Tensor:
    x: Tensor = given[0]
    starts, ends = _ints(given[1]), _ints(given[2])
    axes = _ints(given[3]) if len(given) > 3 and given[3] is not None else list(range(len(starts)))
    steps = _ints(given[4]) if len(given) > 4 and given[4] is not None else [1] * len(starts)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        picked = np.arange(x.shape[axis])[start:end:step].copy()  # torch takes no negative steps
        x = x.index_select(axis, torch.from_numpy(picked).to(x.device))
    return x


def _split(given: Given, attributes: Attributes, outputs: int) -> list[Tensor]:
    x, axis = given[0], int(attributes.get("axis", 0))
    sizes = _ints(given[1]) if len(given) > 1 and given[1] is not None else attributes.get("split")
    if sizes is None:
        return list(torch.chunk(x, outputs, axis))
    return list(torch.split(x, list(sizes), axis))


def _gather(given: Given, attributes: Attributes, outputs: int) -> Tensor:
    x: Tensor = given[0]
    index: Tensor = given[1]
    axis = int(attributes.get("axis", 0)) % x.ndim
    index = torch.where(index < 0, index + x.shape[axis], index)
    picked = x.index_select(axis, index.reshape(-1))
    return picked.reshape((*x.shape[:axis], *index.shape, *x.shape[axis + 1 :]))


def _clip(given: Given, attributes: Attributes, outputs: int) -> Tensor:
    low = given[1] if len(given) > 1 else attributes.get("min")
    high = given[2] if len(given) > 2 else attributes.get("max")
    x: Tensor = given[0]
    return x if low is None and high is None else torch.clamp(x, low, high)


def _divide(given: Given, attributes: Attributes, outputs: int) -> Tensor:
    a, b = given
    return torch.div(a, b) if a.is_floating_point() else torch.div(a, b, rounding_mode="trunc")


def _shape(given: Given, attributes: Attributes, outputs: int) -> Tensor:
    shape = list(given[0].shape)[attributes.get("start", 0) : attributes.get("end")]
    return torch.tensor(shape, dtype=torch.int64)


def _cast(given: Given, attributes: Attributes, outputs: int) -> Tensor:
    x: Tensor = given[0]
    kind = _TYPES.get(attributes["to"])
    if kind is None:
        raise UserError(f"model: a cast to {TensorProto.DataType.Name(attributes['to'])} cannot be trained here")
    return x.to(kind)


def _hard_sigmoid(given: Given, attributes: Attributes, outputs: int) -> Tensor:
    return torch.clamp(float(attributes.get("alpha", 0.2)) * given[0] + float(attributes.get("beta", 0.5)), 0, 1)


def _plain(function: Callable[..., Tensor]) -> Callable[[Given, Attributes, int], Tensor]:
    return lambda given, attributes, outputs: function(*given)


OPERATORS: dict[str, Callable[[Given, Attributes, int], Any]] = {
    "Add": _plain(torch.add),
    "AveragePool": lambda g, a, n: _pool(g, a, n, largest=False),
    "BatchNormalization": _batch_norm,
    "Cast": _cast,
    "Clip": _clip,
    "Concat": lambda g, a, n: torch.cat(list(g), int(a["axis"])),
    "Conv": _conv,
    "Div": _divide,
    "Dropout": lambda g, a, n: g[0],
    "Equal": _plain(torch.eq),
    "Erf": _plain(torch.erf),
    "Exp": _plain(torch.exp),
    "Expand": lambda g, a, n: _expand(g[0], _ints(g[1])),
    "Flatten": lambda g, a, n: _flat(g[0], int(a.get("axis", 1))),
    "Gather": _gather,
    "Gelu": lambda g, a, n: functional.gelu(g[0], approximate=_text(a.get("approximate"), "none")),
    "Gemm": _gemm,
    "GlobalAveragePool": lambda g, a, n: g[0].mean(tuple(range(2, g[0].ndim)), keepdim=True),
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _plain(functional.hardswish),
    "Identity": _plain(lambda x: x),
    "LayerNormalization": _layer_norm,
    "LeakyRelu": lambda g, a, n: functional.leaky_relu(g[0], float(a.get("alpha", 0.01))),
    "MatMul": _plain(torch.matmul),
    "MaxPool": lambda g, a, n: _pool(g, a, n, largest=True),
    "Mul": _plain(torch.mul),
    "Neg": _plain(torch.neg),
    "Pow": _plain(torch.pow),
    "ReduceMean": lambda g, a, n: _reduce(g, a, n, how=torch.mean),
    "ReduceSum": lambda g, a, n: _reduce(g, a, n, how=torch.sum),
    "Relu": _plain(torch.relu),
    "Reshape": _reshape,
    "Shape": _shape,
    "Sigmoid": _plain(torch.sigmoid),
    "Slice": _slice,
    "Softmax": lambda g, a, n: torch.softmax(g[0], int(a.get("axis", -1))),
    "Split": _split,
    "Sqrt": _plain(torch.sqrt),
    "Squeeze": _squeeze,
    "Sub": _plain(torch.sub),
    "Tanh": _plain(torch.tanh),
    "Transpose": lambda g, a, n: g[0].permute(list(a["perm"]) if "perm" in a else list(range(g[0].ndim))[::-1]),
    "Unsqueeze": _unsqueeze,
    "Where": _plain(torch.where),
}


def _expand(x: Tensor, shape: list[int]) -> Tensor:
    return x.expand(np.broadcast_shapes(tuple(x.shape), tuple(shape)))


def _flat(x: Tensor, axis: int) -> Tensor:
    axis = axis + x.ndim if axis < 0 else axis
    return x.reshape(int(np.prod(x.shape[:axis], dtype=np.int64)), -1)
