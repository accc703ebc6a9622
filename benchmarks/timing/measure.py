"""Time one file, or two files that take turns, as they are shipped and in a process of their own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from distill.benchmarks import runner
from distill.benchmarks.onnx_file.inputs import make_inputs
from distill.benchmarks.onnx_file.saturation import saturating_share
from distill.benchmarks.onnx_file.signature import load_proto
from distill.benchmarks.records import Case
from distill.benchmarks.settings import BenchmarkSettings
from distill.benchmarks.target import CPU, TARGETS, Target
from distill.benchmarks.timing.jobs import ArmSpec, Timing, time_arms
from distill.benchmarks.timing.machine import Machine, board_of, cpu_flags, family, usable_threads
from distill.benchmarks.verdict.bench import case_of, effects_of
from distill.benchmarks.verdict.remarks import saturation_remark
from distill.intervals import Estimate
from distill.types import Array, Feed


@dataclass(frozen=True)
class Latency:
    """The time of one call of one file.

    `provider` is the one that really ran, `inputs` the shape of every input. `p50_s` is the median as found, `quiet_s`
    the lowest decile, both in seconds over the turns of all sessions; `samples` counts the calls behind them. `load_s`
    is the median time to open a session, never part of a call. On a GPU inputs and outputs stay on the device;
    `end_to_end_s` is the median with the copies, and None on a CPU. `board` describes the machine, in the words of
    `machine()`, where it was another one. `contended_share` is the share of turns, 0 to 1, in which something else
    slowed the core.
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
    board: dict[str, Any] | None = None
    warnings: tuple[str, ...] = ()
    contended_share: float = 0.0


@dataclass(frozen=True)
class Comparison:
    """Two files that took turns.

    `speedup` is the time of the baseline over that of the candidate, as found: the mean over session pairs of the
    median paired log ratio, with its t interval. `quiet_speedup` compares the lowest deciles. `contended_share` is the
    share of turns, 0 to 1, in which something else slowed the core. `log_ratios` has one entry a session pair.
    """

    baseline: Latency
    candidate: Latency
    speedup: Estimate
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
    rows: Mapping[str, Array] | None = None,
) -> Latency:
    """Time the file at `path` alone, in several fresh sessions of half a pair's seconds each.

    `rows` replaces made-up inputs by real rows. Raises UserError for a file or inputs that do not fit,
    NotMeasuredError for another machine's target, a provider that does not load, a crash or a hang.
    """
    settings = settings or BenchmarkSettings()
    case, board = _timed([ArmSpec(Path(path), make_inputs(path, batch, rows=rows))], target, batch, settings)
    return _latency(case, 0, path, target, board)


def compare(
    baseline: str | Path,
    candidate: str | Path,
    target: Target,
    batch: int,
    *,
    settings: BenchmarkSettings | None = None,
    baseline_rows: Mapping[str, Array] | None = None,
    candidate_rows: Mapping[str, Array] | None = None,
) -> Comparison:
    """Time two files in alternation; a speed-up above 1 says that the candidate is faster.

    Both get equal inputs where their signatures are equal. Raises what `measure` raises.
    """
    settings = settings or BenchmarkSettings()
    given_rows = ((baseline, baseline_rows), (candidate, candidate_rows))
    arms = [ArmSpec(Path(path), make_inputs(path, batch, rows=rows)) for path, rows in given_rows]
    case, board = _timed(arms, target, batch, settings)
    row = case.rows[1]
    assert row.ratio is not None
    assert row.quiet_ratio is not None
    return Comparison(
        baseline=_latency(case, 0, baseline, target, board),
        candidate=_latency(case, 1, candidate, target, board),
        speedup=Estimate(1 / row.ratio.value, 1 / row.ratio.high, 1 / row.ratio.low),
        quiet_speedup=1 / row.quiet_ratio,
        session_pairs=len(case.pairs),
        contended_share=case.contended_share,
        log_ratios=tuple(-effect for effect in effects_of(case.pairs, 2, 1, runner.MEDIAN)),
        warnings=_comparison_warnings(case, settings, [arm.feeds for arm in arms]),
    )


def _timed(arms: list[ArmSpec], target: Target, batch: int, settings: BenchmarkSettings) -> tuple[Case, Machine | None]:
    """Time files in turns; return the timing, and the machine where it was another one."""
    answer = time_arms(arms, target, Timing.of(settings))
    case = case_of(answer, batch, target.threads, [arm.shapes for arm in arms])
    return case, board_of(answer, target.measure)


def _latency(case: Case, arm: int, path: str | Path, target: Target, board: Machine | None) -> Latency:
    """Take one file's latency out of a timing."""
    row = case.rows[arm]
    return Latency(
        target=target.name,
        provider=target.provider,
        inputs=case.shapes[arm],
        batch=case.batch,
        threads=case.threads,
        p50_s=row.p50_s,
        quiet_s=row.quiet_s,
        samples=row.samples,
        load_s=row.load_s,
        end_to_end_s=row.end_to_end_s,
        provider_options=target.provider_options(),
        board=board,
        contended_share=case.contended_share,
        warnings=tuple(f"{path}: {text}" for text in (*_of_file(case, arm, target), *case.warnings))
        + _saturating(path, target, board or {"family": family(), "flags": cpu_flags()}),
    )


def _saturating(path: str | Path, target: Target, machine: Mapping[str, Any]) -> tuple[str, ...]:
    """Say when the integer sums of a file can saturate on the processor that it was timed on."""
    processor = TARGETS.get(machine["family"])
    if target.provider != CPU or processor is None or not processor.saturates(machine["flags"]):
        return ()
    share = saturating_share(load_proto(path), Path(path).parent)
    return saturation_remark(str(path), share, machine["family"], machine["flags"])


def _of_file(case: Case, arm: int, target: Target) -> list[str]:
    """Say what a reader of one file's latency has to know."""
    warnings = []
    cores = usable_threads()
    if target.measure is None and target.threads > cores:
        warnings.append(f"benchmark.threads={target.threads}: only {cores} can run at once on this machine")
    if not all(pair["finite"][arm] for pair in case.pairs):
        warnings.append("its outputs are not all finite for the inputs that it was timed with")
    if target.device != "cpu":
        warnings.append("the same inputs in every call, so they may lie in the GPU's L2 cache")
    return warnings


def _comparison_warnings(case: Case, settings: BenchmarkSettings, feeds: list[Feed]) -> tuple[str, ...]:
    """Say what a reader of the comparison has to know beyond the two latencies' own warnings."""
    warnings = []
    if len(case.pairs) < settings.session_pairs:
        warnings.append(f"only {len(case.pairs)} of {settings.session_pairs} session pairs fit into a minute")
    shapes = [{name: (value.shape, value.dtype.name) for name, value in inputs.items()} for inputs in feeds]
    if shapes[0] != shapes[1]:
        warnings.append("the two files take different inputs, so each was timed with its own")
    # NaN, the mark of a missing value, is equal to itself.
    elif not all(np.array_equal(a, feeds[1][name], equal_nan=a.dtype.kind == "f") for name, a in feeds[0].items()):
        warnings.append("the two files were timed with different values of the same inputs")
    return tuple(warnings)
