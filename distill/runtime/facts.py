"""What the stages of a run find out, as frozen records in base units: the parts of `run.json` and of every report.

Latencies are seconds, sizes bytes, drops fractions (0.01 is one point of accuracy). What a field of `Detail` or of a
record that is `Sparse` does not know is None, and is not written.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal

from distill.benchmarks import Profile
from distill.documents import Sparse
from distill.export import Parity
from distill.intervals import Estimate, Real
from distill.prune.record import PruneRecord
from distill.quantize import QuantizeRecord
from distill.quantize.half.float32_nodes import Island
from distill.training.loop import TrainRecord

Verdict = Literal["met", "missed", "unresolved"]


@dataclass(frozen=True)
class Drop:
    """How much worse than the teacher, in the metric that decides, as a fraction, judged against ``limit``."""

    value: Real
    low: Real
    high: Real
    limit: Real
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
    kl: Real | None = None


@dataclass(frozen=True)
class StageLatency:
    """A stage's shipped form, timed at one batch size; ``speedup`` is over the teacher's fp32 ONNX file.

    ``board`` describes the machine that it was timed on, where it was not the one of the run; ``contended_share`` is
    the share of turns, 0 to 1, in which something else slowed the core.
    """

    target: str
    provider: str
    inputs: dict[str, list[Any]]
    batch: int
    threads: int
    p50_s: Real
    quiet_s: Real
    samples: int
    speedup: Estimate | None = None
    quiet_speedup: Real | None = None
    board: dict[str, Any] | None = None
    contended_share: Real = 0.0


@dataclass(frozen=True)
class Decision:
    """Why a stage was kept or reverted. What decided is written here before it acts, and can be replayed."""

    kept: bool
    reason: str
    drop: Drop | None = None
    speedup: Estimate | None = None
    bytes_before: int = 0
    bytes_after: int = 0
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Quantization(QuantizeRecord, Sparse):
    """What quantisation did, and by which of the ways that were tried; ``islands`` are those of 16-bit floats."""

    how: str
    islands: tuple[Island, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class FileParity(Parity, Sparse):
    """How far a file's logits are from those of ``reference``, and the metric of both; ``why`` they count as apart."""

    reference: str
    metric_reference: Real | None = None
    metric_file: Real | None = None
    why: str | None = None


@dataclass(frozen=True, kw_only=True)
class Detail(Sparse):
    """What is particular to a stage; `None` where a stage has nothing of the sort.

    ``curves`` are the loss and the validation metric by epoch, ``widths`` a layer's channels before and after,
    ``gain`` is what distillation bought: the student's test metric minus the control's. ``timing`` are remarks on the
    measurement, ``splits`` the samples of each split, ``hashes`` the sha256 of each file, ``reason`` says why a stage
    is off.
    """

    loaded: bool | None = None
    training: TrainRecord | None = None
    curves: dict[str, list[Real]] | None = None
    cached_views: int | None = None
    widths: dict[str, tuple[int, int]] | None = None
    pruning: PruneRecord | None = None
    quantization: Quantization | None = None
    hashes: dict[str, str] | None = None
    profile: Profile | None = None
    decision: Decision | None = None
    parity: FileParity | None = None
    timing: tuple[str, ...] | None = None
    gain: Estimate | None = None
    splits: dict[str, int] | None = None
    reason: str | None = None
    files: tuple[str, ...] | None = None
    sha256: str | None = None

    def trained(self, record: TrainRecord) -> Detail:
        """Return these facts with those of a training."""
        return dataclasses.replace(self, training=dataclasses.replace(record, curves=None), curves=record.curves)


@dataclass(frozen=True)
class StageFacts:
    """What building a stage found out; it lies beside the stage's files, as `stage.json`."""

    parameters: int
    macs: int
    seconds: float = 0.0
    warnings: tuple[str, ...] = ()
    detail: Detail = field(default_factory=Detail)
