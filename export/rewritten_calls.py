"""Calls that torch's exporter has no ONNX form for, or a slow one, rewritten while a module is traced."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode


class RewrittenCalls(TorchFunctionMode):
    """Rewrites, inside: attention over other than four axes, convolutions in as many groups as rows, bags."""

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


def _convolution(
    original: Callable[..., Tensor],
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: Any = 1,
) -> Tensor:
    """Convolve [N, channels, L] or [N, channels, H, W], as products of patches with kernels if groups follow the batch.

    ONNX writes the number of groups into the graph, and so would fix the batch.
    """
    axes = weight.ndim - 2
    if not isinstance(groups, torch.SymInt) or isinstance(padding, str) or input.ndim != weight.ndim:
        return original(input, weight, bias, stride, padding, dilation, groups)
    stride, padding, dilation = (_by_axis(value, axes) for value in (stride, padding, dilation))
    if axes == 1:  # images of one line
        wide = (1, *stride), (0, *padding), (1, *dilation)
        return _convolution(original, input.unsqueeze(2), weight.unsqueeze(2), bias, *wide, groups).squeeze(2)
    rows, channels, kernel = input.shape[0], weight.shape[1], tuple(weight.shape[2:])
    sizes = zip(input.shape[2:], kernel, stride, padding, dilation, strict=True)
    places = [(size + 2 * pad - gap * (length - 1) - 1) // step + 1 for size, length, step, pad, gap in sizes]
    parts = input.reshape(rows * groups, channels, *input.shape[2:])
    patches = functional.unfold(parts, kernel, dilation, padding, stride)
    kernels = weight.reshape(1, groups, -1, channels * math.prod(kernel))
    answer = torch.matmul(kernels, patches.reshape(rows, groups, *patches.shape[1:]))
    answer = answer.reshape(rows, weight.shape[0], *places)
    return answer if bias is None else answer + bias.reshape(1, -1, 1, 1)


def _by_axis(value: Any, axes: int) -> tuple[int, ...]:
    """Return a setting of a convolution by axis, which torch takes as one number for all of them, too."""
    values = (value,) if isinstance(value, int) else tuple(value)
    return values if len(values) == axes else values * axes


def _embedding_bag(input: Tensor, weight: Tensor, *args: Any, **kwargs: Any) -> Any:
    """Reduce bags of one length [N, L] to [N, D] by one gather; the exporter writes a loop over them.

    A bag of nothing but padding is 0.
    """
    names = ("offsets", "max_norm", "norm_type", "scale_grad_by_freq", "mode", "sparse", "per_sample_weights")
    options = dict(zip((*names, "include_last_offset", "padding_idx"), args, strict=False)) | kwargs
    if input.ndim != 2 or options.get("max_norm") is not None:  # the norms are written into the weights
        return functional.embedding_bag(input, weight, *args, **kwargs)
    mode, scales, padding = options.get("mode", "mean"), options.get("per_sample_weights"), options.get("padding_idx")
    rows = functional.embedding(input, weight)
    if scales is not None:
        rows = rows * scales.unsqueeze(-1)
    if padding is None:
        return rows.amax(dim=1) if mode == "max" else rows.sum(dim=1) if mode == "sum" else rows.mean(dim=1)
    counted = (input != padding % len(weight)).unsqueeze(-1)
    if mode == "max":
        largest = rows.masked_fill(~counted, -torch.inf).amax(dim=1)
        return torch.where(counted.any(dim=1), largest, torch.zeros_like(largest))
    total = (rows * counted).sum(dim=1)
    return total if mode == "sum" else total / counted.sum(dim=1).clamp(min=1)


_REWRITTEN: dict[Callable[..., Any], Callable[..., Any]] = {
    functional.scaled_dot_product_attention: _attention,
    functional.conv1d: partial(_convolution, functional.conv1d),
    functional.conv2d: partial(_convolution, functional.conv2d),
    functional.embedding_bag: _embedding_bag,
}
