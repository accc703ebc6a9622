"""`prune` alone: from anybody's model to a smaller one that is as fast as was asked, or to the reason why not."""

from __future__ import annotations

import shlex
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from onnx import ModelProto
from torch import Tensor, nn

from distill import files, scratch
from distill.benchmarks import machine, why_unmeasurable
from distill.errors import NotMeasuredError, UserError
from distill.export import to_bytes
from distill.prune import PruneRecord, prune_channels
from distill.prune.reload import load_own, save
from distill.prune.sparse.sparsify import SparseRecord, sparsify
from distill.prune.sparse.zeros import release_
from distill.references.unwrapping import not_finite
from distill.rendering.html import html
from distill.rendering.markdown import markdown
from distill.single_stage.inputs import Inputs, built, logits_in, logits_of, made_up, named_inputs, told_of
from distill.single_stage.options import ModuleLike, PruneOptions, shown, typed
from distill.single_stage.pruning import remarks
from distill.single_stage.pruning.outcome import RECORD, Latency, Outcome, require_place, work_folder
from distill.single_stage.pruning.report import document
from distill.single_stage.pruning.request import PruneRequest, read_request
from distill.single_stage.pruning.rows import JudgedRows, Recovery, Samples, read_samples
from distill.single_stage.pruning.shipping import SAMPLES, Shipping
from distill.tasks.rows import moved
from distill.tasks.sources import cache_folder
from distill.types import Progress

_EXAMPLE = 2  # rows
_NEAR = 0.95  # of the speed-up that was asked for: what the last, longer comparison may measure
_REBUILT = 1e-4  # share of the largest logit by which a rebuilt model may differ


@dataclass(frozen=True)
class Pruned:
    """What came of pruning: the pruned model on the CPU, its float32 graph, and what was measured.

    `outcome.status` says whether the goal was reached; `onnx` is None where the model fell short of it at once.
    """

    model: nn.Module
    onnx: ModelProto | None
    outcome: Outcome


def prune_model(model: ModuleLike, *, progress: Progress | None = None, **options: Any) -> Pruned:
    """Remove channels, heads and blocks of a model, and prove what that bought.

    One of ``macs``, ``parameters``, ``ratio`` and ``speedup`` says how much goes. ``data`` are rows: an `.npz`, arrays
    by the names of forward's parameters, (inputs, labels), a Dataset or a DataLoader; ``metric`` is a function of
    outputs and labels.

    Args:
        model: is not changed; or a function that makes it, or a reference as the command line takes it.
        progress: called as (step, how much of it is over, how much there is).
        options: the other fields of ``PruneOptions``, which are the options of the command line.

    Raises:
        UserError: the model, the rows or an option is at fault.
        NotMeasuredError: a speed-up is asked for, and the target is not at hand; or its provider does not load.
    """
    return run(PruneOptions(model=model, **options), progress)


def run(options: PruneOptions, progress: Progress | None = None) -> Pruned:
    """Prune, teach, measure, and write the folder where the goal is reached and the file is not slower.

    Raises what ``prune_model`` raises.
    """
    request = read_request(options)
    if options.out is not None:
        require_place(options.out, [path for path in (options.data, options.weights) if isinstance(path, Path)])
        if not isinstance(options.model, str):
            raise UserError("out: a folder says how its model is built again; give model as package.module:function")
    unmeasured = _why_unmeasured(request)
    with work_folder(options.out) as work:
        with told_of(shown(options.model)):
            start = _start(request, work, progress)
            pruned, record = _prune(start, timed=unmeasured is None)
            outcome = _outcome(start, record, unmeasured)
            if record.shortfall is not None:
                return Pruned(pruned.cpu(), None, replace(outcome, status="missed", why=record.shortfall))
            pruned, sparse = _finish(start, pruned)
            graph = start.shipping.exported(pruned)
        outcome = _judge(outcome, start, pruned, sparse, graph)
        if unmeasured is None:
            outcome = _time(outcome, start, graph)
        if outcome.status == "done" and options.out is not None:
            _write(options.out, start, pruned, graph, outcome)
        return Pruned(pruned, graph, outcome)


@dataclass(frozen=True)
class _Start:
    """The unpruned model, its float32 graph, how modules become files, and the rows, if there are any.

    `weaknesses` say why the unpruned model teaches and proves little.
    """

    request: PruneRequest
    model: nn.Module
    core: ModelProto
    shipping: Shipping
    rows: JudgedRows | None
    recovery: Recovery | None
    weaknesses: tuple[str, ...]
    progress: Progress | None

    @property
    def options(self) -> PruneOptions:
        return self.request.options


