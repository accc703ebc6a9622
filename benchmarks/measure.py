"""Time one file, or two files that take turns, as they are shipped and in a process of their own."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from . import runner
from .inputs import Array, Feeds, make_inputs
from .jobs import ArmSpec, Timing, time_arms
from .machine import usable_threads
from .sessions import provider_options
from .settings import BenchmarkSettings
from .stats import Turn, contended_share, lowest_decile, t_bounds
from .target import Target


@dataclass(frozen=True)
class Latency:
    """The time of one call of one file.

    `provider` is the one that really ran, `inputs` the shape of every input. `p50_s` is the median as found, `quiet_s`
    the lowest decile, both in seconds over the turns of all sessions; `samples` counts the calls behind them. `load_s`
    is the median time to open a session, never part of a call. On a GPU inputs and outputs stay on the device;
    `end_to_end_s` is the median with the copies, and None on a CPU.
    """

    target: str
    provider: str
    inputs: dict[str, list[int]]
    batch: int
    threads: int
    p50_s: float
    quiet_s: float
    samples: int
    load_s: float = 0.0
    end_to_end_s: float | None = None
    provider_options: dict[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Ratio:
    """A ratio with its two-sided 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Comparison:
    """Two files that took turns.

    `speedup` is the time of the baseline over that of the candidate, as found: the mean over session pairs of the
    median paired log ratio, with its t interval. `quiet_speedup` compares the lowest deciles. `contended_share` is the
    share of turns, 0 to 1, in which something else slowed the core. `log_ratios` has one entry a session pair.
    """

    baseline: Latency
    candidate: Latency
    speedup: Ratio
    quiet_speedup: float
    session_pairs: int
    contended_share: float
    log_ratios: tuple[float, ...] = ()
    warnings: tuple[str, ...] = ()


def measure(
    path: str | Path,
    target: Target,
    batch: int,
    *,
    settings: BenchmarkSettings | None = None,
    given: Mapping[str, Array] | None = None,
) -> Latency:
    """Time the file at `path` alone, in several fresh sessions of half a pair's seconds each.

    `given` replaces made-up inputs by real rows. Raises UserError for a file or inputs that do not fit,
    NotMeasuredError for another machine's target, a provider that does not load, a crash or a hang.
    """
    settings = settings or BenchmarkSettings()
    feeds = make_inputs(path, batch, given=given)
    answer = time_arms([ArmSpec(Path(path), feeds)], target, Timing.of(settings))
    return _latency(answer["pairs"], 0, path, feeds, target, batch)


def compare(
    baseline: str | Path,
    candidate: str | Path,
    target: Target,
    batch: int,
    *,
    settings: BenchmarkSettings | None = None,
    given_baseline: Mapping[str, Array] | None = None,
    given_candidate: Mapping[str, Array] | None = None,
) -> Comparison:
    """Time two files in alternation; a speed-up above 1 says that the candidate is faster.

    Both get equal inputs where their signatures are equal. Raises what `measure` raises.
    """
    settings = settings or BenchmarkSettings()
    feeds = [
        make_inputs(baseline, batch, given=given_baseline),
        make_inputs(candidate, batch, given=given_candidate),
    ]
    arms = [ArmSpec(Path(path), one) for path, one in zip((baseline, candidate), feeds, strict=True)]
    pairs = time_arms(arms, target, Timing.of(settings))["pairs"]
    log_ratios = [-runner.effect(pair) for pair in pairs]
    theta, low, high = t_bounds(log_ratios)
    latencies = [
        _latency(pairs, arm, path, feeds[arm], target, batch) for arm, path in enumerate((baseline, candidate))
    ]
    return Comparison(
        baseline=latencies[0],
        candidate=latencies[1],
        speedup=Ratio(math.exp(theta), math.exp(low), math.exp(high)),
        quiet_speedup=latencies[0].quiet_s / latencies[1].quiet_s,
        session_pairs=len(pairs),
        contended_share=contended_share(*_all_turns(pairs)),
        log_ratios=tuple(log_ratios),
        warnings=_comparison_warnings(pairs, settings, feeds),
    )


