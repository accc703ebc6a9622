"""The judge of `prune` and `quantize`: what answers lose against a reference model's, on the same rows."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from math import inf

import numpy as np
from onnx import ModelProto

from distill.benchmarks import units
from distill.errors import UserError
from distill.export.graph import copy_of, refill
from distill.export.outputs import tail_of
from distill.export.parity_check import output_distances, run_onnx, session_of
from distill.outputs import (
    KINDS,
    UNKNOWN,
    Comparison,
    Evidence,
    Kind,
    Metric,
    checked_labels,
    note,
    tell_or_numbers,
)
from distill.quantize.half.narrow import SIXTEEN_BITS, casts_to, emulate
from distill.quantize.repair_loop import Loss
from distill.references.functions import load_reference
from distill.single_stage.calibration_rows import GraphRows
from distill.single_stage.options import PruneOptions, QuantizeOptions
from distill.types import Array, Feed

_FLOAT = "the float32 model"
_FIRST_AXIS = "the first axis of the output that is judged must be the batch"


@dataclass(frozen=True)
class AnswerSettings:
    """What the user says of the answers: what they hold, the axis of their classes, a measure of the user's own.

    `name` is that of the output that has them, None for the first.
    """

    kind: Kind | None = None
    axis: int | None = None
    metric: Metric | None = None
    name: str | None = None

    @classmethod
    def of(cls, options: PruneOptions | QuantizeOptions) -> AnswerSettings:
        """Take them from a verb's options: of `quantize`, ``output`` is a kind, the name of an output, or NAME=KIND.

        Raises:
            UserError: an unknown kind, or a metric that cannot be loaded.
        """
        name, _, kind = (options.output or "").rpartition("=")
        if kind not in ("", *KINDS) and isinstance(options, PruneOptions):
            raise UserError(f"--output {options.output}: must be one of {', '.join(KINDS)}")
        if kind not in KINDS:
            name, kind = options.output or "", ""
        metric = options.metric
        if isinstance(metric, str):
            metric = load_reference(metric, field="--metric")
        return cls(next((each for each in KINDS if each == kind), None), options.axis, metric, name or None)


@dataclass(frozen=True)
class Judge:
    """Compares outputs with a reference model's, by what they hold.

    `labels` are those of all rows, in the form of the answers; None where there are none, or a metric of the user's
    own reads them. `note` says as what the answers are judged.
    """

    comparison: Comparison
    labels: Array | None
    note: str

    @classmethod
    def of(
        cls,
        core: ModelProto,
        reference: Array,
        labels: Array | None,
        settings: AnswerSettings,
        *,
        source_name: str,
        input_shapes: Collection[tuple[int, ...]],
        judging_rows: Array | None = None,
    ) -> Judge:
        """Tell what the outputs hold, and check the labels by it.

        ``reference`` is the first output of the graph ``core`` [rows, …], ``judging_rows`` the numbers of the rows that
        judge (all when None), ``input_shapes`` have the shape of a row of each input, ``source_name`` is what messages
        call the rows.

        Raises:
            UserError: nothing tells what the output holds, or the labels can never equal an answer.
        """
        own = settings.metric is not None
        truth = None if own else labels
        name = core.graph.output[0].name if core.graph.output else "logits"
        tail = tail_of(core, name, reference.ndim) if core.graph.output else UNKNOWN
        evidence = Evidence(name, reference, tail, truth, input_shapes)
        output = tell_or_numbers(evidence, kind=settings.kind, axis=settings.axis, own=own)
        if truth is not None:
            truth = checked_labels(output, reference, truth, source_name)
        right, before = labels if own else truth, reference
        if judging_rows is not None:
            right, before = None if right is None else right[judging_rows], reference[judging_rows]
        comparison = Comparison(output, before, right, settings.metric)
        comparison.drop(before)  # finds at once what a metric of the user's, or numbers that never vary, refuse
        stated = settings.kind is not None or settings.axis is not None
        return cls(comparison, truth, note(evidence, output, stated=stated, measure=comparison.measure, own=own))


@dataclass(frozen=True)
class GraphJudge:
    """Compares graphs with the float one, `core`, on `rows`.

    `note` says as what the output is judged, `remarks` what makes the comparison prove little.
    """

    core: ModelProto
    rows: Sequence[Feed]
    comparison: Comparison
    note: str
    remarks: tuple[str, ...]

    @classmethod
    def of(cls, core: ModelProto, rows: GraphRows, settings: AnswerSettings = AnswerSettings()) -> GraphJudge:
        """Run the float graph, and make the judge of others.

        Raises:
            UserError: nothing tells what the output holds; its answers are no numbers for rows, or not finite; or the
                labels can never equal an answer.
        """
        _require_rows_first(core)
        reference = _reference(core, rows)
        shapes = {value.shape[1:] for value in rows.judged[0].values()}
        judge = Judge.of(core, reference, rows.labels, settings, source_name=rows.source_name, input_shapes=shapes)
        comparison = judge.comparison
        weak = (comparison.remark(None, (_FLOAT, _FLOAT)), comparison.chance_remark(_FLOAT))
        remarks = [text for text in weak if text is not None]
        first, *others = [value.name for value in core.graph.output]
        if others:
            remarks.append(f"output {first} is judged; --output NAME judges another: {', '.join(others)}")
        return cls(core, rows.judged, comparison, judge.note, tuple(remarks))

    def __call__(self, model: ModelProto) -> Loss:
        """Return what a graph loses; answers that are none lose without end."""
        reference, values = self.comparison.before, self.answer(model)
        broken = int((~_finite_rows(values)).sum())
        if broken:
            return Loss(inf, inf, fault=f"its answers are NaN or infinite for {broken} of {len(values)} rows")
        if reference.any() and not values.any():
            return Loss(inf, inf, fault="its answers are all zero")
        if _all_equal(values) and not _all_equal(reference):
            return Loss(inf, inf, fault=f"its answers are equal for all {len(values)} rows, whatever is in them")
        drop = self.comparison.drop(values)
        return Loss(drop.value, self.comparison.output.divergence(reference, values), drop)

    def answer(self, model: ModelProto) -> Array:
        """Return a graph's output for the rows."""
        return run_onnx(_runnable(model), self.rows)

    def remarks_on(self, name: str, model: ModelProto) -> tuple[str, ...]:
        """Say where the answers of a graph that may ship prove little, though the float one's do not.

        Of what else it puts out it says how far that is from what the float one does.
        """
        remark = self.comparison.remark(self.answer(model), (_FLOAT, name))
        weak = () if remark is None or self.comparison.remark(None, (_FLOAT, name)) else (remark,)
        if len(self.core.graph.output) < 2:
            return weak
        before, after = (session_of(_runnable(graph)) for graph in (self.core, model))
        distances = output_distances(before, after, self.rows[0])
        judged = self.core.graph.output[0].name
        moved = [f"{key} by {units.share(size)}" for key, size in distances.items() if size and key != judged]
        text = f"{name}: moves outputs that are not judged, of their largest value: {', '.join(moved)}"
        return (*weak, text) if moved else weak


