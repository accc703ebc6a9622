"""What every stage of one run shares, and how a stage's product is judged and timed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from distill.benchmarks import (
    BenchmarkSettings,
    Comparison,
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
from distill.runtime.artifacts import feeds, graph_hash, graph_inputs, shipped_feed
from distill.runtime.budget import Constraint, Figures, Timed, budget_of
from distill.runtime.facts import Quality, StageLatency
from distill.runtime.folder import RunFolder, digest, sources, versions
from distill.runtime.quality import quality, weak_evidence, weak_splits
from distill.sealed_files import sealed_array
from distill.tasks.base import Task
from distill.training.batches import batches
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

        def compared(batch: int) -> _Timing:
            comparison = self.compare(before, after, batch)
            return _Timing(comparison.speedup, tuple(comparison.warnings))

        timings = self._timings("speedup", after, before, compared)
        speedups = {batch: timing.figure for batch, timing in timings.items() if isinstance(timing.figure, Estimate)}
        return Timed(speedups, _remarks(timings)) if speedups else None

    def latency(self, path: Path, teacher: Path) -> tuple[tuple[StageLatency, ...], tuple[str, ...]]:
        """Return a file's latency at each batch size, over the teacher's file, and the remarks of the timing."""
        timings = self._timings("latency", path, teacher, partial(self._time, path, teacher))
        rows = (timing.figure for timing in timings.values())
        return tuple(row for row in rows if isinstance(row, StageLatency)), _remarks(timings)

    def _timings(self, name: str, path: Path, other: Path, measured: Callable[[int], _Timing]) -> Mapping[int, _Timing]:
        """Return what was measured once of two files, by batch size; empty where nothing can be timed."""
        if self.unmeasured is not None:
            return {}
        settings = dataclasses.asdict(self.benchmark) | {"max_latency_s": None}
        timings = {}
        for batch in self.target.batch_sizes:
            parts = (graph_hash(path), graph_hash(other), self.target.facts(), batch, settings)
            memo = self.folder.memo(name, digest(parts, self.measured_with), lambda: plain(measured(batch)))  # noqa: B023
            timings[batch] = read_as(_Timing, memo)
        return timings

    def profile(self, path: Path) -> Profile | None:
        """Return which operators ran where, and the share of integer kernels; None where the target is not at hand."""
        if self.unmeasured is not None:
            return None
        key = digest(graph_hash(path), self.target.facts(), self.measured_with)
        rows = self._rows(path, 1)
        raw = self.folder.memo("profile", key, lambda: dataclasses.asdict(profile(path, self.target, rows)))
        return read_as(Profile, raw)

    def _time(self, path: Path, teacher: Path, batch: int) -> _Timing:
        """Time a file against the teacher's, or alone where it is the teacher's."""
        speedups: dict[str, Any] = {}
        if graph_hash(path) == graph_hash(teacher):
            latency = measure(path, self.target, batch, settings=self.benchmark, rows=self._rows(path, batch))
            warnings = latency.warnings
        else:
            comparison = self.compare(teacher, path, batch)
            latency, warnings = comparison.candidate, (*comparison.warnings, *comparison.candidate.warnings)
            speedups = {"speedup": comparison.speedup, "quiet_speedup": comparison.quiet_speedup}
        timed = ("p50_s", "quiet_s", "samples", "contended_share")
        names = ("target", "provider", "inputs", "batch", "threads", *timed, "board")
        row = StageLatency(**{name: getattr(latency, name) for name in names}, **speedups)
        # The stage is named by its record; the path of its file would only be long.
        remarks = (f"batch {latency.batch}: {text.split('model.onnx: ')[-1]}" for text in warnings)
        return _Timing(row, tuple(dict.fromkeys(remarks)))

    def _rows(self, path: Path, batch: int) -> dict[str, Array]:
        """Return real samples as one batch, repeated where validation holds fewer."""
        data = self.task.data["validation"]
        index = torch.arange(batch) % len(data)
        return shipped_feed(self.task, data.fetch(index, None), graph_inputs(path))


@dataclass(frozen=True)
class _Timing:
    """What was measured of a file, alone or against another, and what was remarked, as a memo keeps it."""

    figure: StageLatency | Estimate
    warnings: tuple[str, ...]


def _remarks(timings: Mapping[int, _Timing]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(text for timing in timings.values() for text in timing.warnings))
