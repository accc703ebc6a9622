"""`quantize` alone: from anybody's model and samples to the fastest precision that keeps a budget."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, get_args

from onnx import ModelProto

from distill import scratch
from distill.benchmarks import Options, Report, bench, resolve_target, why_unmeasurable
from distill.benchmarks.onnx_file.facts import subnormal_weights
from distill.benchmarks.parse import counts
from distill.benchmarks.target import Target
from distill.benchmarks.timing.jobs import Timing
from distill.benchmarks.verdict.remarks import subnormal_remark
from distill.bounds import MOST_ROWS
from distill.distillation.imitation import Imitation
from distill.errors import Exit, UserError
from distill.export.graph import copy_of, opset_of, refill
from distill.export.metadata import write_metadata
from distill.export.newer_opset import with_opset
from distill.export.parity_check import output_distances, session_of, time_limit
from distill.export.stripping import to_bytes
from distill.intervals import Estimate
from distill.output_paths import require_places, write_output
from distill.quantize.choose_precision import FLOAT, Candidate, Choice, Objective, Precision, choose, decide
from distill.quantize.float_graph import MIN_OPSET
from distill.quantize.repair_loop import Loss
from distill.quantize.sensitivity import saved_seconds, sensitivities
from distill.quantize.settings import CALIBRATIONS, QuantizeSettings
from distill.quantize.static import calibrate_graph
from distill.single_stage.calibration_rows import GraphRows, inputs_of, part_rows
from distill.single_stage.inputs import told_of
from distill.single_stage.judge import AnswerSettings, GraphJudge, judged_first
from distill.single_stage.options import (
    GraphLike,
    QuantizeOptions,
    Rows,
    require_bounds,
    shown,
)
from distill.single_stage.quantizing import remarks
from distill.single_stage.quantizing.plot import sensitivity_svg
from distill.single_stage.quantizing.report import kept_float, to_json
from distill.single_stage.quantizing.source import read_source
from distill.types import Progress

_SAME = 1e-3  # of the largest answer: what other kernels for the same float32 graph may do
_TIMED = "candidate-{:02}"  # what a candidate is called while it is timed


@dataclass(frozen=True)
class Quantized:
    """What came of quantisation: the graph that was chosen, what was tried, and what was measured, if anything was.

    Where no other precision keeps the budget `onnx` is the float32 graph, and `exit_code` says so. ``record`` is all
    that was tried, as JSON; ``unproven`` says what rows or timing could not resolve.
    """

    onnx: ModelProto
    choice: Choice
    report: Report | None
    exit_code: Exit
    record: str
    unproven: tuple[str, ...] = ()


def quantize_model(model: GraphLike, *, data: Rows, progress: Progress | None = None, **options: Any) -> Quantized:
    """Find the fastest precision of a model that keeps a budget, and prove it.

    Args:
        model: an nn.Module, a function that makes one, an ONNX graph or its path, or a reference as the command line
            takes it; it is not changed.
        data: rows: an `.npz`, arrays by input name, (inputs, labels), a Dataset or a DataLoader.
        progress: called as (step, how much of it is over, how much there is).
        options: the other fields of ``QuantizeOptions``, which are the options of the command line, such as
            ``max_drop``; ``metric`` is a function of outputs and labels.

    Raises:
        UserError: the model, the samples or an option is at fault.
    """
    return run(QuantizeOptions(model=model, data=data, **options), progress)


def run(options: QuantizeOptions, progress: Progress | None = None) -> Quantized:
    """Quantise, judge, measure, choose and write.

    Where no other precision keeps the budget no model is written. Where float32 is the fastest it is written as it is.
    Raises UserError as ``quantize_model`` does.
    """
    target, settings, answers = _settle(options)
    as_read, rows = _read(options)
    target = replace(target, batch_sizes=_batch_sizes(options, rows))
    with told_of(shown(options.model)), time_limit(options.timeout):
        core = judged_first(as_read, answers.name)
        job = _Job(options, core, rows, GraphJudge.of(core, rows, answers), target, settings, progress)
        converted = job.conversion()
        choice, report = job.choose()
    warnings = [*rows.remarks, *job.judge.remarks, *(target.warnings if options.reduce_range is None else ())]
    warnings += converted
    warnings += remarks.of_choice(choice, target, rows=rows.count, max_drop=options.max_drop)
    warnings += subnormal_remark(FLOAT, subnormal_weights(core)) if report is None else ()
    warnings += job.judge.remarks_on(choice.chosen.name, choice.chosen.model)
    choice = replace(choice, warnings=(*choice.warnings, *warnings), judged=job.judge.note)
    within = any(candidate.within for candidate in choice.candidates[1:])
    graph = _labelled(choice.chosen, as_read, target)
    record = to_json(choice, model=shown(options.model), target=target.name, max_drop=options.max_drop, rows=rows.count)
    _write(options, job, choice, graph if within else None, record)
    timed_for = None if options.objective == "size" else choice.candidates
    unproven = remarks.unproven(choice, timed_for or (), rows=rows.count, max_drop=options.max_drop)
    return Quantized(graph, choice, report, Exit.OK if within else Exit.VERDICT_NO, record, tuple(unproven))


def _write(options: QuantizeOptions, job: _Job, choice: Choice, graph: ModelProto | None, record: str) -> None:
    """Write what has a place: the graph, where one keeps the budget, what was tried, and the chart."""
    if options.out is not None and graph is not None:
        write_output("--out", options.out, to_bytes(graph))
    if options.record is not None:
        write_output("--record", options.record, record)
    if options.plot is not None and choice.sensitivity:
        called = len(next(iter(job.rows.judged[0].values())))
        svg = sensitivity_svg(
            choice.sensitivity, kept_float(choice), unit=job.judge.comparison.output.unit, rows=called
        )
        write_output("--plot", options.plot, svg)


def _settle(options: QuantizeOptions) -> tuple[Target, QuantizeSettings, AnswerSettings]:
    """Check the options before anything is read, and settle what the file ships to."""
    require_bounds(options)
    for name, value, choices in (
        ("--precision", options.precision, get_args(Precision)),
        ("--calibration", options.calibration, CALIBRATIONS),
        ("--objective", options.objective, get_args(Objective)),
    ):
        if value not in choices:
            raise UserError(f"{name} {value}: must be one of {', '.join(choices)}")
    answers = AnswerSettings.of(options)
    require_places(options.outputs)
    target = replace(resolve_target(options.target, threads=options.threads), measure=options.measure)
    if options.reduce_range is not None:
        target = replace(target, reduce_range=options.reduce_range)  # dynamic int8 asks the target
    if options.sensitivity and target.precision != "int8":
        raise UserError(
            f"--sensitivity: target {target.name} has no int8 layers; leave it out, or name another --target"
        )
    settings = QuantizeSettings(
        calibration=options.calibration,  # type: ignore[arg-type]
        samples=options.samples,
        reduce_range="auto" if options.reduce_range is None else options.reduce_range,
    )
    return target, settings, answers


def _read(options: QuantizeOptions) -> tuple[ModelProto, GraphRows]:
    """Read or export the model, and read the samples; refuse to write over either."""
    core, arrays, source_remarks = read_source(options)
    with told_of(shown(options.model)):
        inputs = inputs_of(core)
    rows = part_rows(
        arrays,
        inputs,
        source_name=f"--data {shown(options.data)}",
        labels=options.labels,
        samples=options.samples,
        seed=options.seed,
    )
    return core, replace(rows, remarks=(*source_remarks, *rows.remarks))


def _batch_sizes(options: QuantizeOptions, rows: GraphRows) -> tuple[int, ...]:
    """Return the batch sizes to time: what the user says, or the one that the model is fixed at, or 1."""
    text = options.batch or str(rows.batch or 1)
    sizes = counts("--batch", text, MOST_ROWS)
    if rows.batch is not None and sizes != (rows.batch,):
        model = shown(options.model)
        raise UserError(f"--batch {text}: {model} is fixed at a batch of {rows.batch}; leave --batch out")
    return sizes


@dataclass(frozen=True)
class _Job:
    """A float graph, the rows that judge others, and what these are made for."""

    options: QuantizeOptions
    core: ModelProto
    rows: GraphRows
    judge: GraphJudge
    target: Target
    settings: QuantizeSettings
    progress: Progress | None

    def conversion(self) -> list[str]:
        """Say that an old opset is converted. Raises UserError where the converted graph answers otherwise."""
        opset, options = opset_of(self.core), self.options
        kinds = self.target.formats if options.precision == "auto" else (options.precision,)
        if opset >= MIN_OPSET or set(kinds) <= {"fp16"}:
            return []
        newer = with_opset(self.core, MIN_OPSET)
        distances = output_distances(session_of(self.core), session_of(newer), self.rows.judged[0])
        worst = max(distances, key=lambda name: distances[name])
        if distances[worst] > _SAME:
            raise UserError(
                f"opset {opset}: what onnx converts it to, opset {MIN_OPSET}, answers otherwise ({worst} moves by "
                f"{100 * distances[worst]:.2g} % of its largest value); export it with opset {MIN_OPSET} or newer"
            )
        return [f"opset {opset} was converted to {MIN_OPSET}, which answers the same; a float32 file keeps its own"]

    def choose(self) -> tuple[Choice, Report | None]:
        """Make, judge and measure what may be the fastest, choose, and measure every layer where that is asked for."""
        options, reports = self.options, list[Report]()

        def measure(models: Sequence[ModelProto]) -> list[list[Estimate]]:
            report = self._measured(models)
            if report is None:
                return [[] for _ in models]
            reports.append(report)
            timed = zip(*(case.rows for case in report.cases), strict=True)
            return [[row.ratio or Estimate(1.0, 1.0, 1.0) for row in sizes] for sizes in timed]

        choice = choose(
            self.core,
            self.settings,
            target=self.target,
            calibration=self.rows.calibration,
            rows=self.rows.judged,
            judge=self.judge,
            measure=measure,
            max_drop=options.max_drop,
            precision=options.precision,  # type: ignore[arg-type]
            objective=options.objective,  # type: ignore[arg-type]
            train=Imitation(epochs=options.epochs, progress=self.progress) if options.epochs else None,
            output=self.judge.comparison.output,
            progress=self.progress,
        )
        report = None
        if reports:
            report = _named(reports[0], [candidate.name for candidate in choice.candidates if candidate.within])
            choice = _finite_on_target(choice, report, options)
        if all(candidate.loss.fault for candidate in choice.candidates[1:]):
            choice = replace(choice, why="no other precision gives answers that can be used")
        if options.sensitivity and not choice.sensitivity:
            choice = self._with_sensitivity(choice)
        return choice, report

    def _with_sensitivity(self, choice: Choice) -> Choice:
        """Measure every layer of static int8, as it was written last if it was; why not is a warning."""
        settings = choice.attempts[-1].settings if choice.attempts else self.settings
        plain = replace(settings, bias_correction=False)  # needs no other ranges
        rows = self.rows
        try:
            graph = calibrate_graph(
                self.core, plain, target=self.target, calibration=rows.calibration, progress=self.progress
            )
            layers = sensitivities(
                graph,
                settings,
                rows=rows.judged,
                saved_s=saved_seconds(graph, settings, feed=rows.judged[0]),
                output=self.judge.comparison.output,
                progress=self.progress,
            )
        except UserError as error:
            return replace(choice, warnings=(*choice.warnings, f"--sensitivity: no layer could be measured: {error}"))
        return replace(choice, sensitivity=tuple(layers))

    def _measured(self, models: Sequence[ModelProto]) -> Report | None:
        """Time graphs in turns on the target; None where it is not at hand."""
        options = self.options
        if why_unmeasurable(self.target) is not None:
            return None
        with scratch.folder("quantize") as folder:
            paths = [folder / f"{_TIMED.format(number)}.onnx" for number in range(len(models))]
            for path, model in zip(paths, models, strict=True):
                path.write_bytes(to_bytes(model))
            return bench(
                paths,
                Options(
                    target=self.target,
                    batches=self.target.batch_sizes,
                    threads=(options.threads,),
                    timing=Timing(pairs=options.pairs, seconds_per_pair=options.seconds, seed=options.seed),
                    rows=self.rows.judged[0],
                ),
            )


def _named(report: Report, names: Sequence[str]) -> Report:
    """Call the timed files, also in remarks on them, what the candidates are called."""

    def renamed(texts: Sequence[str]) -> tuple[str, ...]:
        for number, name in enumerate(names):
            texts = [text.replace(_TIMED.format(number), name) for text in texts]
        return tuple(texts)

    models = tuple(
        replace(model, facts=replace(model.facts, name=name), warnings=renamed(model.warnings))
        for model, name in zip(report.models, names, strict=True)
    )
    cases = tuple(replace(case, warnings=renamed(case.warnings)) for case in report.cases)
    return replace(report, models=models, cases=cases, warnings=renamed(report.warnings))


def _finite_on_target(choice: Choice, report: Report, options: QuantizeOptions) -> Choice:
    """Choose again without what gives no answers on the target itself: candidates are judged on the CPU.

    There fp16 is calculated in 32 bits, which hold numbers that 16 bits do not.
    """
    broken = {model.facts.name for model in report.models if not model.finite} - {FLOAT}
    if not broken:
        return choice
    lost = Loss(math.inf, math.inf, fault=f"its answers on {report.target['provider']} are NaN or infinite")
    candidates = tuple(
        replace(candidate, within=False, loss=lost) if candidate.name in broken else candidate
        for candidate in choice.candidates
    )
    best, why = decide(candidates, options.max_drop, options.objective)  # type: ignore[arg-type]
    return replace(choice, chosen=best, why=why, candidates=candidates)


def _labelled(candidate: Candidate, core: ModelProto, target: Target) -> ModelProto:
    """Say in the file what it was made for, and what it relies on."""
    if candidate.record is None:
        why = "no other precision was kept: none is within the budget and surely better"
        return write_metadata(core, {"target": target.name, "precision": FLOAT, "why": why})
    entries = {"target": target.name, "precision": candidate.record.precision}
    isa = target.relied_on(candidate.record.saturation_risk)
    if isa is not None:
        entries["isa"] = isa
    places = {value.name: place for place, value in enumerate(core.graph.output)}
    model = copy_of(candidate.model)
    refill(model.graph.output, sorted(model.graph.output, key=lambda value: places[value.name]))
    return write_metadata(model, {entry.key: entry.value for entry in core.metadata_props} | entries)
