"""The files of the verb `prune`: a model exported in the number format that is timed, before beside after."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from onnx import ModelProto
from torch import nn

from distill.benchmarks import Comparison, compare
from distill.export import export_onnx, to_bytes
from distill.prune.modules import Example, at_batch
from distill.quantize import QuantizeSettings, quantize
from distill.runtime.timing import Shipped
from distill.single_stage.inputs import Inputs
from distill.single_stage.pruning.request import PruneRequest
from distill.types import Array

SAMPLES = 64
"""Rows at most to find ranges of integers on."""
_CALLED = 16  # of them at once


@dataclass(frozen=True)
class Shipping:
    """How a module becomes a file: what was asked for, its inputs, and an example of them.

    `samples` are rows to find ranges of integers on, by input name; made-up ones cost the same time. `rows` are real
    ones to time on.
    """

    request: PruneRequest
    inputs: Inputs
    example: Example
    samples: Mapping[str, Array]
    rows: Mapping[str, Array] | None

    def exported(self, model: nn.Module) -> ModelProto:
        """Return a module's float32 graph, verified. Raises UserError where it cannot be exported."""
        args, kwargs = at_batch(self.example, 2)
        return export_onnx(model, args=args, kwargs=kwargs, logits=self.inputs.take, input_names=self.inputs.names)

    def write(self, core: ModelProto, path: Path) -> None:
        """Write a graph in the number format that is timed."""
        if self.request.options.format != "float32":
            count = len(next(iter(self.samples.values())))
            starts = range(0, count, _CALLED)
            feeds = [{name: value[at : at + _CALLED] for name, value in self.samples.items()} for at in starts]
            settings = QuantizeSettings(samples=SAMPLES)
            core = quantize(core, settings, target=self.request.target, calibration=feeds)[0]
        path.write_bytes(to_bytes(core))

    def timer(self) -> Shipped:
        """Return what times modules while widths are chosen, in fewer turns than the last comparison."""
        target, benchmark, options = self.request.target, self.request.benchmark, self.request.options
        return Shipped(
            lambda model, path: self.write(self.exported(model), path),
            target,
            options.batch,
            rows=self.rows,
            kernels="int8" if options.format == "int8" else "float32",
            settings=replace(benchmark, session_pairs=min(3, benchmark.session_pairs)),
        )

    def compared(self, before: ModelProto, after: ModelProto, folder: Path) -> Comparison:
        """Time two graphs in turns, in the number format that is timed.

        Raises:
            NotMeasuredError: the provider does not load, or the timing failed.
        """
        paths = folder / "before.onnx", folder / "after.onnx"
        for path, core in zip(paths, (before, after), strict=True):
            self.write(core, path)
        return compare(
            *paths,
            self.request.target,
            self.request.options.batch,
            settings=self.request.benchmark,
            baseline_rows=self.rows,
            candidate_rows=self.rows,
        )
