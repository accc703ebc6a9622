"""The command line: one small function a verb; heavy imports wait until a verb needs them."""

from __future__ import annotations

import errno
import io
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from distill import clean
from distill.errors import DistillError, Exit, NotMeasuredError
from distill.verbs.bench import verb as bench
from distill.verbs.prune import prune
from distill.verbs.quantize import quantize

# Typer brings its own copy of click from 0.20 or so on; its errors are found here, whichever it uses.
_USAGE: Any = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")
_ENDS = (typer.Exit, SystemExit)
_COMPLETION = "_DISTILL_COMPLETE"

app = typer.Typer(
    name="distill",
    help="Turn a PyTorch teacher into the smallest, fastest ONNX model that meets a budget on a device, and prove it.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _configs(incomplete: str) -> list[str]:
    """Complete a preset's name, or a YAML file of the current folder."""
    from distill.config.presets import presets as shipped

    files = (path.name for pattern in ("*.yaml", "*.yml") for path in Path().glob(pattern))
    return [name for name in (*shipped(), *sorted(files)) if name.startswith(incomplete)]


def _one_of(*words: str) -> Callable[[str], list[str]]:
    return lambda incomplete: [word for word in words if word.startswith(incomplete)]


Config = Annotated[
    str | None,
    typer.Argument(help="a preset's name or a YAML file; digits when left out", autocompletion=_configs),
]
Set = Annotated[list[str] | None, typer.Option("--set", help="section.key=value, as often as needed")]
Debug = Annotated[bool, typer.Option("--debug", help="show the traceback of an error")]
AsJson = Annotated[bool, typer.Option("--json", help="one JSON document on standard output, for machines")]


@app.command()
def run(
    config: Config = None,
    set_: Set = None,
    out: Annotated[Path | None, typer.Option(help="run folder; runs/<task>-<hash> when left out")] = None,
    device: Annotated[
        str | None,
        typer.Option(help="what trains: auto, cpu or cuda", autocompletion=_one_of("auto", "cpu", "cuda")),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(
            help="what it ships to: x86, arm, cuda or tensorrt",
            autocompletion=_one_of("x86", "arm", "cuda", "tensorrt"),
        ),
    ] = None,
    max_drop: Annotated[float | None, typer.Option(help="most that the metric may lose; 0.01 is one point")] = None,
    max_latency_ms: Annotated[float | None, typer.Option(help="most that a call at batch 1 may take")] = None,
    seed: Annotated[int | None, typer.Option(help="of weights, order, augmentation and splits")] = None,
    trials: Annotated[int | None, typer.Option(help="Optuna trials before the full run")] = None,
    smoke: Annotated[bool, typer.Option("--smoke", help="every stage on two batches; not to be deployed")] = False,
    decisions: Annotated[Path | None, typer.Option(help="replay the decisions of this run.json")] = None,
    as_json: AsJson = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="no progress, only the result")] = False,
    debug: Debug = False,
) -> None:
    """Train, distill, prune, quantize, export, and measure before and after."""
    _check_wheels()
    from distill.console import Console
    from distill.pipeline import run as run_pipeline

    options = {"device": device, "target": target, "max_drop": max_drop, "seed": seed, "search.trials": trials}
    if max_latency_ms is not None:
        options["benchmark.max_latency_s"] = max_latency_ms / 1000
    overrides = [*(set_ or ()), *(f"{name}={value}" for name, value in options.items() if value is not None)]
    result = run_pipeline(
        config,
        overrides=overrides,
        out=out,
        decisions=decisions,
        smoke=smoke,
        console=Console("quiet" if quiet else "auto"),
    )
    if as_json:
        sys.stdout.write(clean.json_text(result.to_json()))
    else:
        from distill.report import render

        clean.console().print(render(result))
    raise typer.Exit(result.exit_code)


@app.command()
def validate(config: Config = None, set_: Set = None, as_json: AsJson = False, debug: Debug = False) -> None:
    """Check a configuration and its data, and estimate time, memory and disk of each stage."""
    from distill.config.loading import load_config
    from distill.estimate.forecast import estimate, show

    found = estimate(load_config(config, set_ or ()))
    if as_json:
        typer.echo(clean.json_text(json.dumps(found, indent=1)))
    else:
        show(found)


@app.command()
def doctor(as_json: AsJson = False, debug: Debug = False) -> None:
    """Tell what this machine has: versions, providers that really load, CPU flags, threads, data sets found."""
    from distill.verbs.doctor import examine, show

    found = examine()
    if as_json:
        typer.echo(clean.json_text(json.dumps(found, indent=1)))
    else:
        show(found)
    if found["problems"]:
        raise typer.Exit(int(Exit.NOT_MEASURED))


