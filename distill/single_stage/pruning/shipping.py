"""The files of the verb `prune`: a model exported in the number format that is timed, before beside after."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from onnx import ModelProto
from torch import nn

from distill.benchmarks import BenchmarkSettings, Comparison, Target, compare
from distill.export import export_onnx, to_bytes
from distill.prune.modules import Example, at_batch
from distill.quantize import QuantizeSettings, quantize
from distill.runtime.timing import Shipped
from distill.single_stage.inputs import Inputs

_SAMPLES = 64


@dataclass(frozen=True)
class Shipping:
    """How a module becomes a file: its inputs, an example of them, and what is timed.

    `samples` are rows to find ranges of integers on, by input name; made-up ones cost the same time.
    """

    inputs: Inputs
    example: Example
    target: Target
    batch: int
    format: str
    benchmark: BenchmarkSettings
    samples: Mapping[str, np.ndarray]
    rows: Mapping[str, np.ndarray] | None

    def exported(self, model: nn.Module) -> ModelProto:
        """Return a module's float32 graph, verified.

        Raises:
            UserError: it cannot be exported.
        """
        args, kwargs = at_batch(self.example, 2)
        return export_onnx(model, args=args, kwargs=kwargs, logits=self.inputs.take, input_names=self.inputs.names)

    def formatted(self, core: ModelProto) -> ModelProto:
        """Return a graph in the number format that is timed."""
        if self.format == "float32":
            return core
        count = len(next(iter(self.samples.values())))
        step = min(16, count)
        starts = range(0, count, step)
        feeds = [{name: value[at : at + step] for name, value in self.samples.items()} for at in starts]
        return quantize(core, QuantizeSettings(samples=_SAMPLES), target=self.target, calibration=feeds)[0]

    def write(self, model: nn.Module, path: Path) -> None:
        """Write a module as the file that is timed."""
        path.write_bytes(to_bytes(self.formatted(self.exported(model))))

    def timer(self) -> Shipped:
        """Return what times modules while widths are chosen, in fewer turns than the last comparison."""
        quick = BenchmarkSettings(
            batch_sizes=(self.batch,),
            threads=self.target.threads,
            session_pairs=min(3, self.benchmark.session_pairs),
            seconds_per_pair=self.benchmark.seconds_per_pair,
        )
        kernels: Any = "int8" if self.format == "int8" else "float32"
        return Shipped(self.write, self.target, self.batch, rows=self.rows, kernels=kernels, settings=quick)

    def compared(self, before: ModelProto, after: ModelProto, folder: Path) -> Comparison:
        """Time two graphs in turns, in the number format that is timed.

        Raises:
            NotMeasuredError: the provider does not load, or the timing failed.
        """
        paths = {name: folder / f"{name}.onnx" for name in ("before", "after")}
        for name, core in (("before", before), ("after", after)):
            paths[name].write_bytes(to_bytes(self.formatted(core)))
        return compare(
            paths["before"],
            paths["after"],
            self.target,
            self.batch,
            settings=self.benchmark,
            baseline_rows=self.rows,
            candidate_rows=self.rows,
        )
