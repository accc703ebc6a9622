"""What came of the verb `prune`, as plain data: the only source of its table, its reports and its JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from distill.benchmarks import Comparison
from distill.errors import Exit
from distill.intervals import Estimate
from distill.prune.record import PruneRecord
from distill.prune.sparse.sparsify import SparseRecord
from distill.single_stage.pruning.folder import FORMAT
from distill.single_stage.pruning.rows import Quality

Status = Literal["done", "missed", "slower"]


@dataclass(frozen=True)
class Latency:
    """Both files, which took turns, in the number format that was timed: medians in seconds, and before over after."""

    target: str
    provider: str
    format: str
    batch: int
    threads: int
    before_s: float
    after_s: float
    speedup: Estimate
    session_pairs: int
    contended_share: float

    @classmethod
    def of(cls, found: Comparison, form: str) -> Latency:
        """Take over what a comparison found."""
        one = found.baseline
        return cls(
            target=one.target,
            provider=one.provider,
            format=form,
            batch=one.batch,
            threads=one.threads,
            before_s=one.p50_s,
            after_s=found.candidate.p50_s,
            speedup=found.speedup,
            session_pairs=found.session_pairs,
            contended_share=found.contended_share,
        )


@dataclass(frozen=True)
class Outcome:
    """What was done and found. `why` is a sentence on `status`; only what is done is written.

    `unmeasured` says why nothing was timed; `file_bytes` are those of the float32 ONNX files before and after.
    """

    model: str
    command: str
    status: Status
    why: str
    target: str
    record: PruneRecord
    machine: Mapping[str, Any]
    file_bytes: tuple[int, int] | None = None
    latency: Latency | None = None
    unmeasured: str | None = None
    quality: Quality | None = None
    sparse: SparseRecord | None = None
    epochs: int = 0
    warnings: tuple[str, ...] = field(default=())

    @property
    def exit_code(self) -> Exit:
        """What the process ends with."""
        return Exit.OK if self.status == "done" else Exit.VERDICT_NO

    def to_json(self) -> str:
        """Write it down; what is not finite is null."""
        written = {"format": FORMAT, **_finite(asdict(self))}
        written["record"]["achieved"] = self.record.achieved
        return json.dumps(written, indent=1, allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
