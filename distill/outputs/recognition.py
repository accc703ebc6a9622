"""What an output holds, told by its graph, its values and the labels, or by the user; never guessed."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

import numpy as np

from distill.errors import UserError
from distill.outputs.kinds import KINDS, Kind, Output
from distill.outputs.labels import fitting_axes, is_binary, one_hot, shown, squeezed, whole
from distill.types import Array

_SUM = 1e-3  # how far probabilities of classes may add up beside 1; of 16 bits ten times as far


Family = Literal["softmax", "log_softmax", "sigmoid", "linear", "mixed", "other"]


@dataclass(frozen=True)
class Tail:
    """Where a graph has an output's values from, behind operators that only move or scale them.

    Attributes:
        operator: the ONNX operator, as errors name it; several where the output is put together from them.
        family: what it makes: probabilities of exclusive classes, single probabilities, sums of products, values of
            several kinds side by side, or anything else.
        axis: the axis of the output along which it has its classes; None where that axis is gone, or cannot be traced.
        scaled: whether constants are added to, or multiplied with, what it makes.
    """

    operator: str
    family: Family
    axis: int | None = None
    scaled: bool = False


UNKNOWN = Tail("", "other")


@dataclass(frozen=True)
class Evidence:
    """What is known of an output before it is told what it holds.

    Attributes:
        name: what errors call it.
        values: what it gives for the rows that judge [rows, …], floats.
        tail: where the graph has them from.
        labels: what is right for these rows; None where there is nothing, or only a user's own metric reads it.
        inputs: the shapes of the rows of each input.
    """

    name: str
    values: Array
    tail: Tail = UNKNOWN
    labels: Array | None = None
    inputs: Collection[tuple[int, ...]] = ()

    @property
    def columns(self) -> int:
        """How many values a row has."""
        return int(np.prod(self.values.shape[1:], dtype=np.int64))

    @property
    def within_unit(self) -> bool:
        """Whether all values could be probabilities."""
        return bool(((self.values >= 0) & (self.values <= 1)).all())

    @property
    def probabilities(self) -> bool:
        """Whether graph and values agree that these are probabilities."""
        return self.within_unit and (self.tail.family in ("softmax", "sigmoid") or bool(self.summing_axes))

    @property
    def likely(self) -> bool:
        """Whether these are probabilities, if they are scores: logits would all have to be on one side of 0."""
        return self.within_unit and self.tail.family not in ("linear", "log_softmax")

    @property
    def summing_axes(self) -> list[int]:
        """The axes along which all values are probabilities that add up to 1."""
        if not self.within_unit:
            return []
        near = _SUM * (10 if self.values.dtype.itemsize < 4 else 1)
        wide = self.values.astype(np.float64)
        axes = [axis for axis in range(1, wide.ndim) if wide.shape[axis] > 1]
        return [axis for axis in axes if (np.abs(wide.sum(axis=axis) - 1) <= near).all()]

    @property
    def class_axis(self) -> int | None:
        """The axis that the classes lie along, as the graph or the values tell; None where neither does."""
        axis, sums = self.tail.axis, self.summing_axes
        if axis is not None and self.values.shape[axis] > 1 and (not sums or axis in sums):
            return axis
        return sums[0] if len(sums) == 1 else None

    def described(self) -> str:
        """Say what is known of it, as the beginning of an error."""
        operator = f", behind {self.tail.operator}" if self.tail.operator else ""
        return f"its output {self.name!r} gives {shown(self.values)}{operator}"


def tell(evidence: Evidence, *, kind: Kind | None = None, axis: int | None = None) -> Output:
    """Return what an output holds; ``kind``, and for classes ``axis``, are what the user says of it.

    Raises:
        UserError: nothing tells it, or what is said contradicts the values; the message says what to add.
    """
    if kind is None and axis is None:
        output = _by_labels(evidence) if evidence.labels is not None else _by_graph(evidence)
    else:
        output = _stated(evidence, kind or "classes", axis)
    if output.probabilities and not evidence.within_unit:
        low, high = float(evidence.values.min()), float(evidence.values.max())
        raise UserError(
            f"{evidence.described()}, whose values go from {low:.3g} to {high:.3g}: these are no probabilities; {_ASK}"
        )
    return output


def tell_or_numbers(evidence: Evidence, *, kind: Kind | None, axis: int | None, own: bool) -> Output:
    """Return what an output holds; where a measure of the user's own judges it and nothing tells it, numbers."""
    try:
        return tell(evidence, kind=kind, axis=axis)
    except UserError:
        if not own or kind is not None or axis is not None:
            raise
        return Output("numbers")


def note(evidence: Evidence, output: Output, *, stated: bool, measure: str, own: bool = False) -> str:
    """Say as what the answers are judged and by which measure, and how to object where only the shape speaks for it."""
    if own:
        return f"output {evidence.name} is judged by {measure}"
    text = f"output {evidence.name} is judged as {output}, by {measure}"
    assumed = not stated and evidence.labels is None and output.kind == "classes" and evidence.tail.family == "linear"
    return f"{text}; say --output numbers where it holds none" if assumed else text


