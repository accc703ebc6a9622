"""Which axes of a model's inputs have no fixed length, told by samples of different lengths or by the user."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from distill.errors import UserError
from distill.tasks.base import Inputs, OpenAxes

_IMAGE_AXES = {2: "height", 3: "width"}  # of [batch, channels, height, width]


def seen_axes(calls: Iterable[Inputs]) -> OpenAxes:
    """Compare calls of the same inputs, and return the axes whose length differs between them.

    Axes that always have the same length in one call share a name.
    """
    shapes = [[tuple(tensor.shape) for tensor in tensors_of(call)] for call in calls]
    names: dict[tuple[int, ...], str] = {}
    axes = []
    for sizes in zip(*shapes, strict=False):  # the shapes of one input in all calls
        ranks = {len(shape) for shape in sizes}
        open_here: dict[int, str] = {}
        for axis in range(1, len(sizes[0]) if len(ranks) == 1 else 0):
            lengths = tuple(shape[axis] for shape in sizes)
            if len(set(lengths)) > 1:
                first = _IMAGE_AXES[axis] if len(sizes[0]) == 4 and axis in _IMAGE_AXES else "sequence"
                number = sum(name.startswith(first) for name in names.values()) + 1
                open_here[axis] = names.setdefault(lengths, first if number == 1 else f"{first}_{number}")
        axes.append(open_here)
    return tuple(axes) if any(axes) else ()


def stated_axes(value: Any, source: str, call: Inputs) -> OpenAxes:
    """Read what the user says: for each input, positional ones first, a mapping of axis to name.

    Raises:
        UserError: it is something else, or names an axis that an input has not.
    """
    tensors = tensors_of(call)
    mend = f"expected one mapping an input ({len(tensors)}), such as [{{1: 'sequence'}}]; axis 0 is the batch"
    if not isinstance(value, list | tuple) or len(value) != len(tensors):
        raise UserError(f"{source}: open_axes={value!r}: {mend}")
    for axes, tensor in zip(value, tensors, strict=True):
        if not isinstance(axes, Mapping) or not all(
            isinstance(axis, int) and 0 < axis < tensor.ndim and isinstance(name, str) for axis, name in axes.items()
        ):
            raise UserError(f"{source}: open_axes={value!r}: {axes!r} for an input {list(tensor.shape)}: {mend}")
    return tuple(dict(axes) for axes in value)


def tensors_of(call: Inputs) -> list[Tensor]:
    """List the tensors of a call, positional ones first."""
    args, kwargs = call
    return [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