@app.command()
def presets(as_json: AsJson = False) -> None:
    """List the presets, with a line on each."""
    from distill.config.presets import presets as shipped

    found = shipped()
    if as_json:
        typer.echo(clean.json_text(json.dumps(found, indent=1)))
        return
    width = max(len(name) for name in found)
    for name, what in found.items():
        typer.echo(f"{name:<{width}}  {what}")


@app.command()
def schema() -> None:
    """Print the JSON schema of a configuration, for editors."""
    from distill.config.loading import schema as build

    typer.echo(json.dumps(build(), indent=1))


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(help="a new folder")],
    debug: Debug = False,
) -> None:
    """Write a commented configuration with an example of your own teacher, student and data."""
    from distill.templates import write_example

    for path in write_example(folder):
        typer.echo(clean.log_line(f"wrote {path}"))
    typer.echo("\n" + clean.log_line(f"now: python -m distill run {folder / 'config.yaml'}"))


app.command()(bench)
app.command()(quantize)
app.command()(prune)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run a verb and end the process with the exit code that the error, if any, stands for."""
    # OpenMP threads that spin while they wait make training up to 20 times slower as soon as anything else runs on the
    # machine; this has to be set before torch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if isinstance(sys.stdout, io.TextIOWrapper):
        # Where the locale cannot write a sign it is spelled out, as on standard error, rather than ending the command.
        sys.stdout.reconfigure(errors="backslashreplace")
    words = list(sys.argv[1:] if arguments is None else arguments)
    # A shell completes the first word of a line, so completion is for the command `distill`, however it was asked for.
    completing = _COMPLETION in os.environ or any(w.endswith("-completion") for w in words)
    try:
        code = app(
            args=words,
            prog_name="distill" if completing else "python -m distill",
            complete_var=_COMPLETION,
            standalone_mode=False,
        )
        if code == Exit.INTERRUPTED:  # typer turns Ctrl-C into an exit
            _complain(f"interrupted; {_goes_on()}", Exit.INTERRUPTED)
    except BaseException as error:
        if "--debug" in words and not isinstance(error, _ENDS):
            import traceback

            traceback.print_exc()
        code = _code_of(error)
    sys.exit(int(code) if isinstance(code, int) else 0)


# What the machine or its administrator refuses; anything else that the system says may be our own mistake.
_LIMITS = (errno.EFBIG, errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENAMETOOLONG, errno.ESTALE)


def _goes_on() -> str:
    """Say what comes of the same command: a run goes on where it was, anything else begins anew."""
    verb = next((word for word in sys.argv[1:] if not word.startswith("-")), "")
    anew = verb in ("bench", "quantize", "prune")
    return "the same command begins anew" if anew else "the same command goes on from here"


def _code_of(error: BaseException) -> int:
    """Say what went wrong on standard error, and return the exit code for it."""
    if isinstance(error, DistillError):
        return _complain(str(error), error.exit_code)
    if isinstance(error, typer.Exit):
        return error.exit_code
    if isinstance(error, SystemExit) and isinstance(error.__context__, BrokenPipeError):
        # Who read our output has gone, so nobody can be told; click would end with 1, which is a verdict here.
        return Exit.INTERRUPTED
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else Exit.OK
    if isinstance(error, _USAGE):
        shown = io.StringIO()
        error.show(file=shown)
        for line in clean.text(shown.getvalue()).splitlines():
            typer.echo(clean.log_line(line), err=True)
        return Exit.USER
    if isinstance(error, KeyboardInterrupt | typer.Abort):
        return _complain(f"interrupted; {_goes_on()}", Exit.INTERRUPTED)
    number, name = getattr(error, "errno", None), getattr(error, "filename", None)
    where = f"{name}: " if name else ""
    if number in (errno.ENOSPC, errno.EDQUOT) or "No space left on device" in str(error):
        return _complain(f"{where}the disk is full; free some space, then {_goes_on()}", Exit.USER)
    why = getattr(error, "strerror", None) or error
    if number in _LIMITS:
        return _complain(f"{where}{why}; mend that, then {_goes_on()}", Exit.USER)
    if isinstance(error, PermissionError) or number == errno.EROFS:
        return _complain(f"{where}no permission ({why}); mend its rights, or choose a place with --out", Exit.USER)
    if isinstance(error, MemoryError) or "can't allocate memory" in str(error) or "out of memory" in str(error):
        return _complain("out of memory; lower batch_size, or distill.views", Exit.USER)
    return _complain(
        f"a defect of distill: {type(error).__name__}: {error}\nrun again with --debug for the traceback", Exit.DEFECT
    )


def _complain(text: str, code: Exit) -> int:
    for line in clean.text(text).rstrip("\n").split("\n"):
        typer.echo(clean.log_line(f"error: {line}"), err=True)
    return code


def _check_wheels() -> None:
    from distill.benchmarks.wheels import conflicting_wheels

    mend = conflicting_wheels()
    if mend:
        raise NotMeasuredError(
            f"several wheels of onnxruntime are installed, and each overwrites the others' files; mend it with\n{mend}"
        )
