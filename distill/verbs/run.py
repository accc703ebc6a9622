"""The verb `run`: its options; what it does is in `distill.pipeline`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from distill import clean
from distill.errors import Exit, NotMeasuredError, UserError
from distill.verbs.signature import AsJson, Debug, Quiet


def _configs(incomplete: str) -> list[str]:
    """Complete a preset's name, or a YAML file of the current folder."""
    from distill.config.presets import presets

    files = (path.name for pattern in ("*.yaml", "*.yml") for path in Path().glob(pattern))
    return [name for name in (*presets(), *sorted(files)) if name.startswith(incomplete)]


def _choices(*choices: str) -> Callable[[str], list[str]]:
    return lambda incomplete: [choice for choice in choices if choice.startswith(incomplete)]


Config = Annotated[
    str | None, typer.Argument(help="a preset's name or a YAML file; digits when left out", autocompletion=_configs)
]
Set = Annotated[tuple[str, ...], typer.Option("--set", help="section.key=value, as often as needed")]
Device = Annotated[
    str | None, typer.Option(help="what trains: auto, cpu or cuda", autocompletion=_choices("auto", "cpu", "cuda"))
]
Target = Annotated[
    str | None,
    typer.Option(
        help="what it ships to: x86, arm, cuda or tensorrt", autocompletion=_choices("x86", "arm", "cuda", "tensorrt")
    ),
]


@dataclass(frozen=True)
class RunOptions:
    """Options of the verb `run`."""

    config: Config = None
    set_: Set = ()
    out: Annotated[Path | None, typer.Option(help="run folder; runs/<task>-<hash> when left out")] = None
    device: Device = None
    target: Target = None
    max_drop: Annotated[float | None, typer.Option(help="most that the metric may lose; 0.01 is one point")] = None
    max_latency_ms: Annotated[float | None, typer.Option(help="most that a call at batch 1 may take")] = None
    seed: Annotated[int | None, typer.Option(help="of weights, order, augmentation and splits")] = None
    trials: Annotated[int | None, typer.Option(help="Optuna trials before the full run")] = None
    smoke: Annotated[bool, typer.Option("--smoke", help="every stage on two batches; not to be deployed")] = False
    strict: Annotated[
        bool, typer.Option("--strict", help="a verdict that is open, and what was not timed, end with 3")
    ] = False
    decisions: Annotated[Path | None, typer.Option(help="replay the decisions of this run.json")] = None
    as_json: AsJson = False
    quiet: Quiet = False
    debug: Debug = False

    @property
    def overrides(self) -> list[str]:
        """Return what the options set in the configuration; the last of two that set the same wins."""
        latency_s = None if self.max_latency_ms is None else self.max_latency_ms / 1000
        values = {
            "device": self.device,
            "target": self.target,
            "max_drop": self.max_drop,
            "seed": self.seed,
            "search.trials": self.trials,
            "benchmark.max_latency_s": latency_s,
        }
        return [*self.set_, *(f"{field}={value}" for field, value in values.items() if value is not None)]


def run(options: RunOptions) -> None:
    """Distill, prune, quantize and export; measure before and after."""
    _check_wheels()
    if options.strict and options.smoke:
        raise UserError("--strict: a --smoke run proves nothing, so it has no verdict; leave one of them out")
    from distill.console import Console

    console = Console("quiet" if options.quiet else "auto")
    console.say(f"{options.config or 'digits'}: loading torch and the configuration …")  # seconds on a slow machine
    from distill.pipeline import run as run_pipeline

    with redirect_stdout(sys.stderr):  # what the user's own code prints is no result
        result = run_pipeline(
            options.config,
            overrides=options.overrides,
            out=options.out,
            decisions=options.decisions,
            smoke=options.smoke,
            console=console,
        )
    if options.as_json:
        sys.stdout.write(clean.json_text(result.to_json()))
    else:
        from distill.report import render

        clean.console().print(render(result))
    if options.strict and result.exit_code == Exit.OK and result.unproven:
        for text in result.unproven:
            typer.echo(clean.log_line(f"--strict: {text}"), err=True)
        raise typer.Exit(int(Exit.INCONCLUSIVE))
    raise typer.Exit(result.exit_code)


def _check_wheels() -> None:
    from distill.benchmarks.onnxruntime_wheels import conflicting_wheels

    mend = conflicting_wheels()
    if mend:
        raise NotMeasuredError(
            f"several wheels of onnxruntime are installed, and each overwrites the others' files; mend it with\n{mend}"
        )
