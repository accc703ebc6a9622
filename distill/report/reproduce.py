"""The configuration as text, and the command that runs it again."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

import yaml

from distill.runtime.records import RunResult


def as_yaml(result: RunResult) -> str:
    """Return the resolved configuration as YAML, in its own order."""
    if not result.config:
        return "# no configuration is recorded\n"
    text: str = yaml.safe_dump(_plain(result.config), sort_keys=False, allow_unicode=True, width=100)
    return text


def command(result: RunResult) -> str:
    """Return the line that runs the saved configuration again with this run's decisions."""
    record = PurePath(result.folder, "run.json").as_posix()
    return f"python -m distill run config.yaml --decisions {shlex.quote(record)}"


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple | set):
        return [_plain(one) for one in value]
    return value if value is None or type(value) in (bool, int, float, str) else str(value)
