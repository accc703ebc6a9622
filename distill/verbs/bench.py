"""The verb `bench`: what it does with its results; the options are in `bench_options`, the work in `bench_tasks`."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from distill import clean
from distill.errors import Exit
from distill.output_paths import require_apart, require_places, write_output
from distill.verbs.bench_options import BenchOptions, flag_of, task_of
from distill.verbs.signature import command

if TYPE_CHECKING:
    from distill.benchmarks.records import Part, Report


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


def _require_writable(options: BenchOptions) -> None:
    """Find out before a measurement whether its results can be kept; their folders are made when they are written.

    Raises:
        UserError: a path is a folder, its folder is a file, it cannot be written, is named twice, or is read.
    """
    places = {
        "--out": options.out,
        "--junit": options.junit,
        "--summary": _summary(options),
        "--save-baseline": options.save_baseline,
    }
    outputs = {flag: path for flag, path in places.items() if path is not None}
    if options.save_baseline is not None:
        from distill.benchmarks.verdict.baseline import require_own_place

        require_own_place(options.save_baseline, Path(options.models[0]))
        outputs["the model of --save-baseline"] = options.save_baseline.with_suffix(".onnx")
    require_places(outputs, makes_folders=True)
    inputs = [("the model itself", Path(name)) for name in options.models]
    for name in ("inputs", "manifest", "accept", "baseline", "release_baseline"):
        path = getattr(options, name)
        if path is not None:
            inputs.append((f"what {flag_of(name)} reads", path))
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

    path = _summary(options)
    for place in filter(None, (options.out, options.junit, path)):
        place.parent.mkdir(parents=True, exist_ok=True)
    if options.out is not None:
        save_reports(options.out, reports, part)
    if options.junit is not None:
        write_output("--junit", options.junit, junit(reports))
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
