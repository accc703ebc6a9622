"""What a run's numbers rest on: warnings, data, machine and configuration, and how to run it again."""

from __future__ import annotations

import shlex
from pathlib import PurePath

import yaml

from distill.benchmarks import units
from distill.documents import plain
from distill.rendering.document import Block, Code, Links, Note, Notes, Section, Table, Text, pairs
from distill.report.facts import every_warning, find, flatten, text
from distill.runtime.records import RunResult

_HYGIENE = (
    "Train, validation and test are apart. Every choice (epoch, ratio, trial, keep or revert) is made on validation; "
    "test is read once, at the end."
)
_AGAIN = (
    "Save the configuration above as config.yaml; the decisions are read from the record of this run. "
    "Equal seeds and equal decisions give equal bytes on the CPU."
)
_REPORTS = (("report", "report.html"), ("report as Markdown", "report.md"), ("record of the run", "run.json"))


def warnings(result: RunResult) -> Section | None:
    """List every warning once, with the stage that it is of."""
    notes = [Note(warning, label=stage and f"{stage}:") for stage, warning in every_warning(result)]
    return Section("Warnings", [Notes(notes, warnings=True)], "both") if notes else None


def splits(result: RunResult) -> Section | None:
    """Show the samples of every split that a stage was judged on, or that the teacher recorded, and any leak."""
    rows = []
    for stage in result.stages:
        rows += [(stage.name, text(split), units.plain(n)) for split, n in (stage.detail.splits or {}).items()]
        judged = [quality for quality in (stage.validation, stage.test) if quality is not None]
        rows += [(stage.name, quality.split, units.plain(quality.samples)) for quality in judged]
    if not rows:
        return None
    blocks: list[Block] = [Text(_HYGIENE)]
    leaks = [Note(warning) for _, warning in every_warning(result) if "leak" in warning.lower()]
    if leaks:
        blocks.append(Notes(leaks, warnings=True))
    return Section("Splits and hygiene", [*blocks, Table(("stage", "split", "samples"), rows, numbers=1)])


def machine(result: RunResult) -> Section | None:
    """Show what is recorded of the machine that ran, with its versions, and of the target."""
    records = {"Machine": result.machine, "Target": result.target}
    tables = [pairs(list(flatten(facts)), title) for title, facts in records.items() if facts]
    return Section("Machine and versions", tables) if tables else None


def configuration(result: RunResult) -> Section:
    """Show the resolved configuration as YAML, in its own order."""
    text = "# no configuration is recorded\n"
    if result.config:
        text = yaml.safe_dump(plain(result.config), sort_keys=False, allow_unicode=True, width=100)
    return Section("Configuration", [Code(text, "yaml")])


def reproduce(result: RunResult) -> Section:
    """Show the line that runs the saved configuration again with this run's decisions."""
    record = PurePath(result.folder, "run.json").as_posix()
    command = f"python -m distill run config.yaml --decisions {shlex.quote(record)}"
    return Section("Reproduce", [Text(_AGAIN), Code(command, "sh")])


def files(result: RunResult) -> Section:
    """List the files that the run leaves, those that are deployed first."""
    export = find(result, "export")
    names: tuple[str, ...] = ()
    if export is not None and export.status in ("done", "unmeasured"):
        names = export.detail.files or ("model.onnx",)
    deployed = [("model" if name.endswith(".onnx") else "with it", f"deploy/{name}") for name in names]
    deployed.sort(key=lambda link: link[0] != "model")
    return Section("Files", [Links(result.folder, (*deployed, *_REPORTS))], "both")
