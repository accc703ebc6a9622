"""How closely two artifacts agree on the same inputs."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from threading import Timer

import numpy as np
import onnx
import onnxruntime as ort
from onnx import ModelProto, TensorProto

from distill.benchmarks.onnx_file.external_data import external_files, external_tensors
from distill.benchmarks.target import CPU
from distill.benchmarks.timing.machine import usable_threads
from distill.errors import NotMeasuredError, UserError
from distill.types import Array, Feed

_LIMIT_S = ContextVar("seconds that a batch may take", default=600.0)


@dataclass(frozen=True)
class Parity:
    """The distance between two artifacts' logits.

    ``tolerance`` is ``atol + rtol · max |reference|``, in logits; ``ok`` says that every logit is finite and no farther
    away than that. ``top1_agreement`` is the share of samples with the same strongest class; with one logit a sample,
    the share with the same sign.
    """

    max_abs: float
    mean_abs: float
    top1_agreement: float
    samples: int
    tolerance: float
    ok: bool
    warnings: tuple[str, ...] = ()


def parity(reference_logits: Array, other_logits: Array, *, atol: float, rtol: float) -> Parity:
    """Compare logits [N, …] with a reference of the same shape, in float64.

    Raises:
        UserError: the shapes differ, or there is no sample.
    """
    reference, other = np.asarray(reference_logits, np.float64), np.asarray(other_logits, np.float64)
    if reference.shape != other.shape:
        raise UserError(f"logits of shape {other.shape} cannot be compared with a reference of shape {reference.shape}")
    if reference.size == 0:
        raise UserError(f"logits of shape {reference.shape}: parity needs at least one sample")
    bad = ~(np.isfinite(reference) & np.isfinite(other))
    distance = np.abs(np.where(bad, 0.0, other) - np.where(bad, 0.0, reference))
    largest = float(np.abs(np.where(np.isfinite(reference), reference, 0.0)).max())
    tolerance = atol + rtol * largest
    warnings = []
    if bad.any():
        warnings.append(f"{int(bad.sum())} of {bad.size} logits are NaN or infinite")
    if largest > 0 and not np.any(other):
        warnings.append("every logit is zero")
    return Parity(
        max_abs=float(distance.max()),
        mean_abs=float(distance.mean()),
        top1_agreement=float((_top1(reference) == _top1(other)).mean()),
        samples=len(reference),
        tolerance=tolerance,
        ok=bool(distance.max() <= tolerance and not bad.any()),
        warnings=tuple(warnings),
    )


def _top1(logits: Array) -> Array:
    """Return the strongest class of each row; of one logit, its sign."""
    rows = logits.reshape(len(logits), -1) if logits.ndim < 3 else logits
    if rows.shape[1] == 1:
        return np.asarray(rows > 0)
    return np.asarray(rows.argmax(axis=1))  # [N, classes, …]: dense predictions count each position


def run_onnx(
    model: str | Path | ModelProto,
    feeds: Iterable[dict[str, Array]],
    *,
    provider: str = CPU,
    threads: int | None = None,
    optimized: bool = True,
) -> Array:
    """Run an ONNX model over batches and return its first output, batches joined along the first axis.

    A batch maps the names of inputs to arrays; they are read one at a time. Arguments for the session are those of
    `session_of`.

    Raises:
        NotMeasuredError: the provider did not load, or a batch did not end in time.
        UserError: the model or a batch is not accepted by onnxruntime, or there is no batch.
    """
    session = session_of(model, provider=provider, threads=threads, optimized=optimized)
    name = session.get_outputs()[0].name
    outputs = []
    for feed in feeds:
        try:
            outputs.append(run_session(session, [name], feed)[0])
        except NotMeasuredError:
            raise
        except Exception as error:  # onnxruntime raises its own classes, ValueError and RuntimeError
            raise UserError(f"onnxruntime refuses the inputs {_describe(feed)}: {first_line(error)}") from error
    if not outputs:
        raise UserError("no batch to run the model on")
    return np.concatenate(outputs)


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Let every batch inside have so many seconds to end in."""
    token = _LIMIT_S.set(seconds)
    try:
        yield
    finally:
        _LIMIT_S.reset(token)


