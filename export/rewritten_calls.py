"""Calls that torch's exporter has no ONNX form for, rewritten while a module is traced to those that it has."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode


class RewrittenCalls(TorchFunctionMode):
    """Rewrites, inside, attention over other than four axes, and convolutions in as many groups as there are rows."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Call what a function is rewritten to, or itself."""
        return _REWRITTEN.get(func, func)(*args, **(kwargs or {}))


def _attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, *args: Any, **kw: Any
) -> Any:
    """Attend over the last two axes of tensors [..., rows, width], with exactly two axes before these."""
    attend, mask = functional.scaled_dot_product_attention, attn_mask
    if query.ndim == key.ndim == value.ndim == 4 and (mask is None or mask.ndim in (2, 4)):
        return attend(query, key, value, mask, *args, **kw)
    shapes = (tensor.shape[:-2] for tensor in (query, key, value))
    before = torch.broadcast_shapes(*shapes)  # type: ignore[no-untyped-call]

    def four(tensor: Tensor) -> Tensor:
        return tensor.expand(*before, *tensor.shape[-2:]).reshape(-1, before[-1] if before else 1, *tensor.shape[-2:])

    mask = mask if mask is None or mask.ndim == 2 else four(mask)
    answer = attend(four(query), four(key), four(value), mask, *args, **kw)
    return answer.reshape(*before, *answer.shape[-2:])


def _conv1d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: Any = 1,
) -> Tensor:
    """Convolve rows [N, channels, length], as images of one line where groups follow the batch."""
    if not _follows_batch(groups, padding) or input.ndim != 3:
        return functional.conv1d(input, weight, bias, stride, padding, dilation, groups)
    stride, padding, dilation = (
        (other, *_many(value, 1)) for other, value in ((1, stride), (0, padding), (1, dilation))
    )
    return _conv2d(input.unsqueeze(2), weight.unsqueeze(2), bias, stride, padding, dilation, groups).squeeze(2)


def _conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: Any = 1,
) -> Tensor:
    """Convolve images [N, channels, H, W], as products of patches with kernels where groups follow the batch.

    ONNX writes the number of groups into the graph, and so would fix the batch.
    """
    if not _follows_batch(groups, padding) or input.ndim != 4:
        return functional.conv2d(input, weight, bias, stride, padding, dilation, groups)
    rows, channels, kernel = input.shape[0], weight.shape[1], tuple(weight.shape[2:])
    sizes = zip(input.shape[2:], kernel, _many(stride, 2), _many(padding, 2), _many(dilation, 2), strict=True)
    places = [(size + 2 * pad - apart * (length - 1) - 1) // step + 1 for size, length, step, pad, apart in sizes]
    parts = input.reshape(rows * groups, channels, *input.shape[2:])
    patches = functional.unfold(parts, kernel, dilation, padding, stride)
    kernels = weight.reshape(1, groups, -1, channels * math.prod(kernel))
    answer = torch.matmul(kernels, patches.reshape(rows, groups, *patches.shape[1:]))
    answer = answer.reshape(rows, weight.shape[0], *places)
    return answer if bias is None else answer + bias.reshape(1, -1, 1, 1)


def _follows_batch(groups: Any, padding: Any) -> bool:
    return isinstance(groups, torch.SymInt) and not isinstance(padding, str)


def _many(value: Any, axes: int) -> tuple[int, ...]:
    """Return a setting of a convolution by axis, which torch takes as one number for all of them, too."""
    values = (value,) if isinstance(value, int) else tuple(value)
    return values if len(values) == axes else values * axes


_REWRITTEN: dict[Callable[..., Any], Callable[..., Any]] = {
    functional.scaled_dot_product_attention: _attention,
    functional.conv1d: _conv1d,
    functional.conv2d: _conv2d,
}