def _why_unmeasured(request: PruneRequest) -> str | None:
    """Say why nothing will be timed, or None. Raises NotMeasuredError where a speed-up is asked for."""
    options = request.options
    why = why_unmeasurable(request.target) if options.timing else "--no-timing"
    if why is not None and options.speedup is not None:
        raise NotMeasuredError(
            f"--speedup {options.speedup:g}: {why}, so no speed-up can be measured; ask for --macs, --parameters or "
            "--ratio"
        )
    return why


def _start(request: PruneRequest, work: Path | None, progress: Progress | None) -> _Start:
    """Build the model, read the rows or make some up, and export it, which finds most faults before any work."""
    options = request.options
    model, weaknesses = built(options.model, request.arguments, options.weights, options.seed)
    samples, inputs, tensors = _inputs(request, model)
    example = inputs.call({name: value[:_EXAMPLE] for name, value in tensors.items()})
    if not logits_of(model, example, inputs.take).isfinite().all():
        why = not_finite(model)
        raise UserError(
            f"its answers are NaN or infinite; {'check its weights' if why is None else f'its weight {why}'}"
        )
    timed = None if samples is None else {name: value[: options.batch].numpy() for name, value in tensors.items()}
    ranged = {name: value[:SAMPLES].numpy() for name, value in tensors.items()}
    shipping = Shipping(request, inputs, example, ranged, timed)
    weaknesses += remarks.random_weights(options, model)
    core = shipping.exported(model)
    rows = recovery = None
    if samples is not None:
        rows = JudgedRows.of(samples, core, request)
        recovery = Recovery(rows.task, request.recovery, options.seed, progress, work)
        chance = rows.judge.comparison.chance_remark("the unpruned model")
        weaknesses += () if chance is None else (chance,)
    return _Start(request, model, core, shipping, rows, recovery, weaknesses, progress)


def _inputs(request: PruneRequest, model: nn.Module) -> tuple[Samples | None, Inputs, dict[str, Tensor]]:
    """Return the rows, if there are any, how inputs are passed, and rows or made-up ones by input name."""
    options = request.options
    take = logits_in(options.logits)
    if options.data is None:
        count = SAMPLES if options.format == "int8" else _EXAMPLE
        tensors = made_up(model, shown(options.model), options.input, count, options.seed)
        inputs = named_inputs(model, [*tensors], take)
        return None, inputs, {name: tensors[name] for name in inputs.names}
    if options.input:
        raise UserError(
            f"--input {options.input[0]}: the rows of --data {shown(options.data)} say the shape; leave it out"
        )
    samples = read_samples(request, model, take)
    return samples, samples.inputs, {name: value[samples.train_rows] for name, value in samples.tensors.items()}


def _device(options: PruneOptions) -> torch.device:
    if options.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch sees no GPU; say --device cpu")
    fits = options.device != "cpu" and torch.cuda.is_available()
    return torch.device("cuda" if fits else "cpu")


def _prune(start: _Start, *, timed: bool) -> tuple[nn.Module, PruneRecord]:
    """Cut channels, heads and blocks; between steps the rows teach what is left."""
    options, settings, device = start.options, start.request.settings, _device(start.options)
    batches = loss = recover = None
    recovery = start.recovery
    if recovery is not None:
        shuffled = recovery.task.batches(options.batch_size, options.seed)
        batches = [moved(batch, device) for batch in islice(shuffled, settings.batches)]
        loss = recovery.task.loss_of

        def recover(narrow: nn.Module, step: int) -> nn.Module:
            return recovery.recovered(narrow, epochs=min(1, options.epochs), step=step)

    prune = partial(
        prune_channels,
        start.model.to(device),
        settings,
        example=moved(start.shipping.example, device),
        batches=batches,
        loss=loss,
        logits=start.shipping.inputs.take,
        ignore=options.ignore,
        recover=recover,
        seed=options.seed,
        progress=start.progress,
    )
    if not timed:
        return prune(device=None)
    with closing(start.shipping.timer()) as timer:
        return prune(device=timer.device(_cache()))


def _cache() -> Path | None:
    """Return where times of layers are kept between runs; None where nothing can be."""
    folder = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    return folder


def _finish(start: _Start, pruned: nn.Module) -> tuple[nn.Module, SparseRecord | None]:
    """Set weights to zero where that was asked for, and let the rows teach; returns the model on the CPU."""
    sparse, options, recovery = None, start.options, start.recovery
    if start.request.sparsity is not None:
        pruned, sparse = sparsify(pruned, start.request.sparsity, ignore=options.ignore)
    if recovery is not None:
        pruned = recovery.recovered(pruned, epochs=options.epochs)
    return release_(pruned).cpu(), sparse


