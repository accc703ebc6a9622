"""Static int8 that keeps a budget: repairs in order of their cost, and float layers where nothing else helps.

First as it is; then other calibrations, bias correction, smoothing and equalisation, each on top of the best so far and
kept only where it brings the answers closer; then training, where it is asked for; at last the fewest layers that have
to stay float.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import TYPE_CHECKING

from onnx import ModelProto

from distill.benchmarks.target import Target
from distill.export.graph import operator
from distill.intervals import Estimate
from distill.outputs import Output
from distill.quantize.calibrate import open_batch
from distill.quantize.record import QuantizeRecord
from distill.quantize.repairs import REPAIRS, name_of
from distill.quantize.sensitivity import Sensitivity, at_batch, fewest_float, layers_of, saved_seconds, sensitivities
from distill.quantize.settings import QuantizeSettings
from distill.quantize.static import CalibratedGraph, calibrate_graph, write
from distill.types import Feed, Progress

if TYPE_CHECKING:
    from distill.quantize.quantization_aware import Train

Judge = Callable[[ModelProto], "Loss"]


@dataclass(frozen=True, order=True)
class Loss:
    """What a graph loses against the float one: `drop` in the metric that the budget is in, then the divergence.

    `interval` is that of the drop, where the judge gives one. `fault` says why the answers are no answers; both numbers
    are then infinite, so that no budget holds them.
    """

    drop: float
    divergence: float
    interval: Estimate | None = field(default=None, compare=False)
    fault: str | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Attempt:
    """One way to quantise, and what it lost; `floats` are the outputs of layers that stayed float."""

    name: str
    settings: QuantizeSettings
    model: ModelProto
    record: QuantizeRecord
    loss: Loss
    floats: tuple[str, ...] = ()


@dataclass
class Repairs:
    """What was tried, in order, and the sensitivity of each layer where it came to that.

    `faster` are variants of the last attempt that may be faster; they may miss the budget.
    """

    attempts: list[Attempt] = field(default_factory=list)
    sensitivity: list[Sensitivity] = field(default_factory=list)
    faster: list[Attempt] = field(default_factory=list)

    @property
    def best(self) -> Attempt:
        """The attempt that lost least."""
        return min(self.attempts, key=lambda attempt: attempt.loss)

    def offered(self, max_drop: float) -> list[Attempt]:
        """Return what may ship: the last attempt where it keeps the budget, else the best, and faster variants."""
        last = self.attempts[-1]
        return [last if last.loss.drop <= max_drop else self.best, *self.faster]


def repair(
    core: ModelProto,
    settings: QuantizeSettings,
    *,
    target: Target,
    calibration: Iterable[Feed],
    rows: Sequence[Feed],
    judge: Judge,
    max_drop: float,
    train: Train | None = None,
    timed: bool = True,
    output: Output | None = None,
    progress: Progress | None = None,
) -> Repairs:
    """Quantise until the budget holds; the last attempt is the one that holds it, if any does.

    Args:
        core: an exported float32 graph.
        settings: where to begin; what it asks for already is not tried again.
        target: what the file ships to.
        calibration: samples that can be read several times.
        rows: batches on which layers are compared one by one; 128 to 512 samples.
        judge: compares a graph with the float one.
        max_drop: the budget.
        train: trains on the samples while rounding, which needs torch, where no rung keeps the budget; None for not.
        timed: whether what layers cost on this machine takes part in what stays float; without, equal input gives
            equal graphs.
        output: what the answers are, for comparing layers and for training.
        progress: as in `quantize_onnx`, and ("sensitivity", layers done, layers).

    Raises:
        UserError: as `quantize_onnx`.
    """
    climb = _Climb(core, target, calibration, judge, max_drop, output, progress)
    repairs = climb.repairs
    repairs.attempts.append(climb.attempt(settings))
    climb.ladder()
    best = repairs.best
    if climb.holds(best):
        repairs.attempts.sort(key=lambda attempt: attempt is best)
        if timed:
            repairs.faster = [*climb.per_layer(), *climb.late(rows[0])]
        return repairs
    if train is not None:
        repairs.attempts.append(climb.trained(best.settings, train))
        if climb.holds(repairs.attempts[-1]):
            return repairs
    climb.leave_float(best.settings, rows, timed=timed)
    return repairs


@dataclass
class _Climb:
    """The way up the ladder; ranges are found once for all attempts that can share them."""

    core: ModelProto
    target: Target
    calibration: Iterable[Feed]
    judge: Judge
    max_drop: float
    output: Output | None
    progress: Progress | None
    repairs: Repairs = field(default_factory=Repairs)
    graphs: dict[QuantizeSettings, CalibratedGraph] = field(default_factory=dict)

    def holds(self, attempt: Attempt) -> bool:
        """Whether an attempt keeps the budget."""
        return attempt.loss.drop <= self.max_drop

    def graph(self, settings: QuantizeSettings) -> CalibratedGraph:
        """Return the graph with its ranges; other scales of weights or tables and corrected biases need no others."""
        base = replace(settings, bias_correction=False, per_channel=True, tables=True)
        if base not in self.graphs:
            self.graphs[base] = calibrate_graph(
                self.core, base, target=self.target, calibration=self.calibration, progress=self.progress
            )
        return self.graphs[base]

    def attempt(self, settings: QuantizeSettings, floats: Sequence[str] = (), suffix: str = "") -> Attempt:
        """Quantise with these settings, all but the layers of these outputs."""
        model, record = write(self.graph(settings), settings, keep_float=floats, progress=self.progress)
        return Attempt(name_of(settings) + suffix, settings, model, record, self.judge(model), tuple(floats))

    def trained(self, settings: QuantizeSettings, train: Train) -> Attempt:
        """Let the graph learn to keep its answers; corrected biases are part of what it learns."""
        from distill.quantize.quantization_aware import train_aware

        plain = replace(settings, bias_correction=False)
        batches = list(self.calibration)
        learned = train_aware(
            self.graph(plain), plain, target=self.target, batches=batches, train=train, output=self.output
        )
        model, record = write(learned, plain)
        return Attempt(f"{name_of(plain)}, trained for {train.epochs} epochs", plain, model, record, self.judge(model))

    def ladder(self) -> None:
        """Try one repair after the other, each on the best attempt before it, until the budget holds."""
        attempts = self.repairs.attempts
        first = attempts[0].settings
        for repair in sorted(REPAIRS.values(), key=lambda repair: repair.rung):
            start = self.repairs.best.settings
            for changes in repair.variants(first, self.core.graph):
                if self.holds(self.repairs.best):
                    return
                settings = replace(start, **changes)  # type: ignore[arg-type]
                if settings not in [attempt.settings for attempt in attempts]:
                    attempts.append(self.attempt(settings))

    def per_layer(self) -> Iterator[Attempt]:
        """Yield the last attempt with one weight scale a layer, where nothing but products computes.

        A product's kernel applies a scale for each column one by one, which small networks feel; a convolution's does
        not.
        """
        last = self.repairs.attempts[-1]
        operators = {operator(node) for node in self.core.graph.node}
        if last.settings.per_channel and "Conv" not in operators and operators & {"Gemm", "MatMul"}:
            settings = replace(last.settings, per_channel=False)
            same = (attempt for attempt in self.repairs.attempts if attempt.settings == settings)
            yield next(same, None) or self.attempt(settings)

    def late(self, feed: Feed) -> Iterator[Attempt]:
        """Yield the last attempt with its first layers in float, if their integer kernels are slower together.

        A convolution of one or three channels has nothing for integer kernels to gain on, and often large maps to lose
        on. How many layers those are depends on the batch size, so each that the target is asked for has its own
        answer. Only layers from the input on are asked about: anywhere else, what they save goes into rounding to and
        fro.
        """
        last = self.repairs.attempts[-1]
        if last.floats:
            return
        graph = self.graph(last.settings)
        outputs = [output for output, _ in layers_of(graph)]
        feeds = [at_batch(feed, size) for size in self.target.batch_sizes] if open_batch(self.core.graph) else [feed]
        counts = set[int]()
        for rows in feeds:
            saved = saved_seconds(graph, last.settings, feed=rows)
            sums = list(accumulate((saved or {}).get(output, 0.0) for output in outputs[:-1]))
            count = sums.index(min(sums)) + 1 if sums and min(sums) < 0 else 0
            # More than half is a network that is better off in float as a whole.
            if 0 < count <= len(outputs) // 2 and count not in counts:
                counts.add(count)
                suffix = f", the first {count} of {len(outputs)} layers float"
                yield self.attempt(last.settings, outputs[:count], suffix)

    def leave_float(self, settings: QuantizeSettings, rows: Sequence[Feed], *, timed: bool) -> None:
        """Measure every layer, and leave the fewest in float that make the budget hold; the last attempt is that."""
        graph = self.graph(settings)
        layers = self.repairs.sensitivity = sensitivities(
            graph,
            settings,
            rows=rows,
            saved_s=saved_seconds(graph, settings, feed=rows[0]) if timed else None,
            output=self.output,
            progress=self.progress,
        )
        mixed: list[Attempt] = []

        def make(floats: list[str]) -> Attempt:
            mixed.append(self.attempt(settings, floats, f", {len(floats)} of {len(layers)} layers float"))
            return mixed[-1]

        enough = fewest_float(layers, make, self.holds)
        self.repairs.attempts += sorted(mixed, key=lambda attempt: enough is not None and attempt is enough[1])
