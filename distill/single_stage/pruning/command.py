"""The verb `prune`: from anybody's model to a smaller one that is as fast as was asked, or to the reason why not."""

from __future__ import annotations

import shlex
import tempfile
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path

import torch
from onnx import ModelProto
from torch import nn

from distill import files
from distill.benchmarks import machine, why_unmeasurable
from distill.errors import NotMeasuredError, UserError
from distill.export import to_bytes
from distill.prune import PruneRecord, prune_channels
from distill.prune.reload import load_own, save
from distill.prune.scores.importance import IMPORTANCES
from distill.prune.sparse.sparsify import SparseRecord, sparsify
from distill.prune.sparse.zeros import release_
from distill.references.libraries import OF_WEIGHTS
from distill.single_stage.pruning.folder import RECORD, require_place
from distill.single_stage.pruning.learning import settled, taught
from distill.single_stage.pruning.losses import answer_loss
from distill.single_stage.pruning.outcome import Latency, Outcome, Status
from distill.single_stage.pruning.page import html
from distill.single_stage.pruning.rows import Rows, Samples, on, read_rows
from distill.single_stage.pruning.shipping import Shipping
from distill.single_stage.pruning.source import Inputs, built, logits_in, logits_of, made_up, named_inputs, told_of
from distill.single_stage.pruning.text import markdown
from distill.single_stage.pruning.words import Asked, Words, asked
from distill.tasks.sources import cache_folder
from distill.types import Progress

_EXAMPLE, _SAMPLES = 2, 64
_NEAR = 0.95  # of the speed-up that was asked for: what the last, longer comparison may find
_REBUILT = 1e-4  # share of the largest logit by which a rebuilt model may differ


@dataclass(frozen=True)
class Start:
    """The unpruned model, the rows, its float32 graph, and how modules become files."""

    model: nn.Module
    rows: Rows | None
    core: ModelProto
    shipping: Shipping
    remarks: tuple[str, ...] = ()
    """Why the unpruned model teaches and proves little."""


def run(words: Words, say: Progress | None = None) -> Outcome:
    """Prune, teach, measure, and write the folder where the target is reached and the file is not slower.

    Raises:
        UserError: the model, the rows or an option is at fault.
        NotMeasuredError: a speed-up is asked for, and the target is not at hand; or its provider does not load.
    """
    wanted = asked(words)
    require_place(words.out, [path for path in (words.data, words.weights) if path is not None])
    unmeasured = _unmeasured(words, wanted)
    with told_of(words.model):
        start = _started(words, wanted)
        pruned, record = _pruned(words, wanted, start, say, timed=unmeasured is None)
        outcome = _outcome(words, wanted, record, unmeasured, start)
        if record.shortfall is not None:
            return replace(outcome, status="missed", why=record.shortfall)
        pruned, sparse = _finished(words, wanted, start, pruned, say)
        after = start.shipping.exported(pruned)
    outcome = _judged(outcome, start, pruned, sparse, after)
    if unmeasured is None:
        outcome = _timed(outcome, words, start, after)
    if outcome.status == "done":
        _written(words, wanted, start, pruned, after, outcome)
    return outcome


def _unmeasured(words: Words, wanted: Asked) -> str | None:
    """Say why nothing will be timed, or None.

    Raises:
        NotMeasuredError: a speed-up is asked for, which nothing else can tell.
    """
    why = why_unmeasurable(wanted.target) if words.timing else "--no-timing"
    if why is not None and words.speedup is not None:
        raise NotMeasuredError(
            f"--speedup {words.speedup:g}: {why}, so no speed-up can be measured; ask for --macs, --parameters or "
            "--ratio"
        )
    return why


def _started(words: Words, wanted: Asked) -> Start:
    """Build the model, read the rows or make some up, and export it, which finds most faults before any work."""
    model = built(words.model, wanted.arguments, words.weights, words.seed)
    samples, inputs, tensors = _given(words, model)
    example = inputs.call({name: value[:_EXAMPLE] for name, value in tensors.items()})
    if not logits_of(model, example, inputs.take).isfinite().all():
        raise UserError("its answers are NaN or infinite; check its weights")
    shipping = Shipping(
        inputs,
        example,
        wanted.target,
        words.batch,
        words.format,
        wanted.benchmark,
        {name: value[:_SAMPLES].numpy() for name, value in tensors.items()},
        None if samples is None else samples.first(words.batch),
    )
    found = _random_weights(words) or _drawn_weights(words, wanted, model)
    core = shipping.exported(model)
    rows = None
    if samples is not None:
        rows = samples.told(core, kind=words.output, axis=words.axis, metric=wanted.metric)
        found += rows.weak_evidence()
    return Start(model, rows, core, shipping, tuple(found))


