"""The record of a run, `run.json`: one row a stage, and what ships against the teacher.

Every report is made of it alone. `facts` holds what the rows are made of; milliseconds and megabytes are of reports.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from distill.documents import parse_json, plain, read_as, read_text
from distill.errors import UserError
from distill.intervals import Estimate, Real
from distill.runtime.facts import Detail, Quality, StageLatency, Verdict

SCHEMA = 1

Status = Literal["done", "reverted", "unmeasured", "off"]


@dataclass(frozen=True)
class StageRecord:
    """One row of the final table; ``detail`` holds what is particular to the stage."""

    name: str
    status: Status
    reused: bool = False
    seconds: Real = 0.0
    parameters: int | None = None
    macs: int | None = None
    file_bytes: int | None = None
    validation: Quality | None = None
    test: Quality | None = None
    latency: tuple[StageLatency, ...] = ()
    warnings: tuple[str, ...] = ()
    detail: Detail = field(default_factory=Detail)


@dataclass(frozen=True)
class Total:
    """The shipped file against the teacher's fp32 ONNX file, both stripped and with preprocessing alike."""

    speedup: Estimate | None
    size_ratio: Real | None
    metric: str
    metric_drop: Estimate | None
    verdict: Verdict | None = None
    latency_verdict: Verdict | None = None
    verdicts: dict[str, Verdict] = field(default_factory=dict)
    """Of every limit of the budget, by its axis: drop, latency, size."""


@dataclass(frozen=True)
class RunResult:
    """Everything that a run found out, and where it put its files."""

    folder: str
    task: str
    config: dict[str, Any]
    machine: dict[str, Any]
    target: dict[str, Any]
    stages: tuple[StageRecord, ...]
    final: str
    comparison: Total
    warnings: tuple[str, ...] = ()
    decisions: dict[str, Any] = field(default_factory=dict)
    deployable: bool = True
    exit_code: int = 0
    schema: int = SCHEMA

    @property
    def unproven(self) -> tuple[str, ...]:
        """Say which verdicts are open, and what was not timed although that was asked for."""
        open_axes = [axis for axis, verdict in self.comparison.verdicts.items() if verdict == "unresolved"]
        texts = [f"the verdict on the {axis} is open" for axis in open_axes]
        if self.target.get("unmeasured") and self.config.get("benchmark") != "off":
            texts.append(f"latency is unmeasured: {self.target['unmeasured']}")
        return tuple(texts)

    def stage(self, name: str) -> StageRecord:
        """Return the record of the stage called ``name``; KeyError when the run has none."""
        for record in self.stages:
            if record.name == name:
                return record
        raise KeyError(name)

    def to_json(self) -> str:
        """Write as JSON text, keys in the order of the fields; NaN becomes null."""
        return json.dumps(plain(self), indent=1, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> RunResult:
        """Read what ``to_json`` wrote.

        Raises:
            ValueError: the text is not a run of this schema.
        """
        raw = parse_json(text)
        if not isinstance(raw, dict) or raw.get("schema") != SCHEMA:
            raise ValueError(f"schema={raw.get('schema') if isinstance(raw, dict) else None!r}: must be {SCHEMA}")
        try:
            return read_as(cls, raw)
        except ValueError as error:
            raise ValueError(f"is damaged ({error})") from error

    @classmethod
    def load(cls, folder: str | Path) -> RunResult:
        """Read the result of a run folder.

        Raises:
            UserError: there is none, or it is damaged.
        """
        path = Path(folder) / "run.json"
        try:
            return cls.from_json(read_text(path))
        except (OSError, ValueError) as error:
            raise UserError(f"{path}: not the result of a finished run ({error})") from error
