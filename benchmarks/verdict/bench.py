"""Measure files: from paths to a report. What is compared with a baseline is in `gate.py`."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from distill.benchmarks import runner
from distill.benchmarks.onnx_file.axes import Place, places_of
from distill.benchmarks.onnx_file.facts import Facts, read_facts
from distill.benchmarks.onnx_file.inputs import inputs_and_assumptions
from distill.benchmarks.records import Case, Model, Report, Row
from distill.benchmarks.target import Target, resolve_target
from distill.benchmarks.timing.callables import TorchCallable
from distill.benchmarks.timing.jobs import ArmSpec, Timing, inspect_file, time_arms
from distill.benchmarks.timing.machine import Machine, board_of, fingerprint, machine
from distill.benchmarks.timing.profile import summarize, unfused_warning
from distill.benchmarks.verdict import remarks
from distill.benchmarks.verdict.statistics import call_quantile, contended_share, lowest_decile, t_bounds
from distill.documents import Json
from distill.errors import UserError
from distill.intervals import Estimate
from distill.types import Array, Feed


@dataclass(frozen=True, kw_only=True)
class Options:
    """How to measure: on this machine's own processor, unless `target` says otherwise.

    `dims` settles open axes by name, `places` by input and axis, `rows` replaces made-up inputs by real rows.
    `commands` starts some of the files, by their number, in a process of another interpreter.
    """

    target: Target = field(default_factory=lambda: resolve_target(None))
    batches: tuple[int, ...] = (1,)
    threads: tuple[int, ...] = (1,)
    timing: Timing = field(default_factory=Timing)
    dims: Mapping[str, int] = field(default_factory=dict)
    places: Mapping[Place, int] = field(default_factory=dict)
    rows: Mapping[str, Array] = field(default_factory=dict)
    commands: Mapping[int, tuple[str, ...]] = field(default_factory=dict)

    def record(self) -> dict[str, Json]:
        """Return `target`, what is measured for, and `seed`, as they stand in a report."""
        target = {
            "name": self.target.name,
            "provider": self.target.provider,
            "provider_options": self.target.provider_options(),
            "measure": self.target.measure,
        }
        return {"target": target, "seed": self.timing.seed}


def bench(paths: Sequence[str | Path], options: Options | None = None) -> Report:
    """Measure files; of more than one, all take turns, and each is compared with the first.

    Raises UserError for a file or inputs that do not fit, NotMeasuredError for a provider that does not load, a crash
    or a hang.
    """
    options = options or Options()
    names = [str(path) for path in paths]
    callables = [TorchCallable.named(path) for path in paths]
    of_files = [word for word, torch_callable in zip(names, callables, strict=True) if torch_callable is None]
    options = settled(of_files, options)
    files = dict(zip(of_files, named(of_files), strict=True))
    inspected = {word: inspect(Path(word), facts, options) for word, facts in files.items()}
    models = [
        inspected[word][0] if torch_callable is None else torch_callable.described()
        for word, torch_callable in zip(names, callables, strict=True)
    ]
    cases = [time_case(paths, options, batch, threads) for batch in options.batches for threads in options.threads]
    host = next((host for _, host in inspected.values()), None)
    return report_on(models, cases, host or machine(), **options.record())


def named(paths: Sequence[str | Path]) -> list[Facts]:
    """Read the files, each under the shortest end of its path that no other file has."""
    parts = [(*path.parent.parts, path.stem) for path in map(Path.absolute, map(Path, paths))]
    most = max((len(ends) for ends in parts), default=0)
    length = next((n for n in range(1, most) if len({ends[-n:] for ends in parts}) == len(set(parts))), most)
    return [read_facts(path, "/".join(ends[-length:])) for path, ends in zip(paths, parts, strict=True)]


def report_on(
    models: Sequence[Model], cases: Sequence[Case], host: Machine, *, target: dict[str, Json], seed: int
) -> Report:
    """Put together what was measured on the machine `host`; `target` and `seed` as `Options.record` has them."""
    return Report(
        at=datetime.now(UTC).isoformat(timespec="seconds"),
        machine=host,
        fingerprint=fingerprint(host),
        target=target,
        seed=seed,
        models=tuple(models),
        cases=tuple(cases),
        warnings=remarks.of_report(models, cases, host),
    )


def settled(paths: Sequence[str | Path], options: Options) -> Options:
    """Settle named axes for several files, which may call the same axis otherwise."""
    if not options.dims:
        return options
    return dataclasses.replace(options, dims={}, places={**options.places, **places_of(paths, options.dims)})


def feeds_of(path: str | Path, options: Options, batch: int) -> Feed:
    """Make a file's inputs for one call. Raises UserError that names the file."""
    return _inputs_of(path, options, batch)[0]


def _inputs_of(path: str | Path, options: Options, batch: int) -> tuple[Feed, list[str]]:
    """Make a file's inputs for one call, and say what was assumed of them. Raises UserError that names the file."""
    try:
        return inputs_and_assumptions(path, batch, seed=options.timing.seed, rows=options.rows, places=options.places)
    except UserError as error:
        raise UserError(str(error) if str(path) in str(error) else f"{path}: {error}") from error


def inspect(path: Path, facts: Facts, options: Options, *, arm: int | None = None) -> tuple[Model, Machine]:
    """Run a file once, untimed, at the first batch size; add up what it executed, and say on which machine.

    `arm` is its number among the timed ones, where that decides which interpreter runs it.
    """
    target = dataclasses.replace(options.target, threads=options.threads[0])
    feeds, assumed = _inputs_of(path, options, options.batches[0])
    python = next(iter(options.commands.get(-1 if arm is None else arm, ())), None)
    answer = inspect_file(path, target, feeds, timeout_s=options.timing.timeout_s, python=python)
    host = board_of(answer, options.target.measure) or machine()
    model = model_of(answer, facts, target.provider)
    remarks_on_inputs = (f"{facts.name}: {text}" for text in assumed)
    return dataclasses.replace(model, warnings=(*model.warnings, *remarks_on_inputs)), host


