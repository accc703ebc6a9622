"""The verb `bench`: its options, as words; what they do is in `distill.verbs.bench_command`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

_GATE, _MANY, _BOARD, _OUT = "Gate", "Many models", "Boards", "Output"


def bench(
    models: Annotated[
        list[str] | None, typer.Argument(help=".onnx files; package.module:function for a PyTorch callable")
    ] = None,
    batch: Annotated[str, typer.Option(help="batch sizes, as 1,8,32")] = "1",
    threads: Annotated[str, typer.Option(help="thread counts, as 1,2")] = "1",
    dim: Annotated[list[str] | None, typer.Option(help="size of an open axis, as sequence=128")] = None,
    inputs: Annotated[Path | None, typer.Option(help=".npz with real rows by input name")] = None,
    target: Annotated[str | None, typer.Option(help="x86, arm, cuda or tensorrt; this machine when left out")] = None,
    provider: Annotated[str | None, typer.Option(help="another execution provider of this onnxruntime")] = None,
    provider_option: Annotated[list[str] | None, typer.Option(help="name=value, passed to the provider")] = None,
    pairs: Annotated[int, typer.Option(help="fresh session pairs of a measurement without a gate", min=2)] = 6,
    seconds: Annotated[float, typer.Option(help="that a session pair is timed for", min=0.01, max=60)] = 1.0,
    seed: Annotated[int, typer.Option(help="of inputs and of the order of turns", min=0)] = 0,
    timeout: Annotated[float | None, typer.Option(help="seconds until a timing process is stopped", min=0.01)] = None,
    baseline: Annotated[
        Path | None, typer.Option(help="an .onnx file, or what --save-baseline wrote", rich_help_panel=_GATE)
    ] = None,
    save_baseline: Annotated[
        Path | None, typer.Option(help="keep this measurement and its model (.json) unless it fails")
    ] = None,
    release_baseline: Annotated[
        Path | None, typer.Option(help="a second baseline, of the last release, against slow drift")
    ] = None,
    max_regression: Annotated[
        str | None, typer.Option(help="slow-down that is allowed, as 5% or 0.05; 5% when left out")
    ] = None,
    max_p50_ms: Annotated[float | None, typer.Option(help="most that the median call may take", min=0)] = None,
    max_size_growth: Annotated[str | None, typer.Option(help="growth of the file that is allowed, as 10%")] = None,
    accept: Annotated[Path | None, typer.Option(help="list of sha256 and reason of files that may be slower")] = None,
    strict: Annotated[bool, typer.Option("--strict", help="inconclusive, and no baseline yet, end with 3")] = False,
    if_incomparable: Annotated[str, typer.Option(help="fail (exit 4) or warn (exit 0)")] = "fail",
    baseline_python: Annotated[
        Path | None, typer.Option(help="interpreter whose onnxruntime runs the baseline")
    ] = None,
    time_identical: Annotated[
        bool, typer.Option("--time-identical", help="time files of equal bytes too, to see what the gate makes of it")
    ] = False,
    manifest: Annotated[Path | None, typer.Option(help="gate many models: a YAML file of pairs")] = None,
    shard: Annotated[str | None, typer.Option(help="which part of the manifest, as 1/3")] = None,
    merge: Annotated[
        list[Path] | None, typer.Option(help="JSON of a shard; once each, for one verdict on all of them")
    ] = None,
    measure: Annotated[
        str | None, typer.Option(help="command that has it measured elsewhere: gets a bundle, returns its result")
    ] = None,
    export_runner: Annotated[Path | None, typer.Option(help="write a bundle for a board instead of measuring")] = None,
    import_: Annotated[
        list[Path] | None, typer.Option("--import", help="result.json that came home from a board")
    ] = None,
    rejudge: Annotated[Path | None, typer.Option(help="judge a stored JSON again, by --max-regression")] = None,
    out: Annotated[Path | None, typer.Option(help="write the JSON here as well")] = None,
    junit: Annotated[Path | None, typer.Option(help="write JUnit XML")] = None,
    summary: Annotated[
        Path | None, typer.Option(help="append a Markdown summary; GitHub's step summary when left out")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="one JSON document on standard output")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="show the traceback of an error")] = False,
) -> None:
    """Time ONNX files, compare them, and gate one by another."""
    # The parameters are the words: what was left out has its default there.
    said: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in locals().items()
        if value is not None and name != "debug"
    }
    from distill.verbs.bench_command import Words, run

    raise typer.Exit(int(run(Words(**said))))
