"""The verb `init`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from distill import clean
from distill.verbs.signature import Debug


def init(folder: Annotated[Path, typer.Argument(help="a new folder")], debug: Debug = False) -> None:
    """Write an example of your own: configuration, models and data. Comments explain every section."""
    from distill.templates import write_example

    for path in write_example(folder):
        typer.echo(clean.log_line(f"wrote {path}"))
    typer.echo("\n" + clean.log_line(f"now: python -m distill run {folder / 'config.yaml'}"))
