"""The judge of the verb `quantize`: what a graph loses against the float one, on the same rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

import numpy as np
from onnx import ModelProto

from distill.errors import UserError
from distill.export.outputs import tail_of
from distill.export.parity_check import run_onnx
from distill.outputs import Comparison, Evidence, Kind, Metric, Output, checked_labels, note, tell_or_numbers
from distill.quantize.half.narrow import SIXTEEN_BITS, emulate
from distill.quantize.repair import Loss
from distill.single_stage.quantizing.rows import Rows
from distill.types import Array, Feed


@dataclass(frozen=True)
class Judge:
    """Compares graphs with the float one on `rows`, by what their output holds.

    `remarks` say what makes the comparison prove little, `note` what the output is judged as.
    """

    rows: Sequence[Feed]
    comparison: Comparison
    remarks: tuple[str, ...]
    note: str

    def __call__(self, model: ModelProto) -> Loss:
        """Return what a graph loses; answers that are none lose without end."""
        reference, values = self.comparison.before, self.answer(model)
        broken = int((~_finite(values)).sum())
        if broken:
            return Loss(inf, inf, fault=f"its answers are NaN or infinite for {broken} of {len(values)} rows")
        if reference.any() and not values.any():
            return Loss(inf, inf, fault="its answers are all zero")
        if _all_equal(values) and not _all_equal(reference):
            return Loss(inf, inf, fault=f"its answers are equal for all {len(values)} rows, whatever is in them")
        drop = self.comparison.drop(values)
        return Loss(drop.value, self.output.divergence(reference, values), drop)

    def answer(self, model: ModelProto) -> Array:
        """Return a graph's output for the rows."""
        # The CPU takes 16-bit graphs to float32 as a whole: what overflows on a GPU would not show.
        return run_onnx(emulate(model) if _has_halves(model) else model, self.rows)

    def remarks_on(self, name: str, model: ModelProto) -> tuple[str, ...]:
        """Say where the answers of a graph that may ship prove little, though the float one's do not."""
        found = self.comparison.remark(self.answer(model), (_FLOAT, name))
        return () if found is None or self.comparison.remark(None, (_FLOAT, name)) else (found,)

    @property
    def output(self) -> Output:
        """What the output holds."""
        return self.comparison.output

    @property
    def unit(self) -> str:
        """What `divergence` is measured in."""
        return self.output.unit


def _has_halves(model: ModelProto) -> bool:
    return any(tensor.data_type in SIXTEEN_BITS for tensor in model.graph.initializer)


def judge_of(
    core: ModelProto, rows: Rows, *, kind: Kind | None = None, axis: int | None = None, metric: Metric | None = None
) -> Judge:
    """Run the float graph, and make the judge of others.

    Args:
        core: the float graph.
        rows: samples, and labels where there are some.
        kind: what the user says that the output holds.
        axis: the axis of its classes, as the user says.
        metric: the user's own measure of outputs and labels.

    Raises:
        UserError: nothing tells what the output holds; its answers are no numbers for rows, or not finite; or the
            labels can never equal an answer.
    """
    _check_output(core)
    name = core.graph.output[0].name
    reference = _reference(core, rows)
    evidence = Evidence(
        name=name,
        values=reference,
        tail=tail_of(core, name, reference.ndim),
        labels=None if metric is not None else rows.labels,
        inputs={value.shape[1:] for value in rows.judged[0].values()},
    )
    output = tell_or_numbers(evidence, kind=kind, axis=axis, own=metric is not None)
    labels = rows.labels
    if labels is not None and metric is None:
        labels = checked_labels(output, reference, labels, rows.where)
    comparison = Comparison(output, reference, labels, metric)
    comparison.drop(reference)  # finds at once what a metric of the user's, or numbers that never vary, refuse
    others = [value.name for value in core.graph.output[1:]]
    weak = (comparison.remark(None, (_FLOAT, _FLOAT)), comparison.chance_remark(_FLOAT))
    remarks = [text for text in weak if text is not None]
    remarks += [f"only the first output, {name}, is judged; nothing compares {', '.join(others)}"] if others else []
    said = kind is not None or axis is not None
    text = note(evidence, output, stated=said, measure=comparison.measure, own=metric is not None)
    return Judge(rows.judged, comparison, tuple(remarks), text)


_FLOAT = "the float32 model"
_FIRST_AXIS = "the first axis of its first output must be the batch"


def _reference(core: ModelProto, rows: Rows) -> Array:
    """Return the float graph's answers. Raises UserError for what is no score of each row."""
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
    return reference


def _finite(values: Array) -> Array:
    """Tell of each row whether all its values are finite."""
    return np.asarray(np.isfinite(values).reshape(len(values), -1).all(axis=1))


def _all_equal(values: Array) -> bool:
    return bool((values == values[:1]).all())


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
