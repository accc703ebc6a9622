"""The verb `quantize`: asks by the options of ``QuantizeOptions``, and shows what came of it."""

from __future__ import annotations

import json
import sys
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import typer

from distill.single_stage.options import QuantizeOptions
from distill.verbs.signature import AsJson, Debug, Quiet, command, echo_json


@dataclass(frozen=True, kw_only=True)
class _Options(QuantizeOptions):
    out: Annotated[Path, typer.Option(help="where the chosen file goes (.onnx)")] = field()
    as_json: AsJson = False
    quiet: Quiet = False
    strict: Annotated[
        bool, typer.Option("--strict", help="a budget or a timing that cannot be resolved ends with 3; the file stays")
    ] = False
    debug: Debug = False


def _quantize(options: _Options) -> None:
    """Find the fastest precision that keeps a budget, and prove it."""
    from distill import clean
    from distill.console import Console

    console = Console("quiet" if options.quiet else "auto")
    console.say(f"{options.model}: loading the model and the rows …")
    from distill.errors import Exit
    from distill.rendering.terminal import render
    from distill.single_stage.quantize_model import run
    from distill.single_stage.quantizing.report import document

    with redirect_stdout(sys.stderr), console:
        result = run(options, console.progress)
    exit_code = result.exit_code
    if options.strict and exit_code == Exit.OK and result.unproven:
        exit_code = Exit.INCONCLUSIVE
    if options.as_json:
        echo_json(json.loads(result.record) | {"written": str(options.out) if result.exit_code == Exit.OK else None})
        raise typer.Exit(int(exit_code))
    choice, terminal = result.choice, clean.console()
    terminal.print(render(document(choice, result.report)))
    written = f"wrote {options.out}" if result.exit_code == Exit.OK else f"{options.out} was not written"
    if choice.chosen.record is None and result.exit_code == Exit.OK:
        written += ", which is the float32 model"
    terminal.print(f"{written}: {choice.why}", soft_wrap=True)
    if exit_code == Exit.INCONCLUSIVE:
        terminal.print(f"--strict: {'; '.join(result.unproven)}", soft_wrap=True)
    if options.plot is not None:
        unmeasured = (
            f"{options.plot} was not written: nothing called for measuring layers one by one; --sensitivity does"
        )
        terminal.print(f"wrote {options.plot}" if choice.sensitivity else unmeasured, soft_wrap=True)
    raise typer.Exit(int(exit_code))


quantize = command(_quantize, _Options)
