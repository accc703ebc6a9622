"""Static int8 that keeps a budget: repairs in order of their cost, and float layers where nothing else helps.

First as it is; then other calibrations, bias correction, smoothing and equalisation, each on top of the best so far and
kept only where it brings the answers closer; then training, where it is asked for; at last the fewest layers that have
to stay float.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate

from onnx import ModelProto

from distill.benchmarks.target import Target
from distill.export.graph import operator
from distill.intervals import Estimate
from distill.outputs import Output
from distill.types import Feed, Progress

from .record import QuantizeRecord
from .sensitivity import Sensitivity, fewest_float, layers_of, sensitivities
from .settings import QuantizeSettings
from .static import Calibrated, calibrated, write
from .tables import tables_of
from .timing import at_batch, open_batch, saved_seconds

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
        return min(self.attempts, key=lambda one: one.loss)


def repair(
    core: ModelProto,
    settings: QuantizeSettings,
    *,
    target: Target,
    calibration: Iterable[Feed],
    rows: Sequence[Feed],
    judge: Judge,
    max_drop: float,
    epochs: int = 0,
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
        epochs: of training on the samples while rounding, which needs torch; 0 for none.
        timed: whether what layers cost on this machine takes part in what stays float; without, equal input gives
            equal graphs.
        output: what the answers are, for comparing layers and for training.
        progress: as in `quantize_onnx` and `train_aware`, and ("sensitivity", layers done, layers).

    Raises:
        UserError: as `quantize_onnx`.
    """
    bench = _Workbench(core, target, calibration, judge, progress, output)
    done = Repairs([bench.attempt(settings)])
    _climb(bench, done, max_drop)
    if done.best.loss.drop <= max_drop:
        done.attempts.append(done.attempts.pop(done.attempts.index(done.best)))
        if timed:
            done.faster = [*_per_layer(bench, done), *_late(bench, done, rows[0])]
        return done
    chosen = done.best.settings
    if epochs:
        done.attempts.append(bench.trained(chosen, epochs))
        if done.attempts[-1].loss.drop <= max_drop:
            return done
    _leave_float(bench, done, chosen, rows, max_drop, timed=timed)
    return done


def _late(bench: _Workbench, done: Repairs, feed: Feed) -> Iterator[Attempt]:
    """Yield the last attempt with its first layers in float, if their integer kernels are slower together.

    A convolution of one or three channels has nothing for integer kernels to gain on, and often large maps to lose on.
    How many layers those are depends on the batch size, so each that the target is asked for has its own answer. Only
    layers from the input on are asked about: anywhere else, what they save goes into rounding to and fro.
    """
    last = done.attempts[-1]
    if last.floats:
        return
    base = bench.calibrated(last.settings)
    outputs = [output for output, _ in layers_of(base)]
    feeds = [at_batch(feed, size) for size in bench.target.batch_sizes] if open_batch(bench.core) else [feed]
    tried = set()
    for rows in feeds:
        saved = saved_seconds(base, last.settings, target=bench.target, feed=rows)
        sums = list(accumulate((saved or {}).get(output, 0.0) for output in outputs[:-1]))
        count = sums.index(min(sums)) + 1 if sums and min(sums) < 0 else 0
        # More than half is a network that is better off in float as a whole.
        if 0 < count <= len(outputs) // 2 and count not in tried:
            tried.add(count)
            yield bench.attempt(last.settings, outputs[:count], f", the first {count} of {len(outputs)} layers float")


def _per_layer(bench: _Workbench, done: Repairs) -> Iterator[Attempt]:
    """Yield the last attempt with one weight scale a layer, where nothing but products computes.

    A product's kernel applies a scale for each column one by one, which small networks feel; a convolution's does not.
    """
    last = done.attempts[-1]
    operators = {operator(node) for node in bench.core.graph.node}
    if last.settings.per_channel and "Conv" not in operators and operators & {"Gemm", "MatMul"}:
        settings = replace(last.settings, per_channel=False)
        known = next((one for one in done.attempts if one.settings == settings), None)
        yield known or bench.attempt(settings)