def _given(words: Words, model: nn.Module) -> tuple[Samples | None, Inputs, dict[str, torch.Tensor]]:
    """Return the rows, if there are any, how inputs are passed, and rows or made-up ones by input name."""
    take = logits_in(words.logits)
    if words.data is None:
        tensors = made_up(model, words.model, words.input, _SAMPLES if words.format == "int8" else _EXAMPLE, words.seed)
        inputs = named_inputs(model, [*tensors], take)
        return None, inputs, {name: tensors[name] for name in inputs.names}
    if words.input:
        raise UserError(f"--input {words.input[0]}: the rows of --data {words.data} say the shape; leave it out")
    samples = read_rows(words.data, words.labels, model, take=take, size=words.batch_size, seed=words.seed)
    return samples, samples.inputs, {name: value[samples.learn] for name, value in samples.tensors.items()}


def _device(words: Words) -> torch.device:
    if words.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch sees no GPU; say --device cpu")
    fits = words.device == "cuda" or (words.device == "auto" and torch.cuda.is_available())
    return torch.device("cuda" if fits else "cpu")


def _pruned(
    words: Words, wanted: Asked, start: Start, say: Progress | None, *, timed: bool
) -> tuple[nn.Module, PruneRecord]:
    """Cut channels, heads and blocks; between steps the rows teach what is left."""
    where, rows = _device(words), start.rows
    example, model = on(start.shipping.example, where), start.model.to(where)
    prune = partial(
        prune_channels,
        model,
        wanted.settings,
        example=example,
        batches=None if rows is None else [*islice(rows.batches(where, words.seed), wanted.settings.batches)],
        loss=None if rows is None else answer_loss,
        logits=start.shipping.inputs.take,
        ignore=words.ignore,
        recover=None if rows is None else partial(_between, words, rows, say),
        seed=words.seed,
        progress=say,
    )
    if not timed:
        return prune(device=None)
    with closing(start.shipping.shipped()) as timer:
        return prune(device=timer.device(_cache()))


def _cache() -> Path | None:
    """Return where times of layers are kept between runs; None where nothing can be."""
    folder = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    return folder


def _between(words: Words, rows: Rows, say: Progress | None, narrow: nn.Module, step: int) -> nn.Module:
    """Recalibrate and teach a little between two steps."""
    narrow = settled(narrow, rows, words.seed, say)
    if not words.epochs:
        return narrow
    rate, what = words.learning_rate, f"distilling after step {step + 1}"
    return taught(narrow, rows, epochs=1, learning_rate=rate, seed=words.seed + step, progress=say, what=what)


def _finished(
    words: Words, wanted: Asked, start: Start, pruned: nn.Module, say: Progress | None
) -> tuple[nn.Module, SparseRecord | None]:
    """Set weights to zero where that was asked for, and let the rows teach; returns the model on the CPU."""
    sparse, rows = None, start.rows
    if wanted.sparsity is not None:
        pruned, sparse = sparsify(pruned, wanted.sparsity, ignore=words.ignore)
    if rows is not None:
        pruned = settled(pruned, rows, words.seed, say)
        if words.epochs:
            rate, epochs = words.learning_rate, words.epochs
            pruned = taught(pruned, rows, epochs=epochs, learning_rate=rate, seed=words.seed, progress=say)
    if sparse is not None:
        pruned.state_dict()  # the hooks write their zeros a last time
        release_(pruned)
    start.model.cpu()
    return pruned.cpu().eval(), sparse


def _outcome(words: Words, wanted: Asked, record: PruneRecord, unmeasured: str | None, start: Start) -> Outcome:
    name, amount = record.asked
    reached = "pruned" if record.achieved is None else record.goal.reached.format(record.achieved)
    return Outcome(
        model=words.model,
        command=shlex.join(_typed(words)),
        status="done",
        why=f"{reached} ({name}={amount:g} was asked for)",
        target=wanted.target.name,
        record=record,
        machine=machine(),
        unmeasured=unmeasured,
        epochs=words.epochs,
        warnings=(*record.warnings, *start.remarks, *_remarks(words, record, unmeasured)),
    )


def _remarks(words: Words, record: PruneRecord, unmeasured: str | None) -> list[str]:
    """Say what makes the result less than it could be, each with what mends it."""
    found = []
    if words.data is None:
        found.append(
            "no rows were given: batch-norm statistics are those of before, and what the pruned model still knows was "
            "not looked at; its accuracy needs --data and --epochs, or a training of your own"
        )
    elif not words.epochs:
        found.append("the pruned model was not trained again; --epochs 10 has it learn what the unpruned one answers")
    if words.format != "float32":
        found.append(
            f"model.onnx is float32 and was timed as {words.format}; `python -m distill quantize` makes it that, "
            "on rows of yours"
        )
    if unmeasured == "--no-timing":
        found.append("nothing was timed, as --no-timing says: whether it is faster is not known")
    elif unmeasured is not None:
        found.append(f"unmeasured: {unmeasured}; --measure COMMAND times it there")
    if not IMPORTANCES[record.importance].needs_batches and words.importance is None and words.data is not None:
        found.append(f"importance {record.importance} was used")
    return found


