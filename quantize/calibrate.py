"""Ranges of activations from calibration samples, read one batch at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, helper

from distill.benchmarks.onnx_file.axes import batch_axes, take
from distill.benchmarks.onnx_file.signature import signature
from distill.errors import NotMeasuredError, UserError
from distill.export.graph import (
    add_constant,
    copy_of,
    free_prefix,
    initializers,
    input_shape,
    only_outputs,
    opset_of,
)
from distill.export.parity_check import first_line, run_session, session_of
from distill.types import Array, Feed, Progress

from .histogram import Histogram
from .settings import QuantizeSettings

_REDUCE_AXES_ARE_AN_INPUT = 18  # from this opset on
_ROWS = 32  # a larger batch is cut: its activations would be held at once
_ROWS_HISTOGRAM = 8  # here they also leave the graph
_ROWS_AVERAGE = 1  # each sample has a smallest and a largest value of its own


def calibrate(
    proto: ModelProto,
    tensors: Sequence[str],
    calibration: Iterable[Feed],
    settings: QuantizeSettings,
    *,
    progress: Progress | None = None,
) -> tuple[dict[str, tuple[float, float]], int]:
    """Run a float graph over the samples and return each tensor's range, with the number of samples read.

    Memory does not grow with the number of samples: min and max are taken inside the graph, histograms have a fixed
    number of bins, and ``calibration`` is read no further than ``settings.samples``.

    Raises:
        UserError: no samples, wrong input names or shapes, or a value that is not finite.
    """
    if settings.calibration in ("minmax", "average"):
        return _min_max(proto, tensors, calibration, settings, progress)
    model = copy_of(proto)
    only_outputs(model, tensors)
    histograms = {name: Histogram() for name in tensors}
    samples = 0
    for batch, rows in observed(model, calibration, settings, _ROWS_HISTOGRAM, "calibrate", progress):
        for name, values in zip(tensors, batch, strict=True):
            if not np.isfinite(values).all():
                raise _not_finite(f"tensor {name!r}", samples)
            histograms[name].add(values)
        samples += rows
    ranges: dict[str, Callable[[Histogram], tuple[float, float]]] = {
        "percentile": lambda histogram: histogram.percentile_range(settings.percentile),
        "mse": Histogram.mse_range,
        "entropy": Histogram.entropy_range,
    }
    return {name: ranges[settings.calibration](histogram) for name, histogram in histograms.items()}, samples


def _min_max(
    proto: ModelProto,
    tensors: Sequence[str],
    calibration: Iterable[Feed],
    settings: QuantizeSettings,
    progress: Progress | None,
) -> tuple[dict[str, tuple[float, float]], int]:
    """Take the smallest and the largest value of all samples, or the mean over samples of each.

    The mean is where a moving average over shuffled samples ends, and does not depend on their order.
    """
    average = settings.calibration == "average"
    model, outputs = copy_of(proto), list[str]()
    prefix = free_prefix(model.graph, "calibrate")
    for op in ("ReduceMin", "ReduceMax"):
        for number, name in enumerate(tensors):
            outputs.append(f"{prefix}/{op}/{number}")
            model.graph.node.append(helper.make_node(op, [name], [outputs[-1]], keepdims=0))
    only_outputs(model, outputs)
    low = np.full(len(tensors), 0.0 if average else np.inf, np.float64)
    high = -low
    samples = seen = 0
    size = _ROWS_AVERAGE if average else _ROWS
    for batch, rows in observed(model, calibration, settings, size, "calibrate", progress):
        values = np.asarray(batch, np.float64).reshape(2, -1)
        if not np.isfinite(values).all():
            worst = tensors[int(np.argmin(np.isfinite(values).all(axis=0)))]
            raise _not_finite(f"tensor {worst!r}", samples)
        if average:
            seen += 1
            low, high = low + (values[0] - low) / seen, high + (values[1] - high) / seen
        else:
            low, high = np.minimum(low, values[0]), np.maximum(high, values[1])
        samples += rows
    return {name: (float(a), float(b)) for name, a, b in zip(tensors, low, high, strict=True)}, samples


def channel_reduction(model: ModelProto, op: str, source: str, axes: Sequence[int], output: str) -> NodeProto:
    """Make a node that reduces a tensor over some axes, which newer opsets take as an input; adds its constant."""
    if opset_of(model) >= _REDUCE_AXES_ARE_AN_INPUT:
        name = add_constant(model.graph, f"{output}/axes", np.array(axes, np.int64))
        return helper.make_node(op, [source, name], [output], keepdims=0)
    return helper.make_node(op, [source], [output], axes=list(axes), keepdims=0)


def twice(calibration: Iterable[Feed]) -> Iterable[Feed]:
    """Return samples that are read for a second time. Raises UserError for those that can be read only once."""
    if iter(calibration) is calibration:
        raise UserError("calibration: is read more than once here; give a list, or what can be iterated again")
    return calibration


def slices(proto: ModelProto, calibration: Iterable[Feed], samples: int, rows: int) -> Iterator[tuple[Feed, int]]:
    """Cut the batches into slices of at most ``rows`` and stop after ``samples``."""
    axes = batch_axes(signature(proto))
    wanted, total = axes.keys(), 0
    for feed in calibration:
        if set(feed) != wanted:
            raise UserError(f"calibration: a sample has the inputs {sorted(feed)}, the model takes {sorted(wanted)}")
        arrays = {name: np.asarray(value) for name, value in feed.items()}
        for name, array in arrays.items():  # minima and maxima in the graph pass NaN over
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                raise _not_finite(f"input {name!r}", total)
        lengths = {name: arrays[name].shape[own[0]] for name, own in axes.items() if own and arrays[name].ndim > own[0]}
        if len(set(lengths.values())) > 1:
            raise UserError(f"calibration: a batch has rows {lengths}; every input needs the same number")
        length = next(iter(lengths.values()), len(np.atleast_1d(next(iter(arrays.values())))))
        step = rows if lengths else length
        for start in range(0, length, max(step, 1)):
            count = min(step, length - start, samples - total if lengths else length)
            if count <= 0:
                return
            index = np.arange(start, start + count)
            yield {name: take(array, index, axes[name]) for name, array in arrays.items()}, count
            total += count
        if total >= samples:
            return
    if total == 0:
        raise UserError("calibration: no samples; static int8 needs some to find ranges, 200 to 500 are usual")


def open_batch(graph: GraphProto) -> bool:
    """Whether the first axis of every input is open, so that a batch of any size can be given."""
    constants = initializers(graph)
    shapes = [input_shape(graph, value.name) for value in graph.input if value.name not in constants]
    return all(shape and isinstance(shape[0], str) for shape in shapes)


def observed(
    model: ModelProto,
    calibration: Iterable[Feed],
    settings: QuantizeSettings,
    rows: int,
    step: str,
    progress: Progress | None,
) -> Iterator[tuple[list[Array], int]]:
    """Run a graph over the samples, a few rows at a time; yields all outputs, and of how many rows they are."""
    session = session_of(model, threads=settings.threads)
    outputs, samples = [value.name for value in model.graph.output], 0
    for feed, count in slices(model, calibration, settings.samples, rows):
        yield run_batch(session, outputs, feed), count
        samples += count
        if progress is not None:
            progress(step, min(samples, settings.samples), settings.samples)


def run_batch(session: Any, outputs: list[str], feed: Feed) -> list[Array]:
    """Run a batch; raises UserError where the graph refuses it."""
    try:
        return run_session(session, outputs, feed)
    except NotMeasuredError:
        raise
    except Exception as error:  # onnxruntime raises its own classes, ValueError and RuntimeError
        shapes = ", ".join(f"{name}: {array.dtype} {list(array.shape)}" for name, array in feed.items())
        raise UserError(f"calibration: the model refuses a batch ({shapes}): {first_line(error)}") from error


def _not_finite(name: str, samples: int) -> UserError:
    return UserError(f"calibration: {name} is NaN or infinite after sample {samples}; check data and weights")
