"""The verb `presets`."""

from __future__ import annotations

import typer

from distill.verbs.signature import AsJson, echo_json


def presets(as_json: AsJson = False) -> None:
    """List the presets, with a line on each."""
    from distill.config.presets import presets as shipped

    descriptions = shipped()
    if as_json:
        echo_json(descriptions)
        return
    width = max(len(name) for name in descriptions)
    for name, description in descriptions.items():
        typer.echo(f"{name:<{width}}  {description}")