def _random_weights(words: Words) -> list[str]:
    """Say when a library's model has the weights that it was drawn with."""
    library = words.model.partition(":")[0]
    options = OF_WEIGHTS.get(library, ())
    if not options or words.weights is not None or any(one.partition("=")[0] in options for one in words.arg):
        return []
    value = "DEFAULT" if library == "torchvision" else "true"
    return [
        f"the weights of {words.model} are random: its speed means something, what is cut does not; give --weights, or "
        f"--arg {options[0]}={value}, which downloads some"
    ]


def _drawn_weights(words: Words, wanted: Asked, model: nn.Module) -> list[str]:
    """Say when a function gives other weights with another seed: they were drawn, and nobody trained them."""
    if words.weights is not None or words.model.partition(":")[0] in OF_WEIGHTS:
        return []
    other = dict(built(words.model, wanted.arguments, None, words.seed + 1).named_parameters())
    drawn = [name for name, value in model.named_parameters() if name in other and not value.equal(other[name])]
    if not drawn:
        return []
    return [
        f"the weights of {words.model} are random ({drawn[0]} differs with another seed): nobody trained them, so what "
        "is cut and what is learnt means nothing; give trained ones by --weights"
    ]


def _typed(words: Words) -> list[str]:
    """Write the options down again as they can be typed."""
    plain, typed = Words(model="", out=Path()), ["python", "-m", "distill", "prune"]
    for name in Words.__dataclass_fields__:
        value = getattr(words, name)
        if value is None or value == getattr(plain, name) or value == ():
            continue
        option = "--" + name.replace("_", "-")
        if isinstance(value, bool):
            typed.append(option if value else option.replace("--", "--no-", 1))
        else:
            typed += [part for one in (value if isinstance(value, tuple) else (value,)) for part in (option, str(one))]
    return typed


def _judged(
    outcome: Outcome, start: Start, pruned: nn.Module, sparse: SparseRecord | None, after: ModelProto
) -> Outcome:
    """Say how large the files are, and what became of the answers."""
    quality = None if start.rows is None else start.rows.quality(pruned)
    found = [] if sparse is None else [*sparse.warnings]
    if quality is not None and not quality.apart:
        found.append(f"the {quality.rows} rows that were learnt from also judge; of 200 or more a fifth is kept apart")
    if quality is not None and quality.remark is not None:
        found.append(quality.remark)
    return replace(
        outcome,
        file_bytes=(len(to_bytes(start.core)), len(to_bytes(after))),
        quality=quality,
        sparse=sparse,
        warnings=(*outcome.warnings, *found),
    )


def _timed(outcome: Outcome, words: Words, start: Start, after: ModelProto) -> Outcome:
    """Let both files take turns, and refuse the pruned one where it is slower, or not as fast as was asked."""
    with tempfile.TemporaryDirectory(prefix="distill-prune-") as folder:
        found = start.shipping.compared(start.core, after, Path(folder))
    latency = Latency.of(found, words.format)
    speed = latency.speedup
    status: Status = "done"
    why = outcome.why
    shown = f"{speed.value:.2f}× as fast [{speed.low:.2f}, {speed.high:.2f}]"
    if speed.high < 1:
        status, why = "slower", f"the pruned model is slower than the one before: {shown}; nothing ships"
    elif words.speedup is not None and speed.high < words.speedup * _NEAR:
        status = "missed"
        why = f"speedup={words.speedup:g} is not reached in the last, longer comparison: the best is {shown}"
    warnings = [*outcome.warnings, *found.warnings]
    if status == "done" and speed.low < 1:
        warnings.append(f"no speed-up was shown ({shown}): at this batch it is not the widths that take the time")
    where = found.candidate.board or outcome.machine
    return replace(
        outcome, status=status, why=why, latency=latency, machine=where, warnings=tuple(dict.fromkeys(warnings))
    )


def _written(words: Words, wanted: Asked, start: Start, pruned: nn.Module, after: ModelProto, outcome: Outcome) -> None:
    """Write the folder, once what is in it was found to be the model again."""
    with files.new_folder(words.out) as folder:
        (folder / "model.onnx").write_bytes(to_bytes(after))
        save(folder, pruned, words.model, wanted.arguments)
        _require_same(words.model, start, pruned, folder)
        (folder / RECORD).write_text(outcome.to_json(), encoding="utf-8")
        (folder / "report.md").write_text(markdown(outcome, str(words.out)), encoding="utf-8")
        (folder / "report.html").write_text(html(outcome, str(words.out)), encoding="utf-8")


def _require_same(model: str, start: Start, pruned: nn.Module, folder: Path) -> None:
    """Build the model again from what was written, and refuse a folder that does not give it back.

    Raises:
        UserError: it answers otherwise, since something that is no tensor differs from one build to the next.
    """
    shipping = start.shipping
    with told_of(model):
        expected, found = (logits_of(one, shipping.example, shipping.inputs.take) for one in (pruned, load_own(folder)))
    apart = float((expected - found).abs().max())
    if not apart <= _REBUILT * max(1.0, float(expected.abs().max())):
        raise UserError(
            f"{model}: built again with the weights that were written, its answers are {apart:.3g} away: it holds "
            "values that are no parameters or buffers and differ from build to build; register them as buffers"
        )