def _all_turns(pairs: list[dict[str, Any]]) -> tuple[list[Turn], list[bool]]:
    """List every turn, and whether another process took the core in a tenth of its calls or more."""
    turns = [turn for pair in pairs for turn in pair["turns"]]
    return [(int(arm), float(seconds)) for arm, seconds, _, _ in turns], [
        calls - undisturbed >= 0.1 * calls for _, _, calls, undisturbed in turns
    ]


def _latency(
    pairs: list[dict[str, Any]], arm: int, path: str | Path, feeds: Feeds, target: Target, batch: int
) -> Latency:
    """Summarise one arm over all session pairs."""
    seconds = [value for pair in pairs for other, value in runner.kept_turns(pair, 2) if other == arm]
    whole = [pair["end_to_end_s"][arm] for pair in pairs if pair["end_to_end_s"]]
    return Latency(
        target=target.name,
        provider=target.provider,
        inputs={name: list(value.shape) for name, value in feeds.items()},
        batch=batch,
        threads=target.threads,
        p50_s=float(np.median(seconds)),
        quiet_s=lowest_decile(seconds),
        samples=sum(int(count) for pair in pairs for other, _, count, _ in pair["turns"] if other == arm),
        load_s=float(np.median([pair["load_s"][arm] for pair in pairs])),
        end_to_end_s=float(np.median(whole)) if whole else None,
        provider_options=provider_options(target),
        warnings=_latency_warnings(pairs, arm, path, target),
    )


def _latency_warnings(pairs: list[dict[str, Any]], arm: int, path: str | Path, target: Target) -> tuple[str, ...]:
    """Say what a reader of one file's latency has to know."""
    warnings = []
    cores = usable_threads()
    if target.threads > cores:
        warnings.append(f"benchmark.threads={target.threads}: only {cores} can run at once on this machine")
    if not all(pair["finite"][arm] for pair in pairs):
        warnings.append(f"{path}: its outputs are not all finite for the inputs that it was timed with")
    unsettled = sum(not pair["settled"] for pair in pairs)
    if unsettled:
        warnings.append(f"{path}: {unsettled} of {len(pairs)} warm-ups ended before three turns agreed within 3 %")
    throttled = sum(any(pair["throttled"]) for pair in pairs)
    if throttled:
        warnings.append(f"{path}: the GPU was throttled in parts of {throttled} of {len(pairs)} sessions")
    clocks = [pair["clock_mhz"] for pair in pairs if pair["clock_mhz"]]
    if clocks and max(clocks) > 1.05 * min(clocks):
        warnings.append(f"{path}: the GPU's clock moved between {min(clocks)} and {max(clocks)} MHz")
    if target.name in ("cuda", "tensorrt"):
        warnings.append(f"{path}: the same inputs in every call, so they may lie in the GPU's L2 cache")
    return tuple(warnings)


def _comparison_warnings(
    pairs: list[dict[str, Any]], settings: BenchmarkSettings, feeds: list[Feeds]
) -> tuple[str, ...]:
    """Say what a reader of the comparison has to know beyond the two latencies' own warnings."""
    warnings = []
    if len(pairs) < settings.session_pairs:
        warnings.append(f"only {len(pairs)} of {settings.session_pairs} session pairs fit into a minute")
    shapes = [{name: (value.shape, value.dtype.name) for name, value in inputs.items()} for inputs in feeds]
    if shapes[0] != shapes[1]:
        warnings.append("the two files take different inputs, so each was timed with its own")
    elif any(not _same(feeds[0][name], feeds[1][name]) for name in feeds[0]):
        warnings.append("the two files were timed with different values of the same inputs")
    return tuple(warnings)


def _same(one: Array, other: Array) -> bool:
    """Equality that takes NaN, the mark of a missing value, for equal to itself."""
    return bool(np.array_equal(one, other, equal_nan=one.dtype.kind == "f"))