def run_session(session: ort.InferenceSession, names: list[str], feed: Feed) -> list[Array]:
    """Run a batch and return these outputs; what onnxruntime raises is passed on.

    Raises:
        NotMeasuredError: it did not end within the time limit, as a Loop without an end does not.
    """
    options, limit_s = ort.RunOptions(), _LIMIT_S.get()
    timer = Timer(limit_s, setattr, (options, "terminate", True))
    timer.daemon = True
    timer.start()
    try:
        return list(session.run(names, feed, options))
    except Exception as error:
        if options.terminate:
            raise NotMeasuredError(
                f"a batch of {_describe(feed)} did not end within {limit_s:g} s and was stopped; --timeout gives it "
                "longer, if no Loop of the model runs for ever"
            ) from error
        raise
    finally:
        timer.cancel()


def output_distances(before: ort.InferenceSession, after: ort.InferenceSession, feed: Feed) -> dict[str, float]:
    """Return how far each tensor of two models' outputs lies from the first's, by name.

    Of floats it is the largest distance over the largest number of the first model's, infinite where another shape, or
    only one of them, is finite; of anything else the share that differs. Sequences are left out.

    Raises:
        UserError: onnxruntime refuses the inputs.
    """
    names = [value.name for value in before.get_outputs() if value.type.startswith("tensor(")]
    try:
        pairs = zip(names, run_session(before, names, feed), run_session(after, names, feed), strict=True)
        return {name: _distance(np.asarray(first), np.asarray(second)) for name, first, second in pairs}
    except NotMeasuredError:
        raise
    except Exception as error:  # as in run_onnx
        raise UserError(f"onnxruntime refuses the inputs {_describe(feed)}: {first_line(error)}") from error


def _distance(before: Array, after: Array) -> float:
    if before.shape != after.shape:
        return float("inf")
    if before.dtype.kind != "f" or not before.size:
        return float((before != after).mean()) if before.size else 0.0
    finite = np.isfinite(before)
    if (finite != np.isfinite(after)).any():
        return float("inf")
    gap = np.abs(before.astype(np.float64)[finite] - after.astype(np.float64)[finite]).max(initial=0)
    return float(gap / np.abs(before[finite]).max(initial=0)) if gap else 0.0


def session_of(
    model: str | Path | ModelProto,
    *,
    provider: str = CPU,
    threads: int | None = None,
    optimized: bool = True,
) -> ort.InferenceSession:
    """Open a session with explicit threads, all usable ones by default, and no spinning, on this provider and no other.

    Where it is not ``optimized``, the nodes are run as they are written.

    Raises:
        NotMeasuredError: the provider did not load.
        UserError: onnxruntime cannot read the model.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads or usable_threads()
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    proto = _read(model)
    if proto is not None:
        _require_own_data(model, proto)
    stored = {tensor.data_type for tensor in proto.graph.initializer} if proto is not None else set()
    if provider == CPU and TensorProto.FLOAT16 in stored:
        # Its last optimisation level, for data layouts, crashes on some fp16 graphs with attention.
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    if not optimized:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    if provider not in ort.get_available_providers():
        raise NotMeasuredError(
            f"provider={provider}: onnxruntime {ort.__version__} has {ort.get_available_providers()}"
        )
    content = model.SerializeToString() if isinstance(model, ModelProto) else os.fspath(model)
    try:
        session = ort.InferenceSession(content, options, providers=[provider])
    except Exception as error:  # as above
        raise UserError(f"onnxruntime {ort.__version__} cannot load the model: {first_line(error)}") from error
    if session.get_providers()[0] != provider:
        raise NotMeasuredError(f"provider={provider}: onnxruntime fell back to {session.get_providers()[0]}")
    return session


def _read(model: str | Path | ModelProto) -> ModelProto | None:
    try:
        return model if isinstance(model, ModelProto) else onnx.load(os.fspath(model), load_external_data=False)
    except Exception:  # a file that cannot be read is onnxruntime's to explain
        return None


def _require_own_data(model: str | Path | ModelProto, proto: ModelProto) -> None:
    """Refuse a model whose external data lie elsewhere, before a session reads them. Raises UserError."""
    if not isinstance(model, ModelProto):
        external_files(Path(model), proto)
    elif any(external_tensors(proto)):  # onnxruntime would look for them in the current folder
        raise UserError("the graph names other files for its data; load them into it first")


def first_line(error: BaseException) -> str:
    """Return the first line of an error that says something, for a message of one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def _describe(feed: dict[str, Array]) -> str:
    return ", ".join(f"{name}: {value.dtype} {list(value.shape)}" for name, value in feed.items())
