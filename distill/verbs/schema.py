"""The verb `schema`."""

from __future__ import annotations

from distill.verbs.signature import echo_json


def schema() -> None:
    """Print the JSON schema of a configuration, for editors."""
    from distill.config.loading import schema as build

    echo_json(build())
