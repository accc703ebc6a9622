"""The verb `bench`: its options, which of them go together, and what it shows; the work is in `bench_tasks`."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from distill import clean
from distill.errors import Exit, UserError
from distill.places import require_apart, require_places, write_output
from distill.verbs.options import Debug, command

if TYPE_CHECKING:
    from distill.benchmarks.records import Part, Report

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
    inputs: Annotated[Path | None, _option(help=".npz with real rows by input name")] = None
    target: Annotated[str | None, _option(help="x86, arm, cuda or tensorrt; this machine when left out")] = None
    provider: Annotated[str | None, _option(help="another execution provider of this onnxruntime")] = None
    provider_option: Annotated[tuple[str, ...], _option(help="name=value, passed to the provider")] = ()
    pairs: Annotated[int, _option(help="fresh session pairs of a measurement without a gate", min=2)] = 6
    seconds: Annotated[float, _option(help="that a session pair is timed for", min=0.01, max=60)] = 1.0
    seed: Annotated[int, _option(help="of inputs and of the order of turns", min=0)] = 0
    timeout: Annotated[float | None, _option(help="seconds until a timing process is stopped", min=0.01)] = None
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
    max_p50_ms: Annotated[float | None, _option(help="most that the median call may take", min=0)] = None
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


_INPUTS = ("batch", "threads", "dim", "inputs")
_MEASURING = (*_INPUTS, "target", "provider", "provider_option", "seconds", "seed", "timeout")
_LIMITS = ("max_regression", "max_p50_ms", "max_size_growth")
_VERDICT = ("strict", "if_incomparable", "out", "junit", "summary", "as_json")
# What every task takes; any other option would be ignored, and is refused.
_TAKES: dict[str, tuple[str, ...]] = {
    "measure": ("models", *_MEASURING, "pairs", "measure", "save_baseline", "max_p50_ms", *_VERDICT),
    "gate": (
        *("models", "baseline", "release_baseline", "save_baseline", "accept", "baseline_python", "time_identical"),
        *("measure", "pairs", *_MEASURING, *_LIMITS, *_VERDICT),
    ),
    "manifest": ("manifest", "shard", "pairs", "accept", "time_identical", "measure", *_MEASURING, *_LIMITS, *_VERDICT),
    "merge": ("merge", *_VERDICT),
    "import": ("import_", "accept", *_LIMITS, *_VERDICT),
    "rejudge": ("rejudge", "accept", *_LIMITS, *_VERDICT),
    "export": ("models", "baseline", "export_runner", "pairs", *_MEASURING, *_LIMITS),
}
# How a task is asked for, as messages say it.
_FLAGS = {
    "measure": "MODEL alone",
    "gate": "--baseline",
    "manifest": "--manifest",
    "merge": "--merge",
    "import": "--import",
    "rejudge": "--rejudge",
    "export": "--export-runner",
}


def bench(options: BenchOptions) -> None:
    """Time ONNX files, compare them, and gate one by another."""
    raise typer.Exit(int(run(options)))


def run(options: BenchOptions) -> Exit:
    """Do what the options ask for; return the exit code.

    Raises:
        UserError, NotComparableError, NotMeasuredError: the message names the option or the file.
    """
    task = task_of(options)
    _require_writable(options)
    from distill.benchmarks.verdict.outcomes import exit_code
    from distill.verbs import bench_tasks

    if task == "export":
        folder = bench_tasks.export(options)
        print(clean.log_line(f"wrote {folder}; there, `python3 runner.py` writes result.json, which --import reads"))
        return Exit.OK
    with bench_tasks.blaming_files(options):
        reports, part = bench_tasks.reports_of(task, options)
        gates = [gate for report in reports for gate in report.gates]
        code = exit_code(gates, strict=options.strict, incomparable_ok=options.if_incomparable == "warn")
        _show(options, reports, part)
    if options.save_baseline is not None:
        print(clean.log_line(bench_tasks.keep(options.save_baseline, options, reports)), file=sys.stderr)
    return code


def task_of(options: BenchOptions) -> str:
    """Tell which task the options ask for. Raises UserError where they ask for none, or do not go together."""
    sources = {
        "MODEL": bool(options.models),
        "--manifest": options.manifest is not None,
        "--merge": bool(options.merge),
        "--import": bool(options.import_),
        "--rejudge": options.rejudge is not None,
    }
    named = [name for name, present in sources.items() if present]
    if len(named) != 1:
        raise UserError(f"bench: give one of {', '.join(sources)}; {' and '.join(named) or 'none'} was given")
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
        if name not in (*_TAKES[task], "debug"):
            fitting = " or ".join(flag for other, flag in _FLAGS.items() if name in _TAKES[other])
            beside = source if task == "measure" else _FLAGS[task]
            mistakes.append(f"{_flag(name)}: would be ignored beside {beside}; it goes with {fitting}")
    if mistakes:
        raise UserError("\n".join(mistakes))
    single = {
        "--baseline": task == "gate" or (task == "export" and options.baseline is not None),
        "--save-baseline": options.save_baseline is not None,
        "--max-p50-ms": options.max_p50_ms is not None,
    }
    count = len(options.models)
    for flag, needed in single.items():
        if needed and count > 1:
            raise UserError(f"{flag}: goes with one MODEL, {count} were given; --manifest gates many")
    if options.baseline_python is not None and (options.measure is not None or options.baseline is None):
        raise UserError("--baseline-python: goes with --baseline, and not with --measure, which uses another machine's")
    if options.if_incomparable not in ("fail", "warn"):
        raise UserError(f"--if-incomparable {options.if_incomparable}: must be fail or warn")
    if task == "measure" and options.strict and options.max_p50_ms is None:
        raise UserError("--strict: there is nothing to judge without --baseline or --max-p50-ms")


def _flag(name: str) -> str:
    special = {"models": "MODEL", "as_json": "--json", "import_": "--import"}
    return special.get(name, f"--{name.replace('_', '-')}")


def _require_writable(options: BenchOptions) -> None:
    """Find out before a measurement whether its results can be kept, and make the folders that they go into.

    Raises:
        UserError: a path is a folder, its folder is a file, it cannot be written, is named twice, or is read.
    """
    outputs = {
        flag: path
        for flag, path in {
            "--out": options.out,
            "--junit": options.junit,
            "--summary": _summary(options),
            "--save-baseline": options.save_baseline,
        }.items()
        if path is not None
    }
    for flag, path in outputs.items():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{flag} {path}: its folder cannot be made ({error.strerror})") from error
    if options.save_baseline is not None:
        from distill.benchmarks.verdict.baseline import require_own_place

        require_own_place(options.save_baseline, Path(options.models[0]))
        outputs["the model of --save-baseline"] = options.save_baseline.with_suffix(".onnx")
    require_places(outputs)
    inputs = [("the model itself", Path(name)) for name in options.models]
    for name in ("inputs", "manifest", "accept", "baseline", "release_baseline"):
        path = getattr(options, name)
        if path is not None:
            inputs.append((f"what {_flag(name)} reads", path))
    # A baseline takes the place of the one that it is compared with.
    require_apart({flag: path for flag, path in outputs.items() if "--save-baseline" not in flag}, inputs)


def _summary(options: BenchOptions) -> Path | None:
    """Return where a Markdown summary is appended: the path of the option, or GitHub's."""
    step = os.environ.get("GITHUB_STEP_SUMMARY")
    return options.summary or (Path(step) if step else None)


def _show(options: BenchOptions, reports: Sequence[Report], part: Part | None) -> None:
    """Print and write the reports, in every form that the options ask for."""
    from distill.benchmarks.records import save_reports, to_json
    from distill.benchmarks.show.annotations import workflow_commands
    from distill.benchmarks.show.junit import junit
    from distill.benchmarks.show.tables import render, summary

    if options.out is not None:
        save_reports(options.out, reports, part)
    if options.junit is not None:
        write_output("--junit", options.junit, junit(reports))
    path = _summary(options)
    if path is not None:
        with path.open("a", encoding="utf-8") as file:
            file.write("\n".join(summary(report) for report in reports))
    if os.environ.get("GITHUB_ACTIONS") == "true":
        # On standard error when JSON goes to standard output: GitHub reads both.
        for line in workflow_commands(reports):
            print(line, file=sys.stderr if options.as_json else sys.stdout)
    if options.as_json:
        sys.stdout.write(clean.json_text(to_json(reports, part)))
        return
    console = clean.console()
    for report in reports:
        console.print(render(report))


verb = command(bench, BenchOptions)
