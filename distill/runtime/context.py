"""What every stage of one run shares, and how a stage's product is judged and timed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from distill.benchmarks import (
    BenchmarkSettings,
    Comparison,
    Latency,
    Profile,
    Target,
    compare,
    fingerprint,
    measure,
    profile,
    why_unmeasurable,
)
from distill.benchmarks.target import CPU
from distill.config.loading import RunConfig
from distill.console import Console
from distill.documents import plain, read_as
from distill.export import run_onnx
from distill.export.settings import ExportSettings
from distill.intervals import Estimate
from distill.runtime.artifacts import Artifact, feeds, graph_hash, graph_inputs, shipped_feed
from distill.runtime.budget import Constraint, Figures, Timed, budget_of
from distill.runtime.facts import Quality, StageLatency
from distill.runtime.folder import RunFolder, digest, sources, versions
from distill.runtime.quality import quality, weak_evidence, weak_splits
from distill.sealed import sealed_array
from distill.tasks.base import Task
from distill.training.batches import batches
from distill.training.forward import predict
from distill.types import Array

Split = Literal["validation", "test"]
_SPLITS: tuple[Split, ...] = ("validation", "test")


@dataclass(frozen=True)
class Context:
    """One run: its configuration, its data, its folder, what trains and what it is shipped to."""

    config: RunConfig
    task: Task
    folder: RunFolder
    device: torch.device
    target: Target
    console: Console
    data_key: str
    replay: Mapping[str, Any] = field(default_factory=dict)
    """Decisions of an earlier run, by stage."""

    @property
    def export(self) -> ExportSettings:
        """Return how intermediate graphs are exported, also when no file is to be packed."""
        return self.config.export or ExportSettings()

    @property
    def benchmark(self) -> BenchmarkSettings:
        """Return how files are timed."""
        return self.config.benchmark or BenchmarkSettings()

    @property
    def budget(self) -> tuple[Constraint, ...]:
        """Return the limits that what ships has to keep."""
        return budget_of(self.config)

    @property
    def unmeasured(self) -> str | None:
        """Return why nothing can be timed for the target here; None where it can."""
        if self.config.benchmark is None:
            return "benchmark is off"
        return why_unmeasurable(self.target)

    @property
    def measured_with(self) -> list[Any]:
        """Return what a measurement depends on besides its files and settings: machine, versions, sources."""
        return [fingerprint(), versions(), sources("distill.benchmarks")]

    def key(self, *parts: Any, modules: tuple[str, ...]) -> str:
        """Return a stage's key: settings, inputs, how graphs are exported, the sources that make it, versions, data."""
        ours = [f"distill.{name}" for name in ("tasks", "models", "export", "runtime.artifacts", "runtime.facts")]
        # What else has to load the packed file does not change a graph.
        export = dataclasses.asdict(self.export) | {"load_with": None}
        return digest(parts, export, sources(*ours, *modules), versions(), self.data_key, self.device.type)

    # Judging -------------------------------------------------------------------------------------------------------

    def class_numbers(self, split: Split) -> Array:
        """Return the class numbers of a split, int64 [N]."""
        return self._cached(f"target-{split}", lambda: self._targets(split))

    def logits(self, path: Path, split: Split) -> Array:
        """Return the logits [N, classes] that an ONNX file gives for a split, computed as it ships.

        For a target that is another machine they are computed on this one's CPU.
        """
        here = self.unmeasured is None and self.target.measure is None
        provider = self.target.provider if here else CPU
        name = f"{split}-{digest(graph_hash(path), provider, versions())}"
        return self._cached(
            name, lambda: run_onnx(path, feeds(self.task, self.task.data[split], path), provider=provider)
        )

    def torch_logits(self, artifact: Artifact, split: Split) -> Array | None:
        """Return the logits of an artifact's module, on the CPU in float32; None when it has none."""
        if artifact.model is None:
            return None
        return predict(artifact.model, self.task, self.task.data[split], torch.device("cpu"))[0]

    def quality(self, path: Path, split: Split, teacher: Path | None) -> Quality:
        """Judge a file on a split, beside the teacher's file."""
        return quality(
            split,
            self.logits(path, split),
            self.class_numbers(split),
            metrics=self.task.metrics,
            metric=self.task.metric,
            teacher=self.logits(teacher, split) if teacher is not None else None,
            limit=self.config.max_drop,
            seed=self.config.seed,
        )

    def figures(self, path: Path, teacher: Path) -> Figures:
        """Return what measures a file that may ship: on validation data, and at the target's first batch size."""
        return {
            "drop": lambda: self.quality(path, "validation", teacher).drop,
            "latency": lambda: next((row.p50_s for row in self.latency(path, teacher)[0]), None),
            "size": lambda: path.stat().st_size,
        }

    def weak_evidence(self, path: Path, teacher: Path | None, name: str) -> tuple[str, ...]:
        """Say why what was found of a file proves little, on validation or test."""
        warnings: list[str] = []
        for split in _SPLITS:
            logits, target = self.logits(path, split), self.class_numbers(split)
            warnings += weak_evidence(
                split,
                logits,
                target,
                metric=self.task.metric,
                metrics=self.task.metrics(logits, target),
                teacher=self.logits(teacher, split) if teacher is not None else None,
                names=("the teacher", name),
            )
        return tuple(warnings)

    @property
    def weak_splits(self) -> tuple[str, ...]:
        """Say which classes validation and test do not show."""
        return tuple(
            text for split in _SPLITS for text in weak_splits(split, self.class_numbers(split), self.task.labels)
        )

    def _targets(self, split: Split) -> Array:
        return np.concatenate([self.task.target(batch).numpy() for _, batch in batches(self.task.data[split], 512)])

    def _cached(self, name: str, compute: Callable[[], Array]) -> Array:
        return sealed_array(self.folder.cache / f"{name}-{self.data_key}.safetensors", compute, self.folder.tell)

    # Timing --------------------------------------------------------------------------------------------------------

    def compare(self, before: Path, after: Path, batch: int) -> Comparison:
        """Time one file against another on the target, which is at hand."""
        self.console.progress(f"timing {after.parent.name}, batch {batch}", 0, 1)
        comparison = compare(
            before,
            after,
            self.target,
            batch,
            settings=self.benchmark,
            baseline_rows=self._rows(before, batch),
            candidate_rows=self._rows(after, batch),
        )
        self.console.progress(f"timing {after.parent.name}, batch {batch}", 1, 1)
        return comparison

    def speedup(self, before: Path, after: Path) -> Timed | None:
        """Return how much faster one file is than another at each batch size; None where nothing can be timed.

        What was measured once holds for every later run of this folder.
        """
        if self.unmeasured is not None:
            return None

        def measured(batch: int) -> Any:
            comparison = self.compare(before, after, batch)
            return plain(_Speedup(comparison.speedup, tuple(comparison.warnings)))

        memos = {
            batch: read_as(
                _Speedup, self.folder.memo("speedup", self._timing_key(after, before, batch), partial(measured, batch))
            )
            for batch in self.target.batch_sizes
        }
        speedups = {batch: memo.speedup for batch, memo in memos.items()}
        return Timed(speedups, tuple(dict.fromkeys(text for memo in memos.values() for text in memo.warnings)))

    def latency(self, path: Path, teacher: Path) -> tuple[tuple[StageLatency, ...], tuple[str, ...]]:
        """Return a file's latency at each batch size, over the teacher's file, and the remarks of the timing."""
        if self.unmeasured is not None:
            return (), ()
        memos = [
            read_as(
                _Latency,
                self.folder.memo(
                    "latency", self._timing_key(path, teacher, batch), partial(self._time, path, teacher, batch)
                ),
            )
            for batch in self.target.batch_sizes
        ]
        return tuple(memo.row for memo in memos), tuple(text for memo in memos for text in memo.warnings)

    def profile(self, path: Path) -> Profile | None:
        """Return which operators ran where, and the share of integer kernels; None where the target is not at hand."""
        if self.unmeasured is not None:
            return None
        key = digest(graph_hash(path), self.target.facts(), self.measured_with)
        rows = self._rows(path, 1)
        raw = self.folder.memo("profile", key, lambda: dataclasses.asdict(profile(path, self.target, rows)))
        return read_as(Profile, raw)

    def _time(self, path: Path, teacher: Path, batch: int) -> Any:
        """Time a file against the teacher's, or alone where it is the teacher's; return a `_Latency` as JSON."""
        if graph_hash(path) == graph_hash(teacher):
            alone = measure(path, self.target, batch, settings=self.benchmark, rows=self._rows(path, batch))
            return plain(_latency(alone, alone.warnings))
        comparison = self.compare(teacher, path, batch)
        latency = _latency(comparison.candidate, (*comparison.warnings, *comparison.candidate.warnings))
        row = dataclasses.replace(latency.row, speedup=comparison.speedup, quiet_speedup=comparison.quiet_speedup)
        return plain(dataclasses.replace(latency, row=row))

    def _timing_key(self, path: Path, teacher: Path, batch: int) -> str:
        settings = dataclasses.asdict(self.benchmark) | {"max_latency_s": None}
        parts = (graph_hash(path), graph_hash(teacher), self.target.facts(), batch, settings)
        return digest(parts, self.measured_with)

    def _rows(self, path: Path, batch: int) -> dict[str, Array]:
        """Return real samples as one batch, repeated where validation holds fewer."""
        data = self.task.data["validation"]
        index = torch.arange(batch) % len(data)
        return shipped_feed(self.task, data.fetch(index, None), graph_inputs(path))


@dataclass(frozen=True)
class _Speedup:
    """A comparison of two files, as a memo keeps it."""

    speedup: Estimate
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class _Latency:
    """A timing of a file and what was remarked, as a memo keeps it."""

    row: StageLatency
    warnings: tuple[str, ...]


def _latency(latency: Latency, warnings: Iterable[str]) -> _Latency:
    names = ("target", "provider", "inputs", "batch", "threads", "p50_s", "quiet_s", "samples", "board")
    # The stage is named by its record; the path of its file would only be long.
    remarks = (f"batch {latency.batch}: {text.split('model.onnx: ')[-1]}" for text in warnings)
    return _Latency(StageLatency(**{name: getattr(latency, name) for name in names}), tuple(dict.fromkeys(remarks)))
