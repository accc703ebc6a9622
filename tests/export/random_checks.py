"""What has to hold of every valid graph: strip and simplify leave its answers, quantisation comes near them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import ModelProto, helper
from onnx import numpy_helper as arrays
from random_control import CONTROL_STEPS
from random_graphs import FLOAT, Array, RandomGraph, random_graph
from random_shapes import SHAPE_STEPS
from random_steps import STEPS

from distill.benchmarks.target import Target, resolve_target
from distill.errors import UserError
from distill.export import simplify, strip, to_bytes
from distill.quantize import quantize_onnx, to_blocks, to_dynamic, to_half
from distill.types import Feed

ALL_STEPS = [*STEPS, *SHAPE_STEPS, *CONTROL_STEPS]
_PLAIN = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
_FULL = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
_ALLOWED_LOSS_DB = 18.0  # more than rounding every tensor loses; weights of 7 bits are 6 of it
_FINE_DB = 25.0


def drawn(seed: int, steps: int) -> RandomGraph:
    """Return the graph of a seed, of all kinds of steps."""
    return random_graph(seed, steps, ALL_STEPS)


def session(model: ModelProto, level: Any = _FULL) -> ort.InferenceSession:
    """Open a model in onnxruntime, on one thread and without a word."""
    options = ort.SessionOptions()
    options.graph_optimization_level, options.log_severity_level, options.intra_op_num_threads = level, 4, 1
    options.add_session_config_entry("session.qdqisint8allowed", "1")  # as on ARM
    if level == _PLAIN:  # other kernels take weights that are constants, and round their sums in another order
        options.add_session_config_entry("session.disable_prepacking", "1")
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def answers(model: ModelProto, feeds: list[Feed], level: Any = _FULL) -> list[list[Array]]:
    """Run a model over batches."""
    opened = session(model, level)
    return [opened.run(None, feed) for feed in feeds]


def usable(graph: RandomGraph) -> list[Feed]:
    """Return the batches that the graph itself takes: none where the standard or onnxruntime refuses it."""
    try:
        onnx.checker.check_model(graph.model)
        plain, full = session(graph.model, _PLAIN), session(graph.model)
    except Exception:
        return []
    feeds = []
    for feed in graph.feeds:
        try:
            plain.run(None, feed)
            full.run(None, feed)
            feeds.append(feed)
        except Exception:
            continue
    return feeds


def check_strip(graph: RandomGraph, feeds: list[Feed]) -> None:
    """`strip` keeps every bit of the answers, the inputs and outputs, and its own result."""
    _check_rewrite(graph, feeds, strip, exact=True)


def check_simplify(graph: RandomGraph, feeds: list[Feed]) -> None:
    """`simplify` keeps the answers but for the order of sums, and the inputs and outputs."""
    _check_rewrite(graph, feeds, simplify, exact=False)
    _check_rewrite(graph, feeds, lambda model: strip(simplify(model)), exact=False)


def _check_rewrite(
    graph: RandomGraph, feeds: list[Feed], rewrite: Callable[[ModelProto], ModelProto], *, exact: bool
) -> None:
    before = graph.model.SerializeToString(deterministic=True)
    slim = rewrite(graph.model)
    assert graph.model.SerializeToString(deterministic=True) == before, "the model that is given was changed"
    onnx.checker.check_model(slim)
    for side in ("input", "output"):
        given, made = (
            [(v.name, v.type.SerializeToString(deterministic=True)) for v in getattr(model.graph, side)]
            for model in (graph.model, slim)
        )
        assert given == made, f"{side}s are {made}, not {given}"
    assert to_bytes(rewrite(slim)) == to_bytes(slim), "a second time gives other bytes"
    for level in (_PLAIN, _FULL):
        expected, got = answers(graph.model, feeds, level), answers(slim, feeds, level)
        for one, two in zip((a for batch in expected for a in batch), (a for batch in got for a in batch), strict=True):
            _compare(
                one, two, exact=exact and level == _PLAIN, continuous=graph.continuous or (exact and level == _PLAIN)
            )


def _compare(one: Array, two: Array, *, exact: bool, continuous: bool) -> None:
    assert one.shape == two.shape and one.dtype == two.dtype, f"{two.dtype} {two.shape}, not {one.dtype} {one.shape}"
    if exact:
        assert one.tobytes() == two.tobytes(), f"answers differ by {_distance(one, two)}"
    elif continuous and one.dtype.kind == "f":
        scale = float(np.abs(one[np.isfinite(one)]).max(initial=1.0))
        np.testing.assert_allclose(two, one, rtol=1e-3, atol=2e-5 * scale, equal_nan=True)


def _distance(one: Array, two: Array) -> str:
    with np.errstate(all="ignore"):
        return str(np.nanmax(np.abs(one.astype(np.float64) - two.astype(np.float64)), initial=0.0))


# Quantisation ---------------------------------------------------------------------------------------------------------

TARGETS = [
    resolve_target("x86"),  # with weights of 8 bits where this processor adds their products exactly
    Target("arm", "CPUExecutionProvider", "int8", "s8s8", False),
    Target("x86", "CPUExecutionProvider", "int8", "u8s8", True),
]
KINDS = ("static", "dynamic", "blocks", "fp16")


def quantized(graph: RandomGraph, feeds: list[Feed], kind: str, number: int = 0) -> ModelProto | None:
    """Quantise a graph in one way; None where that is refused in words."""
    if any(value.ndim == 0 for value in feeds[0].values()):
        return None
    try:
        if kind == "static":
            return quantize_onnx(graph.model, target=TARGETS[number % len(TARGETS)], calibration=feeds)[0]
        if kind == "dynamic":
            return to_dynamic(graph.model, target=TARGETS[-1])[0]
        if kind == "blocks":
            return to_blocks(graph.model, bits=8, block=16)[0]
        return to_half(graph.model, samples=feeds)[0]
    except UserError:
        return None


def check_quantized(graph: RandomGraph, feeds: list[Feed], kind: str, number: int = 0) -> bool:
    """A file that was quantised loads, keeps inputs and outputs, and answers about as well as rounding all would."""
    small = quantized(graph, feeds, kind, number)
    if small is None:
        return False
    defaults = {tensor.name for tensor in graph.model.graph.initializer}
    inputs = [v.name for v in graph.model.graph.input]
    required = [name for name in inputs if name not in defaults]
    assert [v.name for v in small.graph.input] in (inputs, required), "other inputs"
    assert [v.name for v in small.graph.output] == [v.name for v in graph.model.graph.output], "other outputs"
    expected, got = answers(graph.model, feeds), answers(small, feeds)
    rough = expected
    if graph.continuous and kind != "fp16":
        rough = answers(round_everything(graph.model, feeds), feeds, _PLAIN)
    outputs = len(expected[0])
    for place in range(outputs):
        one, two, floor = (np.concatenate([np.ravel(b[place]) for b in side]) for side in (expected, got, rough))
        assert one.shape == two.shape and one.dtype == two.dtype, "another shape or type"
        if one.dtype.kind != "f" or not np.isfinite(one).all():
            continue
        assert np.isfinite(two).all(), "answers that are NaN or infinite"
        if graph.continuous:
            fair, ours = _ratio_db(one, floor), _ratio_db(one, two)
            assert ours > min(fair - _ALLOWED_LOSS_DB, _FINE_DB), f"{ours:.1f} dB, {fair:.1f} dB is fair"
    return True


def _ratio_db(reference: Array, other: Array) -> float:
    noise = float(((reference.astype(np.float64) - other) ** 2).sum())
    return 200.0 if not noise else 10 * float(np.log10(max((reference.astype(np.float64) ** 2).sum(), 1e-30) / noise))


def round_everything(model: ModelProto, feeds: list[Feed]) -> ModelProto:
    """Round every float tensor of the main graph to 8 bits over its range on the batches, weights too."""
    rounded = strip(model)
    graph = rounded.graph
    ends = {value.name for value in graph.output}
    names = [name for node in graph.node if node.op_type != "Constant" for name in node.output if name]
    probe = ModelProto()
    probe.CopyFrom(rounded)
    known = {value.name for value in probe.graph.output}
    probe.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in known)
    opened = session(probe, _PLAIN)
    wanted = [value.name for value in opened.get_outputs() if value.type == "tensor(float)" and value.name in names]
    ranges: dict[str, list[Array]] = {name: [] for name in (*wanted, *feeds[0])}
    for feed in feeds:
        for name, value in feed.items():
            ranges[name].append(np.ravel(value))
        for name, value in zip(wanted, opened.run(wanted, feed), strict=True):
            ranges[name].append(np.ravel(value))
    held = {t.name: np.ravel(arrays.to_array(t)) for t in graph.initializer if t.data_type == FLOAT and len(t.dims) > 1}
    values = {name: np.concatenate(parts) for name, parts in ranges.items() if parts[0].dtype == np.float32} | held
    nodes = []
    for name, numbers in values.items():
        if name in ends or not numbers.size or not np.isfinite(numbers).all():
            continue
        low, high = min(0.0, float(numbers.min())), max(0.0, float(numbers.max()))
        scale = np.float32(max((high - low) / (127 if name in held else 255), 1e-12))
        zero = np.uint8(np.clip(np.rint(-low / scale), 0, 255))
        graph.initializer.append(arrays.from_array(scale, f"{name}@s"))
        graph.initializer.append(arrays.from_array(zero, f"{name}@z"))
        for node in graph.node:
            node.input[:] = [f"{name}@d" if entry == name else entry for entry in node.input]
        nodes.append(helper.make_node("QuantizeLinear", [name, f"{name}@s", f"{name}@z"], [f"{name}@q"]))
        nodes.append(helper.make_node("DequantizeLinear", [f"{name}@q", f"{name}@s", f"{name}@z"], [f"{name}@d"]))
    graph.node.extend(nodes)
    return rounded
