"""The command that runs the configuration again."""

from __future__ import annotations

import shlex
from pathlib import PurePath

from distill.rendering.document import Code, Section, Text
from distill.runtime.records import RunResult


def reproduce(result: RunResult) -> Section:
    """Show the line that runs the saved configuration again with this run's decisions."""
    record = PurePath(result.folder, "run.json").as_posix()
    how = (
        "Save the configuration above as config.yaml; the decisions are read from the record of this run. "
        "Equal seeds and equal decisions give equal bytes on the CPU."
    )
    command = f"python -m distill run config.yaml --decisions {shlex.quote(record)}"
    return Section("Reproduce", [Text(how), Code(command, "sh")])
