"""The verb `quantize`: from a file and samples to the fastest precision that keeps a budget."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto

from distill.benchmarks import Options, Ratio, Report, bench, resolve_target, why_unmeasurable
from distill.benchmarks.inputs import load_proto, signature
from distill.benchmarks.jobs import Timing
from distill.benchmarks.target import Target
from distill.benchmarks.words import counts, read_npz
from distill.errors import Exit, UserError
from distill.export.metadata import write_metadata
from distill.export.parity import run_onnx
from distill.export.strip import to_bytes

from .calibrate import Array, Feed
from .choose import FLOAT, Candidate, Choice, Precision, choose
from .repair import Loss
from .select import why_not_quantizable
from .sensitivity import divergence
from .settings import QuantizeSettings

_BATCH = 32
_ENOUGH = 200  # rows from which on half of them can be kept from calibration, to judge by
_LABELS = ("labels", "label", "targets", "y")


@dataclass(frozen=True, kw_only=True)
class Words:
    """What was said on the command line."""

    model: Path
    data: Path
    out: Path
    max_drop: float = 0.01
    labels: str | None = None
    target: str | None = None
    precision: Precision = "auto"
    calibration: str = "minmax"
    samples: int = 512
    epochs: int = 0
    batch: str = "1"
    threads: int = 1
    measure: str | None = None
    pairs: int = 6
    seconds: float = 1.0
    seed: int = 0
    record: Path | None = None


@dataclass(frozen=True)
class Rows:
    """Samples: `calibration` to find ranges, `judged` to compare answers on, and the labels of the latter, if any."""

    calibration: list[Feed]
    judged: list[Feed]
    labels: Array | None
    kept_apart: bool

    @property
    def count(self) -> int:
        """How many are judged."""
        return sum(len(next(iter(feed.values()))) for feed in self.judged)


def run(words: Words, say: Any = None) -> tuple[Choice, Report | None, Exit]:
    """Quantise, judge, measure, choose and write; returns the choice, the measurement and the exit code.

    Where no other precision keeps the budget nothing is written, and the code says so. Where float32 is the fastest it
    is written as it is.

    Raises:
        UserError: the file, the samples or an option is at fault.
    """
    if words.out.exists() and words.out.resolve() == words.model.resolve():
        raise UserError(f"--out {words.out}: is the model itself, which stays as it is; give another name")
    if words.out.is_dir() or not words.out.absolute().parent.is_dir():
        raise UserError(f"--out {words.out}: is a folder, or lies in one that does not exist")
    load_proto(words.model)
    core = onnx.load(str(words.model))
    reason = why_not_quantizable(core)
    if reason is not None:
        raise UserError(f"{words.model}: {reason}; give the float32 export")
    target = replace(resolve_target(words.target, threads=words.threads), measure=words.measure)
    rows = read_rows(words, core)
    reports: list[Report] = []

    def measure(models: Sequence[ModelProto]) -> list[Ratio | None]:
        made = _measured(models, target, words, rows)
        if made is None:
            return [None] * len(models)
        reports.append(made)
        return [Ratio(1.0, 1.0, 1.0), *(row.ratio for row in made.cases[0].rows[1:])]

    chosen = choose(
        core,
        QuantizeSettings(calibration=words.calibration, samples=words.samples),  # type: ignore[arg-type]
        target=target,
        calibration=rows.calibration,
        rows=rows.judged,
        judge=judge_of(core, rows),
        measure=measure,
        max_drop=words.max_drop,
        precision=words.precision,
        epochs=words.epochs,
        progress=say,
    )
    report = reports[0] if reports else None
    within = any(one.within for one in chosen.candidates[1:])
    if within:
        _write(words.out, _packed(chosen.chosen, core, target))
    if words.record is not None:
        words.record.write_text(json.dumps(described(chosen, words, target), indent=1) + "\n", encoding="utf-8")
    return chosen, report, Exit.OK if within else Exit.VERDICT_NO


def read_rows(words: Words, core: ModelProto) -> Rows:
    """Read samples by input name, and labels, if there are any; from 200 rows on half are kept to judge by.

    Raises:
        UserError: names, types or numbers of rows that do not fit the file.
    """
    arrays, inputs = read_npz(words.data), signature(core)
    names = [one.name for one in inputs]
    key = words.labels or next((name for name in _LABELS if name in arrays and name not in names), None)
    if key is not None and key not in arrays:
        raise UserError(f"--labels {key}: is not in {words.data}, which has {', '.join(arrays) or 'nothing'}")
    labels = arrays.pop(key) if key is not None else None
    if set(arrays) != set(names):
        raise UserError(f"{words.data}: has {', '.join(arrays) or 'nothing'}; the model takes {', '.join(names)}")
    lengths = {name: len(value) if value.ndim else 0 for name, value in arrays.items()}
    if labels is not None:
        lengths[str(key)] = len(labels) if labels.ndim else 0
    total = next(iter(lengths.values()), 0)
    if len(set(lengths.values())) != 1 or total == 0:
        raise UserError(f"{words.data}: has rows {lengths}; every array needs the same number, one at least")
    for one in inputs:
        if arrays[one.name].dtype != one.dtype:
            raise UserError(
                f"{words.data}: {one.name} is {arrays[one.name].dtype.name}, the model takes {one.dtype.name}"
            )
    order = np.random.default_rng(words.seed).permutation(total)
    apart = total >= _ENOUGH
    first = order[: min(words.samples, total // 2)] if apart else order
    rest = order[len(first) :] if apart else order
    size = next((shape[0] for shape in (one.shape for one in inputs) if shape and isinstance(shape[0], int)), None)
    return Rows(
        calibration=_batches(arrays, first, size),
        judged=_batches(arrays, rest, size),
        labels=None if labels is None else labels[_whole(rest, size)],
        kept_apart=apart,
    )


def _whole(chosen: Array, fixed: int | None) -> Array:
    """Leave out the rows that do not fill a batch of a fixed size."""
    return chosen[: len(chosen) // fixed * fixed] if fixed else chosen


def _batches(arrays: dict[str, Array], chosen: Array, fixed: int | None) -> list[Feed]:
    kept, step = _whole(chosen, fixed), fixed or _BATCH
    if not len(kept):
        raise UserError(f"the samples are fewer than the batch of {fixed} that the model is fixed at")
    return [
        {name: value[kept[start : start + step]] for name, value in arrays.items()}
        for start in range(0, len(kept), step)
    ]


def judge_of(core: ModelProto, rows: Rows) -> Any:
    """Make the judge: of labelled rows the drop is the accuracy lost, of others the share of top-1 answers changed."""
    reference = run_onnx(core, rows.judged)
    before = _answers(reference)

    def judge(model: ModelProto) -> Loss:
        logits = run_onnx(model, rows.judged)
        if not np.isfinite(logits).all():
            return Loss(1.0, float("inf"))
        after = _answers(logits)
        if rows.labels is None:
            drop = float((after != before).mean())
        else:
            drop = float((before == rows.labels).mean() - (after == rows.labels).mean())
        return Loss(drop, divergence(reference, logits))

    return judge


def _answers(logits: Array) -> Array:
    """Return the strongest class of each row; of one logit, whether it is above zero."""
    flat = logits.reshape(len(logits), -1) if logits.ndim < 3 else logits
    return np.asarray(flat[:, 0] > 0 if flat.shape[1] == 1 else flat.argmax(axis=1))


def _measured(models: Sequence[ModelProto], target: Target, words: Words, rows: Rows) -> Report | None:
    """Time graphs in turns on the target; None where it is not at hand."""
    if why_unmeasurable(target) is not None:
        return None
    with tempfile.TemporaryDirectory(prefix="distill-quantize-") as folder:
        paths = []
        for number, model in enumerate(models):
            paths.append(Path(folder, f"{number}.onnx"))
            paths[-1].write_bytes(to_bytes(model))
        options = Options(
            target=target,
            batches=counts("--batch", words.batch),
            threads=(words.threads,),
            timing=Timing(pairs=words.pairs, seconds_per_pair=words.seconds, seed=words.seed),
            given=rows.judged[0],
        )
        return bench(paths, options)


def _packed(candidate: Candidate, core: ModelProto, target: Target) -> ModelProto:
    """Say in the file what it was made for, and what it relies on."""
    if candidate.name == FLOAT or candidate.record is None:
        return core
    entries = {"target": target.name, "precision": candidate.record.precision}
    if candidate.record.scheme == "u8s8" and not candidate.record.reduce_range:
        entries["isa"] = "vnni"
    kept = {entry.key: entry.value for entry in core.metadata_props}
    return write_metadata(candidate.model, {**kept, **entries})


def _write(path: Path, model: ModelProto) -> None:
    """Write a model whole or not at all."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_bytes(to_bytes(model))
    os.replace(partial, path)


def described(choice: Choice, words: Words, target: Target) -> dict[str, Any]:
    """Write down what was tried and chosen, as plain JSON values."""
    return {
        "model": str(words.model),
        "target": target.name,
        "max_drop": words.max_drop,
        "chosen": choice.chosen.name,
        "why": choice.why,
        "candidates": [
            {
                "name": one.name,
                "within": one.within,
                "drop": one.loss.drop,
                "divergence": one.loss.divergence,
                "file_bytes": one.file_bytes,
                "ratio": None if one.ratio is None else asdict(one.ratio),
                "record": None if one.record is None else asdict(one.record),
            }
            for one in choice.candidates
        ],
        "attempts": [
            {"name": one.name, "drop": one.loss.drop, "divergence": one.loss.divergence, "floats": list(one.floats)}
            for one in choice.attempts
        ],
        "sensitivity": [asdict(one) for one in choice.sensitivity],
        "warnings": list(choice.warnings),
    }