_ASK = (
    "say what they are: --output classes with --axis N, --output binary (one yes or no a row), --output labels "
    "(several a row), --output numbers, or judge them by --metric file.py:function"
)


def _stated(evidence: Evidence, kind: Kind, axis: int | None) -> Output:
    if kind not in KINDS:
        raise UserError(f"--output {kind}: must be one of {', '.join(KINDS)}")
    if axis is not None and kind != "classes":
        raise UserError(f"--axis {axis}: is that of classes; leave it out beside --output {kind}")
    if kind == "numbers":
        return Output("numbers")
    if kind == "classes":
        class_axis = _axis(evidence, axis)
        return Output("classes", class_axis, evidence.probabilities)
    if kind == "binary" and evidence.columns != 1:
        raise UserError(
            f"--output binary: {evidence.described()}; one yes or no a row is one value a row: say --output labels "
            "where each value is one, --output classes where the highest of them counts"
        )
    return Output(kind, probabilities=evidence.likely)


def _axis(evidence: Evidence, axis: int | None) -> int:
    """Return the axis of classes that the user says, or leaves to be told.

    Raises:
        UserError: there is no such axis, or it has one place, or nothing tells it.
    """
    values = evidence.values
    if axis is not None:
        place = axis + values.ndim if axis < 0 else axis
        if not 1 <= place < values.ndim or values.shape[place] < 2:
            those = ", ".join(str(i) for i in range(1, values.ndim) if values.shape[i] > 1) or "none"
            raise UserError(
                f"--axis {axis}: {evidence.described()}; axes that can hold classes: {those} (axis 0 is the rows)"
            )
        return place
    if evidence.columns < 2:
        raise UserError(f"--output classes: {evidence.described()}; of one value a row say --output binary")
    wide = [i for i in range(1, values.ndim) if values.shape[i] > 1]
    fitting = [] if evidence.labels is None else fitting_axes(values.shape, evidence.labels)
    told = evidence.class_axis
    if told is not None and (not fitting or told in fitting):
        return told
    if len(fitting or wide) == 1:
        return (fitting or wide)[0]
    raise UserError(f"--output classes: {evidence.described()}; say by --axis N which axis holds the classes")


def _by_labels(evidence: Evidence) -> Output:
    """Return what labels of this shape and these values can be right about."""
    values, labels = evidence.values, evidence.labels
    assert labels is not None
    same = squeezed(labels.shape) == squeezed(values.shape)
    if labels.dtype.kind == "f" and same and not is_binary(labels):
        return Output("numbers")
    if evidence.tail.family == "mixed" and not evidence.summing_axes:
        raise UserError(f"{evidence.described()}: values of several kinds side by side; {_ASK}")
    yes_no = Output("binary" if evidence.columns == 1 else "labels", probabilities=evidence.likely)
    marks = is_binary(labels) and squeezed(labels.shape) == squeezed(values.shape)
    moved = evidence.tail.scaled and evidence.tail.family in ("softmax", "sigmoid") and not evidence.summing_axes
    if moved and (evidence.columns == 1 or marks):
        raise UserError(f"{evidence.described()} and constants, so that nothing tells where yes begins; {_ASK}")
    if evidence.columns == 1:
        # Other labels of one score are refused, with the words to add, where they are read.
        return yes_no
    if marks:
        if evidence.tail.family == "sigmoid" or not one_hot(labels):
            return yes_no
        return Output("classes", evidence.class_axis or 1, evidence.probabilities)
    fitting = fitting_axes(values.shape, labels)
    told = evidence.class_axis
    if told is not None and (told in fitting or not fitting):
        return Output("classes", told, evidence.probabilities)
    if len(fitting) > 1:
        raise UserError(f"{evidence.described()}, and the labels fit along axes {fitting}; say --axis N")
    if not fitting and values.ndim > 2 and whole(labels):
        raise UserError(f"{evidence.described()}, the labels are {shown(labels)}; {_ASK}")
    return Output("classes", fitting[0] if fitting else 1, evidence.probabilities)


def _by_graph(evidence: Evidence) -> Output:
    """Return what the graph and the values tell by themselves."""
    values, tail = evidence.values, evidence.tail
    axis = evidence.class_axis
    if evidence.summing_axes and axis is not None:
        return Output("classes", axis, probabilities=True)
    if tail.family in ("softmax", "log_softmax") and axis is not None and not tail.scaled:
        return Output("classes", axis, evidence.probabilities)
    single = tail.family in ("softmax", "sigmoid") and evidence.within_unit and not tail.scaled
    if evidence.columns == 1 and single:
        return Output("binary", probabilities=True)
    if tail.family == "sigmoid" and not tail.scaled:
        return Output("labels", probabilities=True)
    # A network whose rows come out as they went in reconstructs them.
    if tail.family == "linear" and values.ndim == 2 and axis == 1 and values.shape[1:] not in evidence.inputs:
        return Output("classes")
    hint = f" (classes, if it holds some, lie along axis {axis})" if axis is not None and values.ndim > 2 else ""
    content = "what it is" if evidence.columns == 1 else "what they are"
    raise UserError(f"{evidence.described()}: neither graph nor labels tell {content}{hint}; {_ASK}")
