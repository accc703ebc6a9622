"""What was said on the command line of the verb `prune`, checked before anything is read."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from distill.benchmarks import BenchmarkSettings, Target, resolve_target
from distill.benchmarks.parse import named_values, positive
from distill.errors import UserError
from distill.outputs import KINDS, Kind, Metric
from distill.prune.goals import GOALS
from distill.prune.scores.importance import DEFAULT, IMPORTANCES, WITHOUT_BATCHES
from distill.prune.settings import PruneSettings
from distill.prune.sparse.zeros import Pattern, read_pattern
from distill.references.loading import load_reference

_DEVICES = ("auto", "cpu", "cuda")


@dataclass(frozen=True, kw_only=True)
class Words:
    """The options, by their names; what is None was left out."""

    model: str
    out: Path
    weights: Path | None = None
    arg: tuple[str, ...] = ()
    macs: float | None = None
    parameters: float | None = None
    ratio: float | None = None
    speedup: float | None = None
    input: tuple[str, ...] = ()
    data: Path | None = None
    labels: str | None = None
    logits: str | None = None
    output: Kind | None = None
    axis: int | None = None
    metric: str | None = None
    importance: str | None = None
    round_to: int = 8
    max_ratio: float = 0.7
    steps: int = 1
    uniform: bool = False
    ignore: tuple[str, ...] = ()
    depth: str = "auto"
    heads: bool = True
    epochs: int = 0
    learning_rate: float = 1e-3
    batch_size: int = 32
    sparsity: str | None = None
    target: str | None = None
    format: str = "float32"
    threads: int = 1
    batch: int = 1
    measure: str | None = None
    timing: bool = True
    pairs: int = 6
    seconds: float = 1.0
    device: str = "auto"
    seed: int = 0


@dataclass(frozen=True)
class Asked:
    """What the words mean: how to prune, for what, how it is timed, the model's arguments, zeros, the user's metric."""

    settings: PruneSettings
    target: Target
    benchmark: BenchmarkSettings
    arguments: dict[str, Any]
    sparsity: Pattern | None
    metric: Metric | None


def asked(words: Words) -> Asked:
    """Settle the words.

    Raises:
        UserError: an option is out of its range, contradicts another, or lacks one.
    """
    given = [f"--{name}" for name in GOALS if getattr(words, name) is not None]
    if len(given) != 1:
        said = " and ".join(given)
        raise UserError(
            f"{said}: give one of them, the rest follows from it"
            if given
            else "say how much is to go, by one of --macs 0.5, --parameters 0.5, --ratio 0.3 and --speedup 2"
        )
    settings = _settings(words)
    if settings.is_idle:
        raise UserError(f"{given[0]} {settings.amount:g}: removes nothing; ask for {settings.goal.advice}")
    if IMPORTANCES[settings.importance].needs_batches and words.data is None:
        raise UserError(
            f"--importance {settings.importance}: needs --data with rows to compute a loss on; "
            f"{WITHOUT_BATCHES} needs none"
        )
    if words.output not in (None, *KINDS):
        raise UserError(f"--output {words.output}: must be one of {', '.join(KINDS)}")
    for option, needs in (
        ("--labels", words.labels is not None),
        ("--epochs", words.epochs > 0),
        ("--output", words.output is not None),
        ("--axis", words.axis is not None),
        ("--metric", words.metric is not None),
    ):
        if needs and words.data is None:
            raise UserError(f"{option}: needs --data rows.npz, real inputs by the names of forward's parameters")
    if words.speedup is not None and not words.timing:
        raise UserError(
            "--speedup and --no-timing: a speed-up has to be measured; ask for --macs, or leave out the latter"
        )
    if words.device not in _DEVICES:
        raise UserError(f"--device {words.device}: must be one of {', '.join(_DEVICES)}")
    positive("--learning-rate", words.learning_rate)
    positive("--seconds", words.seconds)
    target = replace(resolve_target(words.target, threads=words.threads), measure=words.measure)
    if words.format not in ("float32", target.precision):
        raise UserError(
            f"--format {words.format}: must be float32 or {target.precision}, which target {target.name} runs"
        )
    benchmark = BenchmarkSettings(
        batch_sizes=(words.batch,), threads=words.threads, session_pairs=words.pairs, seconds_per_pair=words.seconds
    )
    metric = None if words.metric is None else load_reference(words.metric, field="--metric")
    return Asked(settings, target, benchmark, _arguments(words.arg), _pattern(words.sparsity), metric)


def _settings(words: Words) -> PruneSettings:
    chosen: dict[str, Any] = {
        name: getattr(words, name) for name in (*GOALS, "round_to", "max_ratio", "steps", "depth", "heads")
    }
    chosen["importance"] = words.importance or (WITHOUT_BATCHES if words.data is None else DEFAULT)
    try:
        return PruneSettings(**chosen, global_=not words.uniform)
    except ValidationError as error:
        raise UserError("\n".join(_explained(one) for one in error.errors())) from error


def _explained(error: Any) -> str:
    said = str(error["msg"]).removeprefix("Value error, ")
    if not error["loc"]:
        return f"--{said}"
    option = str(error["loc"][0]).replace("_", "-")
    return f"--{option} {error['input']}: {said[:1].lower()}{said[1:]}"


def _arguments(entries: tuple[str, ...]) -> dict[str, Any]:
    """Read num_classes=10, widths=[8,16], pretrained=true, act=relu: JSON where it is some, else text."""
    found: dict[str, Any] = {}
    for name, text in named_values("--arg", entries).items():
        try:
            found[name] = json.loads(text)
        except ValueError:
            found[name] = text
    return found


def _pattern(text: str | None) -> Pattern | None:
    if text is None:
        return None
    try:
        pattern: Pattern = text if ":" in text else float(text)
        read_pattern(pattern)
    except (ValueError, UserError) as error:
        raise UserError(
            f"--sparsity {text}: must be N:M with 1 ≤ N < M, such as 2:4, or a share of zeros such as 0.5"
        ) from error
    return pattern
