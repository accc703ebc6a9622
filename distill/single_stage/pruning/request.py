"""What the options of `prune` ask for, checked before anything is read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeVar

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from distill.benchmarks import BenchmarkSettings, Target, resolve_target
from distill.distillation.settings import DistillSettings
from distill.documents import Json
from distill.errors import UserError
from distill.prune.goals import GOALS
from distill.prune.scores.importance import DEFAULT, IMPORTANCES, WITHOUT_BATCHES
from distill.prune.settings import PruneSettings
from distill.prune.sparse.zeros import Pattern, read_pattern
from distill.single_stage.judge import AnswerSettings
from distill.single_stage.options import PruneOptions, read_arguments, require_bounds

_DEVICES = ("auto", "cpu", "cuda")
_DECAY = 0.01
Settings = TypeVar("Settings")


@dataclass(frozen=True)
class PruneRequest:
    """What the options mean: how to prune, for what, how it is timed, how it learns and how answers are judged."""

    options: PruneOptions
    settings: PruneSettings
    target: Target
    benchmark: BenchmarkSettings
    recovery: DistillSettings
    arguments: dict[str, Json]
    sparsity: Pattern | None
    answers: AnswerSettings


def read_request(options: PruneOptions) -> PruneRequest:
    """Settle the options.

    Raises:
        UserError: an option is out of its range, contradicts another, or lacks one.
    """
    require_bounds(options)
    settings = _prune_settings(options)
    _require_data(options, settings)
    if options.speedup is not None and not options.timing:
        raise UserError(
            "--speedup and --no-timing: a speed-up has to be measured; ask for --macs, or leave out the latter"
        )
    if options.device not in _DEVICES:
        raise UserError(f"--device {options.device}: must be one of {', '.join(_DEVICES)}")
    target = replace(resolve_target(options.target, threads=options.threads), measure=options.measure)
    if options.format not in ("float32", target.precision):
        raise UserError(
            f"--format {options.format}: must be float32 or {target.precision}, which target {target.name} runs"
        )
    benchmark = BenchmarkSettings(
        batch_sizes=(options.batch,),
        threads=options.threads,
        session_pairs=options.pairs,
        seconds_per_pair=options.seconds,
    )
    return PruneRequest(
        options,
        settings,
        target,
        benchmark,
        _recovery(options),
        read_arguments(options.arg),
        _pattern(options.sparsity),
        AnswerSettings.of(options),
    )


def _prune_settings(options: PruneOptions) -> PruneSettings:
    goals = [f"--{name}" for name in GOALS if getattr(options, name) is not None]
    if not goals:
        raise UserError("say how much is to go, by one of --macs 0.5, --parameters 0.5, --ratio 0.3 and --speedup 2")
    if len(goals) > 1:
        raise UserError(f"{' and '.join(goals)}: give one of them, the rest follows from it")
    names = (*GOALS, "round_to", "max_ratio", "steps", "depth", "heads")
    fields = {name: getattr(options, name) for name in names}
    fields["importance"] = options.importance or (WITHOUT_BATCHES if options.data is None else DEFAULT)
    settings = _checked(lambda: PruneSettings(**fields, global_=not options.uniform))
    if settings.is_idle:
        raise UserError(f"{goals[0]} {settings.amount:g}: removes nothing; ask for {settings.goal.advice}")
    return settings


def _require_data(options: PruneOptions, settings: PruneSettings) -> None:
    """Refuse what means nothing without rows."""
    if options.data is not None:
        return
    if IMPORTANCES[settings.importance].needs_batches:
        raise UserError(
            f"--importance {settings.importance}: needs --data with rows to compute a loss on; "
            f"{WITHOUT_BATCHES} needs none"
        )
    for name in ("labels", "epochs", "output", "axis", "metric"):
        if getattr(options, name) not in (None, 0):
            raise UserError(f"--{name}: needs --data rows.npz, real inputs by the names of forward's parameters")


def _recovery(options: PruneOptions) -> DistillSettings:
    """Return how the pruned model learns from the unpruned one."""
    return _checked(
        lambda: DistillSettings(
            loss=options.loss,  # type: ignore[arg-type]  # its name is read into one
            temperature=options.temperature,
            weight=options.weight,
            epochs=max(1, options.epochs),
            batch_size=options.batch_size,
            learning_rate=options.learning_rate,
            weight_decay=_DECAY,
            optimizer="adamw",
        )
    )


def _checked(make: Callable[[], Settings]) -> Settings:
    """Make settings, and let what is wrong with them be told of the options. Raises UserError."""
    try:
        return make()
    except ValidationError as error:
        raise UserError("\n".join(_explained(details) for details in error.errors())) from error


def _explained(details: ErrorDetails) -> str:
    message = details["msg"].removeprefix("Value error, ")
    if not details["loc"]:
        return f"--{message}"
    option = str(details["loc"][0]).replace("_", "-")
    return f"--{option} {details['input']}: {message[:1].lower()}{message[1:]}"


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