def _outcome(start: _Start, record: PruneRecord, unmeasured: str | None) -> Outcome:
    options, (goal, amount) = start.options, record.asked
    reached = "pruned" if record.achieved is None else record.goal.reached.format(record.achieved)
    program = "python -m distill prune" if isinstance(options.model, str) else "distill.prune_model"
    return Outcome(
        model=shown(options.model),
        command=f"{program} {shlex.join(typed(options))}",
        status="done",
        why=f"{reached} ({goal}={amount:g} was asked for)",
        target=start.request.target.name,
        record=record,
        machine=machine(),
        unmeasured=unmeasured,
        epochs=options.epochs,
        warnings=(*record.warnings, *start.weaknesses, *remarks.of_outcome(options, record, unmeasured)),
    )


def _judge(
    outcome: Outcome, start: _Start, pruned: nn.Module, sparse: SparseRecord | None, graph: ModelProto
) -> Outcome:
    """Say how large the files are, and what became of the answers."""
    quality = None if start.rows is None else start.rows.quality(pruned)
    warnings = [*outcome.warnings, *(() if sparse is None else sparse.warnings)]
    if quality is not None and not quality.apart:
        warnings.append(
            f"the {quality.rows} rows that were learnt from also judge; of 200 or more a fifth is kept apart"
        )
    if quality is not None and quality.remark is not None:
        warnings.append(quality.remark)
    sizes = (len(to_bytes(start.core)), len(to_bytes(graph)))
    return replace(outcome, file_bytes=sizes, quality=quality, sparse=sparse, warnings=tuple(warnings))


def _time(outcome: Outcome, start: _Start, graph: ModelProto) -> Outcome:
    """Let both files take turns, and refuse the pruned one where it is slower, or not as fast as was asked."""
    goal = start.options.speedup
    with scratch.folder("prune") as folder:
        comparison = start.shipping.compared(start.core, graph, folder)
    before = comparison.baseline
    outcome = replace(
        outcome,
        latency=Latency(
            target=before.target,
            provider=before.provider,
            format=start.options.format,
            batch=before.batch,
            threads=before.threads,
            before_s=before.p50_s,
            after_s=comparison.candidate.p50_s,
            speedup=comparison.speedup,
            session_pairs=comparison.session_pairs,
            contended_share=comparison.contended_share,
        ),
        machine=comparison.candidate.board or outcome.machine,
        warnings=(*outcome.warnings, *comparison.warnings),
    )
    speed = comparison.speedup
    interval = f"{speed.value:.2f}× as fast [{speed.low:.2f}, {speed.high:.2f}]"
    if speed.high < 1:
        why = f"the pruned model is slower than the one before: {interval}; nothing ships"
        return replace(outcome, status="slower", why=why)
    if goal is not None and speed.high < goal * _NEAR:
        why = f"speedup={goal:g} is not reached in the last, longer comparison: the best is {interval}"
        return replace(outcome, status="missed", why=why)
    if speed.low < 1:
        noise = f"no speed-up was shown ({interval}): at this batch it is not the widths that take the time"
        outcome = replace(outcome, warnings=(*outcome.warnings, noise))
    return outcome


def _write(out: Path, start: _Start, pruned: nn.Module, graph: ModelProto, outcome: Outcome) -> None:
    """Write the folder, once what is in it was found to be the model again."""
    model = shown(start.options.model)
    with files.new_folder(out) as folder:
        (folder / "model.onnx").write_bytes(to_bytes(graph))
        save(folder, pruned, model, start.request.arguments)
        _require_same(model, start.shipping, pruned, folder)
        (folder / RECORD).write_text(outcome.to_json(), encoding="utf-8")
        report = document(outcome, str(out))
        (folder / "report.md").write_text(markdown(report), encoding="utf-8")
        (folder / "report.html").write_text(html(report), encoding="utf-8")


def _require_same(model: str, shipping: Shipping, pruned: nn.Module, folder: Path) -> None:
    """Build the model again from what was written, and refuse a folder that does not give it back."""
    example, take = shipping.example, shipping.inputs.take
    with told_of(model):
        expected, rebuilt = (logits_of(module, example, take) for module in (pruned, load_own(folder)))
    difference = float((expected - rebuilt).abs().max())
    if not difference <= _REBUILT * max(1.0, float(expected.abs().max())):
        raise UserError(
            f"{model}: built again with the weights that were written, its answers are {difference:.3g} away: it holds "
            "values that are no parameters or buffers and differ from build to build; register them as buffers"
        )