@dataclass
class _Workbench:
    """What every attempt needs; ranges are found once for all attempts that can share them."""

    core: ModelProto
    target: Target
    calibration: Iterable[Feed]
    judge: Judge
    progress: Progress | None
    output: Output | None
    found: dict[QuantizeSettings, Calibrated] = field(default_factory=dict)

    def calibrated(self, settings: QuantizeSettings) -> Calibrated:
        """Return the graph with its ranges; other scales of weights or tables and corrected biases need no others."""
        base = replace(settings, bias_correction=False, per_channel=True, tables=True)
        if base not in self.found:
            self.found[base] = calibrated(
                self.core, base, target=self.target, calibration=self.calibration, progress=self.progress
            )
        return self.found[base]

    def attempt(self, settings: QuantizeSettings, floats: Sequence[str] = (), suffix: str = "") -> Attempt:
        """Quantise with these settings, all but the layers of these outputs."""
        model, record = write(
            self.calibrated(settings),
            settings,
            target=self.target,
            calibration=self.calibration,
            keep_float=floats,
            progress=self.progress,
        )
        return Attempt(_named(settings) + suffix, settings, model, record, self.judge(model), tuple(floats))

    def trained(self, settings: QuantizeSettings, epochs: int) -> Attempt:
        """Let the graph learn to keep its answers; corrected biases are part of what it learns."""
        from .aware import train_aware

        plain = replace(settings, bias_correction=False)
        batches = list(self.calibration)
        learned = train_aware(
            self.calibrated(plain),
            plain,
            target=self.target,
            batches=batches,
            epochs=epochs,
            output=self.output,
            progress=self.progress,
        )
        model, record = write(learned, plain, target=self.target)
        return Attempt(f"{_named(plain)}, trained for {epochs} epochs", plain, model, record, self.judge(model))


def _climb(bench: _Workbench, done: Repairs, max_drop: float) -> None:
    """Try the ladder's changes, each group on the best before it, until the budget holds."""
    for group in _ladder(bench.core, done.attempts[0].settings):
        start = done.best.settings
        for change in group:
            if done.best.loss.drop <= max_drop:
                return
            tried = replace(start, **change)  # type: ignore[arg-type]
            if tried not in [one.settings for one in done.attempts]:
                done.attempts.append(bench.attempt(tried))


def _leave_float(
    bench: _Workbench,
    done: Repairs,
    settings: QuantizeSettings,
    rows: Sequence[Feed],
    max_drop: float,
    *,
    timed: bool,
) -> None:
    """Measure every layer, and leave the fewest in float that make the budget hold; the last attempt is that one."""
    base = bench.calibrated(settings)
    done.sensitivity = sensitivities(
        base,
        settings,
        target=bench.target,
        rows=rows,
        saved_s=saved_seconds(base, settings, target=bench.target, feed=rows[0]) if timed else None,
        calibration=bench.calibration,
        output=bench.output,
        progress=bench.progress,
    )
    mixed: dict[int, Attempt] = {}

    def make(floats: list[str]) -> ModelProto:
        tried = bench.attempt(settings, floats, f", {len(floats)} of {len(done.sensitivity)} layers float")
        mixed[id(tried.model)] = tried
        return tried.model

    enough = fewest_float(done.sensitivity, make, lambda model: mixed[id(model)].loss.drop <= max_drop)
    done.attempts += [one for one in mixed.values() if enough is None or one.model is not enough[1]]
    if enough is not None:
        done.attempts.append(mixed[id(enough[1])])


def _ladder(core: ModelProto, settings: QuantizeSettings) -> Iterator[list[dict[str, object]]]:
    """List groups of changes, cheapest first; of a group each is tried on the best before it."""
    operators = {operator(node) for node in core.graph.node}
    yield [{"calibration": name} for name in ("percentile", "mse", "entropy", "average")]
    yield [{"bias_correction": True}]
    # A graph that was changed may be better off with the plain ranges again.
    plain: dict[str, object] = {"calibration": settings.calibration}
    if "LayerNormalization" in operators:
        yield [{"smooth": strength} | rest for strength in (0.5, 0.7, 0.85) for rest in ({}, plain)]
    if operators & {"Conv", "Gemm"}:
        yield [{"equalize": True}, {"equalize": True} | plain]
    yield [{"per_channel": not settings.per_channel}]
    if settings.tables and tables_of(core.graph):
        yield [{"tables": False}]


def _named(settings: QuantizeSettings) -> str:
    """Say in a few words how a graph was quantised."""
    parts = [f"int8 {settings.calibration}" if settings.calibration != "minmax" else "int8"]
    parts += ["per layer"] if not settings.per_channel else []
    parts += [f"smoothed {settings.smooth:g}"] if settings.smooth is not None else []
    parts += ["equalised"] if settings.equalize else []
    parts += ["biases corrected"] if settings.bias_correction else []
    parts += ["tables in float"] if not settings.tables else []
    return ", ".join(parts)
