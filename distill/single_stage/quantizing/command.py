"""The verb `quantize`: from a model and samples to the fastest precision that keeps a budget."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from onnx import ModelProto

from distill.benchmarks import Options, Report, bench, resolve_target, why_unmeasurable
from distill.benchmarks.parse import counts, positive
from distill.benchmarks.target import Target
from distill.benchmarks.timing.callables import TorchCallable
from distill.benchmarks.timing.jobs import Timing
from distill.distillation.imitation import Imitation
from distill.errors import Exit, UserError
from distill.export.metadata import write_metadata
from distill.export.stripping import to_bytes
from distill.intervals import Estimate
from distill.outputs import Kind, Metric, Output
from distill.places import require_apart, require_places, write_output
from distill.quantize.choose import FLOAT, Candidate, Choice, Precision, choose, decide
from distill.quantize.repair import Loss
from distill.quantize.sensitivity import sensitivities
from distill.quantize.settings import QuantizeSettings
from distill.quantize.static import calibrate_graph
from distill.quantize.timing import saved_seconds
from distill.single_stage.quantizing import remarks
from distill.single_stage.quantizing.judge import Judge, judge_of
from distill.single_stage.quantizing.plot import sensitivity_svg
from distill.single_stage.quantizing.rows import Rows, inputs_of, part_rows, read_arrays
from distill.single_stage.quantizing.source import export_callable, read_graph
from distill.single_stage.quantizing.table import kept_float
from distill.single_stage.quantizing.tried import to_json
from distill.types import Progress

_TIMED = "candidate-{:02}"  # what a candidate is called while it is timed


@dataclass(frozen=True, kw_only=True)
class Words:
    """What was said on the command line."""

    model: str
    data: Path
    out: Path
    max_drop: float = 0.01
    labels: str | None = None
    target: str | None = None
    precision: Precision = "auto"
    calibration: str = "minmax"
    reduce_range: bool | None = None
    samples: int = 512
    output: Kind | None = None
    axis: int | None = None
    metric: Metric | None = None
    epochs: int = 0
    sensitivity: bool = False
    batch: str | None = None
    threads: int = 1
    measure: str | None = None
    pairs: int = 6
    seconds: float = 1.0
    seed: int = 0
    record: Path | None = None
    plot: Path | None = None

    @property
    def outputs(self) -> dict[str, Path]:
        """Option -> path of what is written."""
        said = {"--out": self.out, "--record": self.record, "--plot": self.plot}
        return {option: path for option, path in said.items() if path is not None}


def run(words: Words, say: Progress | None = None) -> tuple[Choice, Report | None, Exit]:
    """Quantise, judge, measure, choose and write; returns the choice, the measurement and the exit code.

    Where no other precision keeps the budget no model is written, and the code says so. Where float32 is the fastest it
    is written as it is.

    Raises:
        UserError: the model, the samples or an option is at fault.
    """
    target, settings = _asked(words)
    core, rows = _read(words)
    target = replace(target, batch_sizes=_batches(words, rows))
    with _told_of(words.model):
        judge = judge_of(core, rows, kind=words.output, axis=words.axis, metric=words.metric)
        chosen, report = _chosen(words, core, rows, judge, target, settings, say)
    found = [*rows.remarks, *judge.remarks, *(target.warnings if words.reduce_range is None else ())]
    found += remarks.of_choice(chosen, target, rows=rows.count, max_drop=words.max_drop)
    found += remarks.of_core(core) if report is None else ()
    found += judge.remarks_on(chosen.chosen.name, chosen.chosen.model)
    chosen = replace(chosen, warnings=(*chosen.warnings, *found), judged=judge.note)
    within = any(one.within for one in chosen.candidates[1:])
    if within:
        write_output("--out", words.out, to_bytes(_packed(chosen.chosen, core, target)))
    if words.record is not None:
        text = to_json(chosen, model=words.model, target=target.name, max_drop=words.max_drop, rows=rows.count)
        write_output("--record", words.record, text)
    if words.plot is not None and chosen.sensitivity:
        called = len(next(iter(rows.judged[0].values())))
        text = sensitivity_svg(chosen.sensitivity, kept_float(chosen), unit=judge.unit, rows=called)
        write_output("--plot", words.plot, text)
    return chosen, report, Exit.OK if within else Exit.VERDICT_NO


@contextmanager
def _told_of(model: str) -> Iterator[None]:
    """Let errors that know a graph only say which model it is of."""
    try:
        yield
    except UserError as error:
        raise UserError("\n".join(f"{model}: {line}" for line in str(error).splitlines())) from error


def _asked(words: Words) -> tuple[Target, QuantizeSettings]:
    """Check what was said before anything is read, and settle what the file ships to.

    Raises:
        UserError: a number, a target or a place that cannot be.
    """
    if not 0 <= words.max_drop <= 1:  # NaN passes the command line's own bounds
        raise UserError(f"--max-drop {words.max_drop}: must be from 0 to 1; 0.01 is one point")
    positive("--seconds", words.seconds)
    require_places(words.outputs)
    target = replace(resolve_target(words.target, threads=words.threads), measure=words.measure)
    if words.reduce_range is not None:
        target = replace(target, reduce_range=words.reduce_range)  # dynamic int8 asks the target
    if words.sensitivity and target.precision != "int8":
        raise UserError(
            f"--sensitivity: target {target.name} has no int8 layers; leave it out, or name another --target"
        )
    settings = QuantizeSettings(
        calibration=words.calibration,  # type: ignore[arg-type]
        samples=words.samples,
        reduce_range="auto" if words.reduce_range is None else words.reduce_range,
    )
    return target, settings


def _read(words: Words) -> tuple[ModelProto, Rows]:
    """Read or export the model, and read the samples.

    Raises:
        UserError: either is at fault, or would be written over.
    """
    made = TorchCallable.named(words.model)
    path = Path(words.model if made is None else made.reference.rpartition(":")[0])
    require_apart(words.outputs, [("the model itself", path), ("the data", words.data)])
    if made is None:
        if path.suffix == ".py" and path.is_file():
            raise UserError(f"{path}: name the function in it that makes the module, as {path}:make")
        core, extra = read_graph(path)
        require_apart(words.outputs, [("external data of the model", file) for file in extra])
        arrays = read_arrays(words.data)
    else:
        arrays = read_arrays(words.data)
        core = export_callable(made, arrays, words.labels)
    with _told_of(words.model):
        inputs = inputs_of(core)
    where = f"--data {words.data}"
    return core, part_rows(arrays, inputs, where=where, labels=words.labels, samples=words.samples, seed=words.seed)


def _batches(words: Words, rows: Rows) -> tuple[int, ...]:
    """Return the batch sizes to time: what was said, or the one that the model is fixed at, or 1.

    Raises:
        UserError: the model is fixed at another.
    """
    said = words.batch or str(rows.batch or 1)
    if rows.batch is not None and counts("--batch", said) != (rows.batch,):
        raise UserError(f"--batch {said}: {words.model} is fixed at a batch of {rows.batch}; leave --batch out")
    return counts("--batch", said)


def _chosen(
    words: Words,
    core: ModelProto,
    rows: Rows,
    judge: Judge,
    target: Target,
    settings: QuantizeSettings,
    say: Progress | None,
) -> tuple[Choice, Report | None]:
    """Make, judge and measure what may be the fastest, choose, and measure every layer where that was asked for."""
    reports: list[Report] = []

    def measure(models: Sequence[ModelProto]) -> list[list[Estimate]]:
        made = _measured(models, target, words, rows)
        if made is None:
            return [[] for _ in models]
        reports.append(made)
        timed = zip(*(case.rows for case in made.cases), strict=True)
        return [[row.ratio or Estimate(1.0, 1.0, 1.0) for row in sizes] for sizes in timed]

    chosen = choose(
        core,
        settings,
        target=target,
        calibration=rows.calibration,
        rows=rows.judged,
        judge=judge,
        measure=measure,
        max_drop=words.max_drop,
        precision=words.precision,
        train=Imitation(epochs=words.epochs, progress=say) if words.epochs else None,
        output=judge.output,
        progress=say,
    )
    report = _named(reports[0], [one.name for one in chosen.candidates if one.within]) if reports else None
    if report is not None:
        chosen = _finite_on_target(chosen, report, words.max_drop)
    if all(one.loss.fault for one in chosen.candidates[1:]):
        chosen = replace(chosen, why="no other precision gives answers that can be used")
    if words.sensitivity and not chosen.sensitivity:
        chosen = _with_sensitivity(chosen, core, settings, target, rows, judge.output, say)
    return chosen, report


def _with_sensitivity(
    chosen: Choice,
    core: ModelProto,
    settings: QuantizeSettings,
    target: Target,
    rows: Rows,
    output: Output,
    say: Progress | None,
) -> Choice:
    """Measure every layer of static int8, as it was written last if it was; why not is a warning."""
    settings = chosen.attempts[-1].settings if chosen.attempts else settings
    plain = replace(settings, bias_correction=False)  # needs no other ranges
    try:
        graph = calibrate_graph(core, plain, target=target, calibration=rows.calibration, progress=say)
        found = sensitivities(
            graph,
            settings,
            rows=rows.judged,
            saved_s=saved_seconds(graph, settings, feed=rows.judged[0]),
            output=output,
            progress=say,
        )
    except UserError as error:
        return replace(chosen, warnings=(*chosen.warnings, f"--sensitivity: no layer could be measured: {error}"))
    return replace(chosen, sensitivity=tuple(found))


def _measured(models: Sequence[ModelProto], target: Target, words: Words, rows: Rows) -> Report | None:
    """Time graphs in turns on the target; None where it is not at hand."""
    if why_unmeasurable(target) is not None:
        return None
    with tempfile.TemporaryDirectory(prefix="distill-quantize-") as folder:
        paths = []
        for number, model in enumerate(models):
            paths.append(Path(folder, f"{_TIMED.format(number)}.onnx"))
            paths[-1].write_bytes(to_bytes(model))
        options = Options(
            target=target,
            batches=target.batch_sizes,
            threads=(words.threads,),
            timing=Timing(pairs=words.pairs, seconds_per_pair=words.seconds, seed=words.seed),
            rows=rows.judged[0],
        )
        return bench(paths, options)


def _named(report: Report, names: Sequence[str]) -> Report:
    """Call the timed files, also in remarks on them, what the candidates are called."""

    def said(texts: Sequence[str]) -> tuple[str, ...]:
        for number, name in enumerate(names):
            texts = [text.replace(_TIMED.format(number), name) for text in texts]
        return tuple(texts)

    models = tuple(
        replace(model, facts=replace(model.facts, name=name), warnings=said(model.warnings))
        for model, name in zip(report.models, names, strict=True)
    )
    cases = tuple(replace(case, warnings=said(case.warnings)) for case in report.cases)
    return replace(report, models=models, cases=cases, warnings=said(report.warnings))


def _finite_on_target(chosen: Choice, report: Report, max_drop: float) -> Choice:
    """Choose again without what gives no answers on the target itself: candidates are judged on the CPU.

    There fp16 is calculated in 32 bits, which hold numbers that 16 bits do not.
    """
    broken = {model.facts.name for model in report.models if not model.finite} - {FLOAT}
    if not broken:
        return chosen
    lost = Loss(math.inf, math.inf, fault=f"its answers on {report.target['provider']} are NaN or infinite")
    candidates = tuple(
        replace(one, within=False, loss=lost) if one.name in broken else one for one in chosen.candidates
    )
    best, why = decide(candidates, max_drop)
    return replace(chosen, chosen=best, why=why, candidates=candidates)


def _packed(candidate: Candidate, core: ModelProto, target: Target) -> ModelProto:
    """Say in the file what it was made for, and what it relies on."""
    if candidate.name == FLOAT or candidate.record is None:
        return core
    entries = {"target": target.name, "precision": candidate.record.precision}
    isa = target.relied_on(candidate.record.saturation_risk)
    if isa is not None:
        entries["isa"] = isa
    kept = {entry.key: entry.value for entry in core.metadata_props}
    return write_metadata(candidate.model, {**kept, **entries})
