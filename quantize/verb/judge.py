"""The judge of the verb `quantize`: what a graph loses against the float one, on the same rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

import numpy as np
from onnx import ModelProto

from distill.errors import UserError
from distill.export.parity import run_onnx
from distill.intervals import Estimate, paired_drop, wilson

from ..calibrate import Array, Feed
from ..half.narrow import SIXTEEN_BITS, emulate
from ..repair import Loss
from ..sensitivity import divergence
from .rows import Rows


@dataclass(frozen=True)
class Judge:
    """Compares graphs with the float one on `rows`: by accuracy where there are labels, else by changed answers.

    `reference` are the float one's logits [n, …] and `answers` what they say [n] (of dense predictions [n, …]), in the
    shape of which the labels are, if there are any. `remarks` say what makes the comparison prove little.
    """

    rows: Sequence[Feed]
    reference: Array
    answers: Array
    labels: Array | None
    remarks: tuple[str, ...]

    def __call__(self, model: ModelProto) -> Loss:
        """Return what a graph loses; answers that are none lose without end."""
        # The CPU takes 16-bit graphs to float32 as a whole: what overflows on a GPU would not show.
        logits = run_onnx(emulate(model) if _has_halves(model) else model, self.rows)
        broken = int((~_finite(logits)).sum())
        if broken:
            return Loss(inf, inf, fault=f"its answers are NaN or infinite for {broken} of {len(logits)} rows")
        if self.reference.any() and not logits.any():
            return Loss(inf, inf, fault="its answers are all zero")
        drop = drop_of(self.answers, answers_of(logits), self.labels)
        return Loss(drop.value, divergence(self.reference, logits), drop)

    @property
    def unit(self) -> str:
        """What `divergence` is measured in."""
        classes = self.reference.ndim == 2 and self.reference.shape[1] > 1
        return "nats a sample" if classes else "share of the answers' energy"


def _has_halves(model: ModelProto) -> bool:
    return any(tensor.data_type in SIXTEEN_BITS for tensor in model.graph.initializer)


def judge_of(core: ModelProto, rows: Rows) -> Judge:
    """Run the float graph, and make the judge of others.

    Raises:
        UserError: its answers are no numbers for rows, are not finite, or are of other classes than the labels.
    """
    _check_output(core)
    try:
        reference = run_onnx(core, rows.judged)
    except ValueError as error:  # arrays that cannot be joined along their first axis
        raise UserError(f"its answers to several batches do not fit together ({error}); {_FIRST_AXIS}") from error
    if reference.dtype.kind != "f":
        raise UserError(
            f"its first output, {core.graph.output[0].name!r}, is {reference.dtype.name}; answers are compared by "
            "scores: put the floats [rows, classes] first"
        )
    if len(reference) != rows.count:
        raise UserError(f"it gives {len(reference)} answers for {rows.count} rows; {_FIRST_AXIS}")
    broken = int((~_finite(reference)).sum())
    if broken:
        raise UserError(
            f"the float32 model's own answers are NaN or infinite for {broken} of {rows.count} rows; check its "
            "weights, and that the rows are scaled as those that it was trained on"
        )
    answers = answers_of(reference)
    if rows.labels is not None:
        _check_labels(rows.labels, answers, reference, rows.where)
    remarks = (*_remarks(core, answers), *_no_better_than_chance(answers, rows.labels))
    return Judge(rows.judged, reference, answers, rows.labels, remarks)


def _no_better_than_chance(answers: Array, labels: Array | None) -> tuple[str, ...]:
    """Say when the float model is right no more often than one that always names the most frequent class."""
    if labels is None:
        return ()
    most, hits = int(np.unique(labels, return_counts=True)[1].max()), int((answers == labels).sum())
    if not hits <= most < labels.size:
        return ()
    return (
        f"the float32 model is right in {100 * hits / labels.size:.1f} % of the answers that judge, no more than "
        f"whoever always names the most frequent class ({100 * most / labels.size:.1f} %), so a small drop proves "
        "nothing: its weights may not be trained, the labels numbered otherwise, or the rows scaled otherwise",
    )


_FIRST_AXIS = "the first axis of its first output must be the batch"


def answers_of(logits: Array) -> Array:
    """Return the strongest class of each row [n], of dense logits [n, classes, …] that of each position [n, …].

    Of one logit a row it is whether it is above zero.
    """
    flat = logits.reshape(len(logits), -1) if logits.ndim < 3 else logits
    return np.asarray(flat[:, 0] > 0 if flat.shape[1] == 1 else flat.argmax(axis=1))


def drop_of(before: Array, after: Array, labels: Array | None) -> Estimate:
    """Return the accuracy lost, paired; without labels the share of answers that changed.

    Positions of a dense prediction depend on each other, so a row counts as one sample with a share of its positions.
    """
    if labels is None:
        return wilson(_total(after != before), len(before))
    right, still = before == labels, after == labels
    return paired_drop(_total(right & ~still), _total(~right & still), len(before))


def _total(hits: Array) -> float:
    """Add up each row's share of hits."""
    return float(hits.reshape(len(hits), -1).mean(axis=1).sum())


def _finite(logits: Array) -> Array:
    """Tell of each row whether all its logits are finite."""
    return np.asarray(np.isfinite(logits).reshape(len(logits), -1).all(axis=1))


def _check_output(core: ModelProto) -> None:
    """Refuse a first output that is no tensor of rows before anything is run."""
    first = core.graph.output[0]
    kind = first.type.WhichOneof("value")
    if kind not in (None, "tensor_type"):
        raise UserError(
            f"its first output, {first.name!r}, is a {kind}; export it with scores as a plain tensor, first"
        )
    if first.type.tensor_type.HasField("shape") and not first.type.tensor_type.shape.dim:
        raise UserError(f"its first output, {first.name!r}, is one number for all rows; {_FIRST_AXIS}")


def _check_labels(labels: Array, answers: Array, logits: Array, where: str) -> None:
    """Refuse labels that can never equal an answer: of another shape, no class numbers, or of classes that are not."""
    if labels.shape != answers.shape:
        mend = "they must be class numbers, in the shape of the answers"
        if labels.shape == logits.shape:
            mend = "they look one-hot; write the class numbers, labels.argmax(axis=1)"
        elif labels.size == answers.size:
            mend = f"write them flat, labels.reshape({', '.join(['-1', *map(str, answers.shape[1:])])})"
        raise UserError(f"{where}: the labels have the shape {_rows(labels)}, the answers {_rows(answers)}: {mend}")
    if labels.dtype.kind not in "iub":
        raise UserError(
            f"{where}: the labels are {labels.dtype.name}: they must be class numbers; write "
            "labels.astype('int64') where they are, and leave them out where they are no classes"
        )
    classes = max(2, 1 if logits.ndim == 1 else logits.shape[1])
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= classes:
        raise UserError(
            f"{where}: the labels go from {low} to {high}, the model has the classes 0 to {classes - 1}; number "
            "them like its outputs"
        )


def _rows(array: Array) -> str:
    return "[" + ", ".join(["rows", *map(str, array.shape[1:])]) + "]"


def _remarks(core: ModelProto, answers: Array) -> tuple[str, ...]:
    """Say what makes a comparison of answers prove little."""
    found = []
    if (answers == answers.flat[0]).all():
        found.append(
            f"the float32 model gives all {len(answers)} judged rows the same answer (class {int(answers.flat[0])}), "
            "so a small drop proves nothing; give rows of several classes"
        )
    first, *others = (value.name for value in core.graph.output)
    if others:
        found.append(f"only the first output, {first}, is judged; nothing compares {', '.join(others)}")
    return tuple(found)