def _runnable(model: ModelProto) -> ModelProto:
    """Return what shows on the CPU what a graph answers: it takes 16-bit graphs to float32 as a whole.

    What overflows on a GPU would not show.
    """
    halves = any(tensor.data_type in SIXTEEN_BITS for tensor in model.graph.initializer)
    return emulate(model) if halves or casts_to(model, SIXTEEN_BITS) else model


def judged_first(core: ModelProto, name: str | None) -> ModelProto:
    """Return a graph that puts out first what is judged. Raises UserError where it has no output of this name."""
    names = [value.name for value in core.graph.output]
    if name is None:
        return core
    if name not in names:
        raise UserError(
            f"--output {name}: is no kind ({', '.join(KINDS)}), and no output of the model, which has "
            f"{', '.join(names)}"
        )
    twin = copy_of(core)
    refill(twin.graph.output, sorted(core.graph.output, key=lambda value: value.name != name))
    return twin


def require_finite_answers(values: Array, model: str, source_name: str = "") -> None:
    """Refuse a reference model's answers [rows, …] that are not finite. Raises UserError."""
    broken = int((~_finite_rows(values)).sum())
    if broken:
        opening = f"{source_name}: " if source_name else ""
        raise UserError(
            f"{opening}{model} own answers are NaN or infinite for {broken} of {len(values)} rows; check its weights, "
            "and that the rows are scaled as those that it was trained on"
        )


def _reference(core: ModelProto, rows: GraphRows) -> Array:
    """Return the float graph's answers. Raises UserError for what is no score of each row."""
    try:
        reference = run_onnx(core, rows.judged)
    except ValueError as error:  # arrays that cannot be joined along their first axis
        raise UserError(f"its answers to several batches do not fit together ({error}); {_FIRST_AXIS}") from error
    if reference.dtype.kind != "f":
        raise UserError(
            f"its output {core.graph.output[0].name!r} is {reference.dtype.name}; answers are compared by scores: "
            f"{_mend(core, 'put the floats [rows, classes] first')}"
        )
    if len(reference) != rows.count:
        raise UserError(f"it gives {len(reference)} answers for {rows.count} rows; {_FIRST_AXIS}")
    require_finite_answers(reference, "the float32 model's")
    return reference


def _require_rows_first(core: ModelProto) -> None:
    """Refuse a first output that is no tensor of rows before anything is run."""
    first = core.graph.output[0]
    kind = first.type.WhichOneof("value")
    if kind not in (None, "tensor_type"):
        raise UserError(
            f"its output {first.name!r} is a {kind}; {_mend(core, 'export it with scores as a plain tensor, first')}"
        )
    if first.type.tensor_type.HasField("shape") and not first.type.tensor_type.shape.dim:
        raise UserError(f"its output {first.name!r} is one number for all rows; {_mend(core, _FIRST_AXIS)}")


def _mend(core: ModelProto, single: str) -> str:
    """Say what mends an output that cannot be judged: another one, or, where there is none, ``single``."""
    others = [value.name for value in core.graph.output[1:]]
    return f"judge another by --output NAME, of {', '.join(others)}" if others else single


def _finite_rows(values: Array) -> Array:
    """Tell of each row whether all its values are finite."""
    return np.asarray(np.isfinite(values).reshape(len(values), -1).all(axis=1))


def _all_equal(values: Array) -> bool:
    return bool((values == values[:1]).all())