def model_of(answer: Mapping[str, Any], facts: Facts, provider: str) -> Model:
    """Summarise a runner's inspection of a file."""
    ran = summarize(answer["nodes"], provider, facts.name)
    model = Model(
        facts=facts,
        nodes=ran.nodes,
        integer_share=ran.integer_share,
        compute_nodes=ran.integer + ran.float_,
        provider=ran.provider,
        load_s=answer["load_s"],
        peak_bytes=answer["peak_bytes"],
        finite=all(output["finite"] for output in answer["outputs"].values()),
        runtime=answer.get("board", {}).get("onnxruntime", ""),
        asked=provider,
    )
    unfused = unfused_warning(ran, facts.name)
    warnings = (*ran.warnings, *([unfused] if unfused else []), *remarks.of_model(model))
    return dataclasses.replace(model, warnings=warnings)


def time_case(paths: Sequence[str | Path], options: Options, batch: int, threads: int) -> Case:
    """Time files, and PyTorch callables, in turns at one batch size and thread count."""
    target = dataclasses.replace(options.target, threads=threads)
    callables = [TorchCallable.named(path) for path in paths]
    file = next((path for path, torch_callable in zip(paths, callables, strict=True) if torch_callable is None), None)
    arms = []
    for number, (path, torch_callable) in enumerate(zip(paths, callables, strict=True)):
        if torch_callable is None:
            arms.append(ArmSpec(Path(path), feeds_of(path, options, batch), options.commands.get(number, ())))
        else:
            arms.append(torch_callable.arm(_feeds_for(torch_callable, file, options, batch), target.device))
    return case_of(time_arms(arms, target, options.timing), batch, threads, [arm.shapes for arm in arms])


def _feeds_for(torch_callable: TorchCallable, file: str | Path | None, options: Options, batch: int) -> Feed:
    """Feed a callable what the user gave, cycled up to the batch, or else what the first file is fed."""
    if options.rows:
        return {name: np.take(rows, np.arange(batch) % len(rows), axis=0) for name, rows in options.rows.items()}
    if file is None:
        raise UserError(
            f"{torch_callable.reference}: a PyTorch callable has no signature; give its inputs in order by --inputs"
        )
    return feeds_of(file, options, batch)


def case_of(answer: Mapping[str, Any], batch: int, threads: int, shapes: list[dict[str, list[int]]]) -> Case:
    """Summarise the session pairs of a runner's answer."""
    pairs, arms = list(answer["pairs"]), len(shapes)
    turns = [turn for pair in pairs for turn in pair["turns"]]
    lost = [calls - undisturbed >= 0.1 * calls for _, _, calls, undisturbed, _ in turns]
    joules = [pair["energy_j"] for pair in pairs]
    calls = sum(turn[2] for turn in turns)
    return Case(
        batch=batch,
        threads=threads,
        arms=tuple(range(arms)),
        shapes=shapes,
        rows=tuple(_row(pairs, arms, arm) for arm in range(arms)),
        contended_share=contended_share([(int(turn[0]), float(turn[1])) for turn in turns], lost),
        seconds=answer["seconds"],
        pairs=pairs,
        joules=sum(joules) / calls if calls and None not in joules else None,
        warnings=remarks.of_case(pairs),
    )


def _row(pairs: Sequence[Mapping[str, Any]], arms: int, arm: int) -> Row:
    """Summarise one arm over all session pairs."""
    seconds = turn_seconds(pairs, arms, arm)
    first = turn_seconds(pairs, arms, 0)
    calls: Counter[int] = Counter()
    for pair in pairs:
        calls.update({int(bin_): count for bin_, count in pair["calls"][arm].items()})
    whole = [pair["end_to_end_s"][arm] for pair in pairs if pair["end_to_end_s"]]
    return Row(
        p50_s=float(np.median(seconds)),
        quiet_s=lowest_decile(seconds),
        p90_s=call_quantile(calls, 0.9),
        p99_s=call_quantile(calls, 0.99),
        samples=sum(calls.values()),
        load_s=float(np.median([pair["load_s"][arm] for pair in pairs])),
        end_to_end_s=float(np.median(whole)) if whole else None,
        ratio=ratio_of(pairs, arms, arm) if arm else None,
        quiet_ratio=lowest_decile(seconds) / lowest_decile(first) if arm else None,
    )


def turn_seconds(pairs: Sequence[Mapping[str, Any]], arms: int, arm: int) -> list[float]:
    """List the medians of an arm's turns that nothing spoilt."""
    return [value for pair in pairs for other, value in runner.sound_turns(dict(pair), arms) if other == arm]


def effects_of(pairs: Sequence[Mapping[str, Any]], arms: int, arm: int, value: int = runner.FASTEST) -> list[float]:
    """List the session pairs' log ratios of an arm to the first one; above 0 it is slower.

    `value` is what of adjacent turns is compared: `runner.FASTEST` or `runner.MEDIAN`.
    """
    return [runner.effect(dict(pair), arms, arm, value) for pair in pairs]


def ratio_of(pairs: Sequence[Mapping[str, Any]], arms: int, arm: int) -> Estimate:
    """Return an arm's time over that of the first one as found, with its 95 % interval."""
    theta, low, high = t_bounds(effects_of(pairs, arms, arm, runner.MEDIAN))
    return Estimate(math.exp(theta), math.exp(low), math.exp(high))
