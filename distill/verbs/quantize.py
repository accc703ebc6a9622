"""The verb `quantize`: asks by the options of ``QuantizeOptions``, and shows what came of it."""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import typer

from distill.single_stage.options import QuantizeOptions
from distill.verbs.signature import Debug, command


@dataclass(frozen=True, kw_only=True)
class _Options(QuantizeOptions):
    out: Annotated[Path, typer.Option(help="where the chosen file goes (.onnx)")] = field()
    debug: Debug = False


def _quantize(options: _Options) -> None:
    """Find the fastest precision of a model that keeps a budget, and prove it."""
    from rich.text import Text

    from distill import clean
    from distill.rendering.terminal import render
    from distill.single_stage.quantize_model import run
    from distill.single_stage.quantizing.report import document

    # Of what takes minutes a person wants to see the hand move; a file or a pipe gets the result alone.
    with redirect_stdout(sys.stderr), clean.console(stderr=True).status("reading") as status:

        def show(step: str, number: int, total: int) -> None:
            status.update(Text(clean.log_line(f"{step}: {number} of {total}")))

        result = run(options, show)
    choice, terminal = result.choice, clean.console()
    terminal.print(render(document(choice, result.report)))
    written = f"wrote {options.out}" if result.exit_code == 0 else f"{options.out} was not written"
    terminal.print(f"{written}: {choice.why}", soft_wrap=True)
    if options.plot is not None:
        unmeasured = (
            f"{options.plot} was not written: nothing called for measuring layers one by one; --sensitivity does"
        )
        terminal.print(f"wrote {options.plot}" if choice.sensitivity else unmeasured, soft_wrap=True)
    raise typer.Exit(int(result.exit_code))


quantize = command(_quantize, _Options)
