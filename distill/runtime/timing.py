"""How fast a module is as it ships: exported, in the number format of the release, on the target."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from torch import nn

from distill import scratch
from distill.benchmarks import BenchmarkSettings, Target, compare, measure
from distill.prune.widths.latency import Device
from distill.prune.widths.layer_costs import Precision, Staircase


@dataclass
class Shipped:
    """Seconds of one call of a module, written as it ships and timed beside the first that it was asked about.

    Two files that take turns are compared better than two that are timed one after the other on a machine that also
    does other things: what comes back is the first one's time over the speed-up that was measured.

    Attributes:
        write: writes a module as the file that ships, in its number format.
        target: what it ships to.
        batch: rows in a call.
        rows: real inputs, ``batch`` rows each, by the name of the file's input; made up where there are none.
        kernels: what the layers of that file compute in.
        settings: how files are timed.
    """

    write: Callable[[nn.Module, Path], None]
    target: Target
    batch: int = 1
    rows: Mapping[str, NDArray[Any]] | None = None
    kernels: Precision = "float32"
    settings: BenchmarkSettings = field(default_factory=BenchmarkSettings)
    _folder: Path | None = field(default=None, repr=False)
    _stack: ExitStack = field(default_factory=ExitStack, repr=False)
    _first_s: float = 0.0

    def __call__(self, model: nn.Module) -> float:
        """Return a module's seconds.

        Raises:
            UserError: it cannot be exported.
            NotMeasuredError: the target is not at hand, or the timing failed.
        """
        if self._folder is None:
            self._folder = self._stack.enter_context(scratch.folder("shipped"))
            first = self._folder / "first.onnx"
            self.write(model, first)
            self._first_s = measure(first, self.target, self.batch, settings=self.settings, rows=self.rows).quiet_s
            return self._first_s
        first, path = (self._folder / f"{name}.onnx" for name in ("first", "next"))
        self.write(model, path)
        comparison = compare(
            first,
            path,
            self.target,
            self.batch,
            settings=self.settings,
            baseline_rows=self.rows,
            candidate_rows=self.rows,
        )
        return self._first_s / comparison.speedup.value

    def close(self) -> None:
        """Remove the files that were timed; the next module counts as the first again."""
        self._stack.close()
        self._folder = None

    def device(self, cache: Path | None = None) -> Device:
        """Return what pruning asks of the target; layers are timed alone where that can be done here."""
        layers = None if Staircase.why_not(self.target) else Staircase(self.target, self.kernels, cache)
        return Device(self, layers, self.batch)
