"""What autograd's nodes say of tensors beside channels: weights that multiply them, and lengths of what is joined."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction
from torch.overrides import TorchFunctionMode
from torch_pruning import ops

_CATS = (torch.cat, torch.concat, torch.concatenate)
_TURNS = tuple(f"{name}Backward" for name in ("T", "Transpose", "Permute"))
_COPIES = ("View", "UnsafeView", "ReshapeAlias", "Unsqueeze", "Squeeze", "Expand", "Clone")
_SHAPES = (*_TURNS, *(f"{name}Backward" for name in _COPIES))
_STEPS = (ops.OPTYPE.ELEMENTWISE, ops.OPTYPE.RESHAPE, ops.OPTYPE.EXPAND)  # in the call of one layer
_PRODUCTS = tuple(f"{name}Backward" for name in ("Addmm", "Mm", "Bmm", "Baddbmm", "Convolution", "Mv", "Addmv"))


class Joins(TorchFunctionMode):
    """Notes how long the parts are that tensors are joined from: of those that no layer made autograd knows nothing."""

    def __init__(self, parts: dict[Any, list[int]]) -> None:
        super().__init__()
        self._parts = parts

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call, and note the lengths along the joined axis by autograd's node."""
        result = function(*args, **kwargs or {})
        if function in _CATS and result.grad_fn is not None:
            options = dict(zip(("tensors", "dim"), args, strict=False)) | dict(kwargs or {})
            axis = options.get("dim", options.get("axis", 0))
            if isinstance(axis, int):
                self._parts[result.grad_fn] = [int(tensor.shape[axis]) for tensor in options["tensors"]]
        return result


def linear_weights(function: Any) -> Iterator[Tensor]:
    """Yield the parameters that a matrix product multiplies with, turned over or not."""
    if function is None or not function.name().startswith(("AddmmBackward", "MmBackward")):
        return
    for source, _ in function.next_functions:
        while source is not None and source.name().startswith(_TURNS):
            source = source.next_functions[0][0]
        variable = getattr(source, "variable", None)
        if variable is not None and variable.ndim == 2:
            yield variable


def first_uses(node: Any) -> Iterator[Any]:
    """Yield what reads a tensor, behind copies of another shape."""
    stack, visited = list(node.outputs), set()
    while stack:
        reader = stack.pop()
        if reader in visited:
            continue
        visited.add(reader)
        if reader.grad_fn.name().startswith(_SHAPES):
            stack.extend(reader.outputs)
        else:
            yield reader


def is_product(function: Any) -> bool:
    """Tell a matrix product, a convolution, or a function of the user's own, which may be one."""
    return function.name().startswith(_PRODUCTS) or isinstance(function, BackwardCFunction)


def within(layer: Any) -> set[Any]:
    """Return the nodes between a linear layer's product, which is among them, and its output."""
    inner, stack = set[Any](), [] if is_product(layer.grad_fn) else [layer]
    while stack:
        for other in stack.pop().inputs:
            if other.type in _STEPS and other.grad_fn.name().startswith((*_SHAPES, *_PRODUCTS)) and other not in inner:
                inner.add(other)
                if not is_product(other.grad_fn):
                    stack.append(other)
    return inner if any(is_product(node.grad_fn) for node in inner) else set()
