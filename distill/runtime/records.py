"""What a run found out: frozen records in base units, the only source of every report.

``RunResult`` is ``run.json``. Latencies are seconds, sizes bytes, drops fractions (0.01 is one point of accuracy);
milliseconds and megabytes appear in reports only.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from distill.documents import parse_json, read_text
from distill.errors import UserError
from distill.intervals import Estimate as Estimate  # others take it from here

SCHEMA = 1

Status = Literal["done", "reverted", "unmeasured", "off"]
Verdict = Literal["met", "missed", "unresolved"]


@dataclass(frozen=True)
class Drop:
    """How much worse than the teacher, in the metric that decides, as a fraction, judged against ``limit``."""

    value: float
    low: float
    high: float
    limit: float
    verdict: Verdict


@dataclass(frozen=True)
class Quality:
    """A stage's answers on one split, beside the teacher's.

    ``flips_lost`` counts samples that the teacher had right and the stage has wrong; ``flips_won`` the reverse.
    ``kl`` is the mean Kullback-Leibler divergence KL(teacher || stage) in nats.
    """

    split: Literal["validation", "test"]
    samples: int
    metrics: dict[str, Estimate]
    agreement: Estimate | None
    drop: Drop | None
    flips_lost: int = 0
    flips_won: int = 0
    kl: float | None = None


@dataclass(frozen=True)
class StageLatency:
    """A stage's shipped form, timed at one batch size; ``speedup`` is over the teacher's fp32 ONNX file.

    ``board`` describes the machine that it was timed on, where it was not the one of the run.
    """

    target: str
    provider: str
    inputs: dict[str, list[Any]]
    batch: int
    threads: int
    p50_s: float
    quiet_s: float
    samples: int
    speedup: Estimate | None = None
    quiet_speedup: float | None = None
    board: dict[str, Any] | None = None


@dataclass(frozen=True)
class StageRecord:
    """One row of the final table.

    ``detail`` holds what is particular to the stage: losses by epoch, channel widths, quantized nodes, the decision
    that kept or reverted it, parity, the integer-kernel share (``detail["profile"]["integer_share"]``).
    """

    name: str
    status: Status
    reused: bool = False
    seconds: float = 0.0
    parameters: int | None = None
    macs: int | None = None
    file_bytes: int | None = None
    validation: Quality | None = None
    test: Quality | None = None
    latency: tuple[StageLatency, ...] = ()
    warnings: tuple[str, ...] = ()
    detail: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Total:
    """The shipped file against the teacher's fp32 ONNX file, both stripped and with preprocessing alike."""

    speedup: Estimate | None
    size_ratio: float | None
    metric: str
    metric_drop: Estimate | None
    verdict: Verdict | None = None
    latency_verdict: Verdict | None = None


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

    def stage(self, name: str) -> StageRecord:
        """Return the record of the stage called ``name``; KeyError when the run has none."""
        for record in self.stages:
            if record.name == name:
                return record
        raise KeyError(name)

    def to_json(self) -> str:
        """Write as JSON text, keys in the order of the fields; NaN becomes null."""
        return json.dumps(_clean(dataclasses.asdict(self)), indent=1, allow_nan=False) + "\n"

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
            raw["stages"] = tuple(_stage(one) for one in raw["stages"])
            total = dict(raw["comparison"])
            raw["comparison"] = Total(**{**total, **{k: _estimate(total[k]) for k in ("speedup", "metric_drop")}})
            raw["warnings"] = tuple(raw["warnings"])
            return cls(**raw)
        except (LookupError, TypeError, AttributeError) as error:
            raise ValueError(f"is damaged ({type(error).__name__}: {error})") from error

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


def stage_to_dict(record: StageRecord) -> dict[str, Any]:
    """Turn a record into plain JSON values; NaN becomes null."""
    return _clean(dataclasses.asdict(record))  # type: ignore[no-any-return]


def stage_from_dict(raw: dict[str, Any]) -> StageRecord:
    """Read what ``stage_to_dict`` wrote."""
    return _stage(raw)


def _clean(value: Any) -> Any:
    """Replace what JSON has no word for (NaN, infinities, tuples, paths)."""
    if isinstance(value, float):
        return value if value == value and abs(value) != float("inf") else None
    if isinstance(value, dict):
        return {str(k): _clean(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_clean(v) for v in value]
    return str(value) if isinstance(value, Path) else value


def _estimate(raw: dict[str, float] | None) -> Estimate | None:
    return None if raw is None else Estimate(**raw)


def _quality(raw: dict[str, Any] | None) -> Quality | None:
    if raw is None:
        return None
    fields = dict(raw)
    fields["metrics"] = {name: Estimate(**one) for name, one in raw["metrics"].items()}
    fields["agreement"] = _estimate(raw["agreement"])
    fields["drop"] = None if raw["drop"] is None else Drop(**raw["drop"])
    return Quality(**fields)


def _stage(raw: dict[str, Any]) -> StageRecord:
    fields = dict(raw)
    fields["validation"], fields["test"] = _quality(raw["validation"]), _quality(raw["test"])
    fields["latency"] = tuple(StageLatency(**{**one, "speedup": _estimate(one["speedup"])}) for one in raw["latency"])
    fields["warnings"] = tuple(raw["warnings"])
    return StageRecord(**fields)
