"""ONNX operators in torch: functions of a node's inputs, None where one is left out, and of its attributes by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from onnx import TensorProto
from torch import Tensor
from torch.nn import functional

from distill.errors import UserError

DTYPES: dict[int, torch.dtype] = {
    TensorProto.FLOAT: torch.float32,
    TensorProto.INT64: torch.int64,
    TensorProto.INT32: torch.int32,
    TensorProto.BOOL: torch.bool,
    TensorProto.DOUBLE: torch.float64,
}
Sizes = list[int]
Numbers = Sizes | Tensor  # axes, sizes and the like: attributes in older opsets, inputs in newer ones


def _ints(numbers: Numbers) -> list[int]:
    return [int(number) for number in (numbers.tolist() if isinstance(numbers, Tensor) else numbers)]


def _padded(x: Tensor, pads: Sizes | None = None, auto_pad: str = "NOTSET", *, fill: float = 0.0) -> Tensor:
    """Pad as the attributes of a window say, which may be uneven."""
    if auto_pad != "NOTSET":
        raise UserError("model: auto_pad cannot be trained here; export with explicit pads")
    if not pads or not any(pads):
        return x
    half = len(pads) // 2
    return functional.pad(x, [pad for i in reversed(range(half)) for pad in (pads[i], pads[half + i])], value=fill)


def _conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    strides: Sizes | None = None,
    dilations: Sizes | None = None,
    group: int = 1,
    kernel_shape: Sizes | None = None,
    **padding: Any,
) -> Tensor:
    convolve: Callable[..., Tensor] = {3: functional.conv1d, 4: functional.conv2d, 5: functional.conv3d}[x.ndim]
    return convolve(_padded(x, **padding), weight, bias, strides or 1, 0, dilations or 1, group)


def _gemm(
    a: Tensor,
    b: Tensor,
    c: Tensor | None = None,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    transA: int = 0,  # noqa: N803 - the standard's names
    transB: int = 0,  # noqa: N803
) -> Tensor:
    product = alpha * ((a.T if transA else a) @ (b.T if transB else b))
    return product if c is None else product + beta * c


def _max_pool(
    x: Tensor,
    *,
    kernel_shape: Sizes,
    strides: Sizes | None = None,
    dilations: Sizes | int = 1,
    ceil_mode: int = 0,
    storage_order: int = 0,
    **padding: Any,
) -> Tensor:
    _check_pool(kernel_shape, ceil_mode)
    padded = _padded(x, **padding, fill=-torch.inf)
    pooled: Tensor = functional.max_pool2d(padded, kernel_shape, strides or 1, 0, dilations)
    return pooled


def _average_pool(
    x: Tensor,
    *,
    kernel_shape: Sizes,
    strides: Sizes | None = None,
    dilations: Sizes | None = None,
    ceil_mode: int = 0,
    count_include_pad: int = 0,
    **padding: Any,
) -> Tensor:
    _check_pool(kernel_shape, ceil_mode)
    if set(dilations or [1]) != {1}:
        raise UserError("model: an AveragePool with dilations cannot be trained here")
    pool = partial(functional.avg_pool2d, kernel_size=kernel_shape, stride=strides or 1)
    mean: Tensor = pool(_padded(x, **padding))
    if any(padding.get("pads") or []) and not count_include_pad:
        mean = mean / pool(_padded(torch.ones_like(x), **padding))
    return mean


def _check_pool(kernel_shape: Sizes, ceil_mode: int) -> None:
    if ceil_mode or len(kernel_shape) != 2:
        raise UserError("model: a pool with ceil_mode, or not over two axes, cannot be trained here")


def _batch_norm(
    x: Tensor, gain: Tensor, shift: Tensor, mean: Tensor, variance: Tensor, *, epsilon: float = 1e-5, **_: Any
) -> Tensor:
    return functional.batch_norm(x, mean, variance, gain, shift, False, 0.0, epsilon)


def _layer_norm(
    x: Tensor, gain: Tensor, shift: Tensor | None = None, *, axis: int = -1, epsilon: float = 1e-5, stash_type: int = 1
) -> Tensor:
    return functional.layer_norm(x, list(x.shape[axis % x.ndim :]), gain, shift, epsilon)


def _reshape(x: Tensor, shape: Tensor, *, allowzero: int = 0) -> Tensor:
    sizes = _ints(shape)
    return x.reshape(sizes if allowzero else [size or x.shape[i] for i, size in enumerate(sizes)])


def _flatten(x: Tensor, *, axis: int = 1) -> Tensor:
    axis = axis + x.ndim if axis < 0 else axis
    return x.reshape(int(np.prod(x.shape[:axis], dtype=np.int64)), -1)


def _squeeze(x: Tensor, axes: Numbers | None = None) -> Tensor:
    return x.squeeze() if axes is None else x.squeeze(tuple(_ints(axes)))


def _unsqueeze(x: Tensor, axes: Numbers) -> Tensor:
    rank = x.ndim + len(axes)
    for axis in sorted(axis % rank for axis in _ints(axes)):
        x = x.unsqueeze(axis)
    return x


def _reduce(
    reduction: Callable[..., Tensor],
    x: Tensor,
    axes: Numbers | None = None,
    *,
    keepdims: int = 1,
    noop_with_empty_axes: int = 0,
) -> Tensor:
    reduced = _ints(axes) if axes is not None else [] if noop_with_empty_axes else list(range(x.ndim))
    return reduction(x, dim=reduced, keepdim=bool(keepdims)) if reduced else x


def _slice(
    x: Tensor, starts: Numbers, ends: Numbers, axes: Numbers | None = None, steps: Numbers | None = None
) -> Tensor:
    every = range(len(starts))
    bounds = zip(
        _ints(starts),
        _ints(ends),
        every if axes is None else _ints(axes),
        [1 for _ in every] if steps is None else _ints(steps),
        strict=True,
    )
    for start, end, axis, step in bounds:
        picked = np.arange(x.shape[axis])[start:end:step].copy()  # torch takes no negative steps
        x = x.index_select(axis, torch.from_numpy(picked).to(x.device))
    return x


def _split(x: Tensor, split: Numbers | None = None, *, axis: int = 0, num_outputs: int) -> Sequence[Tensor]:
    return torch.chunk(x, num_outputs, axis) if split is None else torch.split(x, _ints(split), axis)


def _gather(x: Tensor, index: Tensor, *, axis: int = 0) -> Tensor:
    axis = axis % x.ndim
    index = torch.where(index < 0, index + x.shape[axis], index)
    picked = x.index_select(axis, index.reshape(-1))
    return picked.reshape((*x.shape[:axis], *index.shape, *x.shape[axis + 1 :]))


def _clip(x: Tensor, min: Any = None, max: Any = None) -> Tensor:
    return x if min is None and max is None else torch.clamp(x, min, max)


def _divide(a: Tensor, b: Tensor) -> Tensor:
    return torch.div(a, b, rounding_mode=None if a.is_floating_point() else "trunc")


def _shape(x: Tensor, *, start: int = 0, end: int | None = None) -> Tensor:
    return torch.tensor(list(x.shape)[start:end], dtype=torch.int64)


def _cast(x: Tensor, *, to: int, **_: Any) -> Tensor:
    if to not in DTYPES:
        raise UserError(f"model: a cast to {TensorProto.DataType.Name(to)} cannot be trained here")
    return x.to(DTYPES[to])


def _expand(x: Tensor, shape: Tensor) -> Tensor:
    return x.expand(np.broadcast_shapes(tuple(x.shape), tuple(_ints(shape))))


def _transpose(x: Tensor, *, perm: Sizes | None = None) -> Tensor:
    return x.permute(*(perm or reversed(range(x.ndim))))


_SAME_IN_TORCH = "Add Erf Exp MatMul Mul Neg Pow Relu Sigmoid Sqrt Sub Tanh Where"
OPERATORS: dict[str, Callable[..., Any]] = {
    **{name: getattr(torch, name.lower()) for name in _SAME_IN_TORCH.split()},
    "AveragePool": _average_pool,
    "BatchNormalization": _batch_norm,
    "Cast": _cast,
    "Clip": _clip,
    "Concat": lambda *parts, axis: torch.cat(parts, axis),
    "Conv": _conv,
    "Div": _divide,
    "Dropout": lambda x, *_, **__: x,
    "Equal": torch.eq,
    "Expand": _expand,
    "Flatten": _flatten,
    "Gather": _gather,
    "Gelu": functional.gelu,
    "Gemm": _gemm,
    "GlobalAveragePool": lambda x: x.mean(tuple(range(2, x.ndim)), keepdim=True),
    "HardSigmoid": lambda x, alpha=0.2, beta=0.5: torch.clamp(alpha * x + beta, 0, 1),
    "HardSwish": functional.hardswish,
    "Identity": lambda x: x,
    "LayerNormalization": _layer_norm,
    "LeakyRelu": lambda x, alpha=0.01: functional.leaky_relu(x, alpha),
    "MaxPool": _max_pool,
    "ReduceMean": partial(_reduce, torch.mean),
    "ReduceSum": partial(_reduce, torch.sum),
    "Reshape": _reshape,
    "Shape": _shape,
    "Slice": _slice,
    "Softmax": lambda x, axis=-1: torch.softmax(x, axis),
    "Split": _split,
    "Squeeze": _squeeze,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}
