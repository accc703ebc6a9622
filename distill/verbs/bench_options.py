"""The options of the verb `bench`, and which of them go together."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated

import typer

from distill.bounds import MOST_SECONDS, MOST_SEED
from distill.errors import UserError
from distill.verbs.signature import Debug

_option = typer.Option


@dataclass(frozen=True, kw_only=True)
class BenchOptions:
    """What the command line says, as it says it."""

    models: Annotated[
        tuple[str, ...], typer.Argument(help=".onnx files; package.module:function for a PyTorch callable")
    ] = ()
    batch: Annotated[str, _option(help="batch sizes, as 1,8,32")] = "1"
    threads: Annotated[str, _option(help="thread counts, as 1,2")] = "1"
    dim: Annotated[tuple[str, ...], _option(help="size of an open axis, as sequence=128")] = ()
    inputs: Annotated[
        Path | None, _option("--inputs", "--data", help=".npz with real rows by input name; --data as other verbs say")
    ] = None
    target: Annotated[str | None, _option(help="x86, arm, cuda or tensorrt; this machine when left out")] = None
    provider: Annotated[str | None, _option(help="another execution provider of this onnxruntime")] = None
    provider_option: Annotated[tuple[str, ...], _option(help="name=value, passed to the provider")] = ()
    pairs: Annotated[int, _option(help="fresh session pairs of a measurement without a gate", min=2, max=64)] = 6
    seconds: Annotated[float, _option(help="that a session pair is timed for", min=0.01, max=60)] = 1.0
    seed: Annotated[int, _option(help="of inputs and of the order of turns", min=0, max=MOST_SEED)] = 0
    timeout: Annotated[
        float | None, _option(help="seconds until a timing process is stopped", min=0.01, max=MOST_SECONDS)
    ] = None
    baseline: Annotated[Path | None, _option(help="an .onnx file, or what --save-baseline wrote")] = None
    save_baseline: Annotated[
        Path | None, _option(help="keep this measurement and its model (.json) unless it fails")
    ] = None
    release_baseline: Annotated[
        Path | None, _option(help="a second baseline, of the last release, against slow drift")
    ] = None
    max_regression: Annotated[
        str | None, _option(help="slow-down that is allowed, as 5% or 0.05; 5% when left out")
    ] = None
    max_p50_ms: Annotated[
        float | None, _option(help="most that the median call may take", min=0, max=1000 * MOST_SECONDS)
    ] = None
    max_size_growth: Annotated[str | None, _option(help="growth of the file that is allowed, as 10%")] = None
    accept: Annotated[Path | None, _option(help="list of sha256 and reason of files that may be slower")] = None
    strict: Annotated[bool, _option("--strict", help="inconclusive, and no baseline yet, end with 3")] = False
    if_incomparable: Annotated[str, _option(help="fail (exit 4) or warn (exit 0)")] = "fail"
    baseline_python: Annotated[Path | None, _option(help="interpreter whose onnxruntime runs the baseline")] = None
    time_identical: Annotated[
        bool, _option("--time-identical", help="time files of equal bytes too, to see what the gate makes of it")
    ] = False
    manifest: Annotated[Path | None, _option(help="gate many models: a YAML file of pairs")] = None
    shard: Annotated[str | None, _option(help="which part of the manifest, as 1/3")] = None
    merge: Annotated[tuple[Path, ...], _option(help="JSON of a shard; once each, for one verdict on all of them")] = ()
    measure: Annotated[
        str | None, _option(help="command that has it measured elsewhere: gets a bundle, returns its result")
    ] = None
    export_runner: Annotated[Path | None, _option(help="write a bundle for a board instead of measuring")] = None
    import_: Annotated[tuple[Path, ...], _option("--import", help="result.json that came home from a board")] = ()
    rejudge: Annotated[Path | None, _option(help="judge a stored JSON again, by --max-regression")] = None
    out: Annotated[Path | None, _option(help="write the JSON here as well")] = None
    junit: Annotated[Path | None, _option(help="write JUnit XML")] = None
    summary: Annotated[Path | None, _option(help="append a Markdown summary; GitHub's step summary when left out")] = (
        None
    )
    as_json: Annotated[bool, _option("--json", help="one JSON document on standard output")] = False
    debug: Debug = False


_MEASURING = (
    *("batch", "threads", "dim", "inputs", "target", "provider", "provider_option", "pairs", "seconds", "seed"),
    "timeout",
)
_LIMITS = ("max_regression", "max_p50_ms", "max_size_growth")
_VERDICT = ("strict", "if_incomparable", "out", "junit", "summary", "as_json")
# How a task is asked for, as messages say it, and what it takes: any other option would be ignored, and is refused.
_TASKS: dict[str, tuple[str, tuple[str, ...]]] = {
    "measure": ("MODEL alone", ("models", *_MEASURING, "measure", "save_baseline", "max_p50_ms", *_VERDICT)),
    "gate": (
        "--baseline",
        (
            *("models", "baseline", "release_baseline", "save_baseline", "accept", "baseline_python"),
            *("time_identical", "measure", *_MEASURING, *_LIMITS, *_VERDICT),
        ),
    ),
    "manifest": (
        "--manifest",
        ("manifest", "shard", "accept", "time_identical", "measure", *_MEASURING, *_LIMITS, *_VERDICT),
    ),
    "merge": ("--merge", ("merge", *_VERDICT)),
    "import": ("--import", ("import_", "accept", *_LIMITS, *_VERDICT)),
    "rejudge": ("--rejudge", ("rejudge", "accept", *_LIMITS, *_VERDICT)),
    "export": ("--export-runner", ("models", "baseline", "export_runner", *_MEASURING, *_LIMITS)),
}


def task_of(options: BenchOptions) -> str:
    """Tell which task the options ask for. Raises UserError where they ask for none, or do not go together."""
    sources = ("models", "manifest", "merge", "import_", "rejudge")
    named = [flag_of(name) for name in sources if getattr(options, name)]
    if len(named) != 1:
        all_sources = ", ".join(map(flag_of, sources))
        raise UserError(f"bench: give one of {all_sources}; {' and '.join(named) or 'none'} was given")
    task = named[0].removeprefix("--")
    if task == "MODEL":
        gated = options.baseline is not None or options.release_baseline is not None
        task = "export" if options.export_runner is not None else "gate" if gated else "measure"
    _require_fitting(task, named[0], options)
    return task


def _require_fitting(task: str, source: str, options: BenchOptions) -> None:
    """Refuse options that the task would ignore, and values that do not go together."""
    mistakes = []
    for name in (field.name for field in fields(options) if getattr(options, field.name) != field.default):
        if name not in (*_TASKS[task][1], "debug"):
            fitting = " or ".join(flag for flag, names in _TASKS.values() if name in names)
            beside = source if task == "measure" else _TASKS[task][0]
            mistakes.append(f"{flag_of(name)}: would be ignored beside {beside}; it goes with {fitting}")
    if mistakes:
        raise UserError("\n".join(mistakes))
    single = {
        "--baseline": task == "gate" or options.baseline is not None,
        "--save-baseline": options.save_baseline is not None,
        "--max-p50-ms": options.max_p50_ms is not None,
    }
    flag, count = next((flag for flag, needed in single.items() if needed), None), len(options.models)
    if flag is not None and count > 1:
        raise UserError(f"{flag}: goes with one MODEL, {count} were given; --manifest gates many")
    if options.baseline_python is not None and (options.measure is not None or options.baseline is None):
        raise UserError("--baseline-python: goes with --baseline, and not with --measure, which uses another machine's")
    if options.if_incomparable not in ("fail", "warn"):
        raise UserError(f"--if-incomparable {options.if_incomparable}: must be fail or warn")
    if task == "measure" and options.strict and options.max_p50_ms is None:
        raise UserError("--strict: there is nothing to judge without --baseline or --max-p50-ms")


def flag_of(name: str) -> str:
    """Return how the command line calls an option."""
    special = {"models": "MODEL", "as_json": "--json", "import_": "--import"}
    return special.get(name, f"--{name.replace('_', '-')}")
