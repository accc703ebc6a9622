"""Labels of an output: which axis they leave out, and whether they can be right about its answers."""

from __future__ import annotations

import numpy as np

from distill.errors import UserError
from distill.types import Array

from .kinds import Output


def is_binary(labels: Array) -> bool:
    """Whether labels are all 0 or 1."""
    return labels.dtype.kind in "iufb" and bool(((labels == 0) | (labels == 1)).all())


def one_hot(labels: Array) -> bool:
    """Whether labels [rows, …] have exactly one 1 along their second axis."""
    return labels.ndim > 1 and bool((labels.astype(np.int64).sum(axis=1) == 1).all())


def whole(labels: Array) -> bool:
    """Whether labels are whole numbers by their type."""
    return labels.dtype.kind in "iub"


def fitting_axes(shape: tuple[int, ...], labels: Array) -> list[int]:
    """Return the axes of an output of this shape that class numbers of the other axes leave out."""
    if not whole(labels) or not labels.size:
        return []
    classes = int(labels.max()) + 1
    return [
        axis
        for axis in range(1, len(shape))
        if shape[:axis] + shape[axis + 1 :] == labels.shape and shape[axis] >= max(2, classes)
    ]


def squeezed(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return a shape without the axes of size 1 behind the first."""
    return (*shape[:1], *(size for size in shape[1:] if size != 1))


def shown(array: Array) -> str:
    """Return the shape as errors show it."""
    return "[" + ", ".join(["rows", *map(str, array.shape[1:])]) + "]"


def checked_labels(output: Output, values: Array, labels: Array, source: str) -> Array:
    """Return labels in the type and shape of an output's answers.

    Raises:
        UserError: they can never equal an answer; the message opens with `source`.
    """
    answers = output.answers(values)
    if output.kind == "numbers":
        return _numbers(values, labels, source)
    if output.kind == "classes":
        _check_classes(output, values, answers, labels, source)
        return labels.astype(np.int64)
    fits = labels.size == answers.size and len(labels) == len(answers)
    if not fits or squeezed(labels.shape) != squeezed(answers.shape):
        raise UserError(
            f"{source}: the labels have the shape {shown(labels)}, the answers {shown(answers)}: they must be 0 or 1, "
            "in the shape of the answers"
        )
    if not is_binary(labels):
        raise UserError(
            f"{source}: the labels are {_extent(labels)}, of a yes or no they must be 0 or 1; write labels > 0 "
            "where two numbers stand for them, or say --output numbers where they are numbers to be met"
        )
    return labels.reshape(answers.shape).astype(bool)


def _numbers(values: Array, labels: Array, source: str) -> Array:
    if labels.dtype.kind not in "iufb":
        raise UserError(f"{source}: the labels are {labels.dtype.name}; numbers are judged by numbers")
    if squeezed(labels.shape) != squeezed(values.shape):
        raise UserError(
            f"{source}: the labels have the shape {shown(labels)}, the numbers {shown(values)}: they must be the same"
        )
    if not np.isfinite(labels.astype(np.float64)).all():
        raise UserError(f"{source}: the labels hold NaN or infinite values; clean or drop such rows")
    return labels.reshape(values.shape).astype(np.float64)


def _check_classes(output: Output, values: Array, answers: Array, labels: Array, source: str) -> None:
    """Refuse labels of another shape, that are no class numbers, or of classes that are not."""
    if labels.shape != answers.shape:
        mend = "they must be class numbers, in the shape of the answers"
        if labels.shape == values.shape:
            mend = (
                f"they look one-hot and must be class numbers; write labels.argmax(axis={output.axis})"
                if is_binary(labels) and one_hot(labels)
                else f"{mend}; say --output labels where several are right, --output numbers where they are numbers"
            )
        elif labels.size == answers.size:
            mend = f"write them flat, labels.reshape({', '.join(['-1', *map(str, answers.shape[1:])])})"
        raise UserError(f"{source}: the labels have the shape {shown(labels)}, the answers {shown(answers)}: {mend}")
    if not whole(labels):
        raise UserError(
            f"{source}: the labels are {labels.dtype.name}: they must be class numbers; write "
            "labels.astype('int64') where they are, and leave them out where they are no classes"
        )
    classes = values.shape[output.axis]
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= classes:
        raise UserError(
            f"{source}: the labels go from {low} to {high}, the model has the classes 0 to {classes - 1}; number "
            "them like its outputs; where a number marks what is not to be judged, drop such rows or judge by --metric"
        )


def _extent(labels: Array) -> str:
    if labels.dtype.kind not in "iufb":
        return labels.dtype.name
    return f"from {labels.min():g} to {labels.max():g}"
