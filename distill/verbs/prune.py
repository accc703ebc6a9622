"""The verb `prune`: asks by the options of ``PruneOptions``, and shows what came of it."""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import typer

from distill.single_stage.options import PruneOptions
from distill.verbs.signature import AsJson, Debug, Quiet, command


@dataclass(frozen=True, kw_only=True)
class _Options(PruneOptions):
    out: Annotated[Path, typer.Option(help="a new folder for the pruned model and its report")] = field()
    as_json: AsJson = False
    quiet: Quiet = False
    debug: Debug = False


def _prune(options: _Options) -> None:
    """Remove channels, heads and blocks, and prove what that bought."""
    from distill import clean
    from distill.console import Console

    console = Console("quiet" if options.quiet else "auto")
    console.say(f"{options.model}: loading torch and the model …")
    from distill.rendering.terminal import render
    from distill.single_stage.prune_model import run
    from distill.single_stage.pruning.report import document

    with redirect_stdout(sys.stderr), console:
        outcome = run(options, console.progress).outcome
    if options.as_json:
        sys.stdout.write(clean.json_text(outcome.to_json()))
    else:
        written = f"wrote {options.out}" if outcome.exit_code == 0 else f"{options.out} was not written"
        terminal = clean.console()
        terminal.print(render(document(outcome, str(options.out))))
        terminal.print(f"{written}: {outcome.why}", soft_wrap=True)
    raise typer.Exit(int(outcome.exit_code))


prune = command(_prune, _Options)
