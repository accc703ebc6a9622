"""Static int8: calibrated ranges, QuantizeLinear/DequantizeLinear pairs where the target's kernels fuse them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, cast

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto

from distill.benchmarks.target import Target
from distill.errors import UserError
from distill.export.graph import initializers, layer_names, operator, producers, refill, sort_nodes
from distill.export.plain_names import PlainNames
from distill.export.stripping import strip
from distill.quantize.integer_kernels import fuses_here, unfused_nodes
from distill.quantize.repairs import REPAIRS
from distill.quantize.select_nodes import COMPUTE, QUANTIZED_OPERATORS, count_float, select_nodes
from distill.types import Feed, Progress

from .bias import correct_biases, rounded_weights
from .calibrate import calibrate, twice
from .float_graph import silent
from .pairs import free_float_readers
from .prepare import prepare, products_to_gemm, weight_overrides
from .record import QuantizeRecord
from .settings import QuantizeSettings
from .weights import narrow_tables

_FEW_SAMPLES = 100


def quantize_onnx(
    core: ModelProto,
    settings: QuantizeSettings | None = None,
    *,
    target: Target,
    calibration: Iterable[Feed],
    keep_float: Collection[str] = (),
    progress: Progress | None = None,
) -> tuple[ModelProto, QuantizeRecord]:
    """Quantise a float32 graph to static int8 in the target's scheme; the graph that is given is not changed.

    Args:
        core: an exported graph, before preprocessing is put in front of it.
        settings: scheme, range reduction and calibration; the target decides what is ``auto``.
        target: what the file ships to.
        calibration: batches as the graph takes them, name -> array; read one at a time.
        keep_float: outputs, by name in ``core``, of nodes that stay float.
        progress: called with ("calibrate", samples done, samples wanted).

    Returns:
        The quantised graph, stripped, and the record. Its inputs and outputs are those of ``core``; the logits are
        float, and not rounded to 8 bits where the last layer is a Gemm or MatMul.

    Raises:
        UserError: the graph is quantised already or has nothing to quantise, or the calibration data do not fit it.
    """
    settings = settings or QuantizeSettings()
    resolve(settings, target)
    graph = calibrate_graph(
        core, settings, target=target, calibration=calibration, keep_float=keep_float, progress=progress
    )
    return write(graph, settings, progress=progress)


@dataclass(frozen=True)
class CalibratedGraph:
    """A float graph, ready to be quantised for a target: `ranges` of all activations that `nodes` read and write.

    Every node of ``model`` has a name, and every layer weights and bias of its own; `nodes` are those that may become
    integer kernels, in order. ``samples`` is how many were read of ``calibration``, which is read again where settings
    ask for bias correction. ``layers`` says what people call the layer that computes a tensor, where that is known.
    """

    model: ModelProto
    nodes: tuple[str, ...]
    ranges: Mapping[str, tuple[float, float]]
    samples: int
    target: Target
    calibration: Iterable[Feed]
    layers: Mapping[str, str] = field(default_factory=dict)


def calibrate_graph(
    core: ModelProto,
    settings: QuantizeSettings,
    *,
    target: Target,
    calibration: Iterable[Feed],
    keep_float: Collection[str] = (),
    progress: Progress | None = None,
) -> CalibratedGraph:
    """Bring a graph into the form that quantises completely, repaired as the settings ask, and find its ranges.

    Raises what `quantize_onnx` raises.
    """
    model = prepare(core, fold_norms=not target.symmetric)
    for repair in REPAIRS.values():
        if repair.rewrite is not None:
            model = repair.rewrite(model, settings, calibration, progress)
    if not target.symmetric:
        products_to_gemm(model, keep_float)
    chosen = select_nodes(model.graph, keep_float=keep_float, float_biases=target.symmetric)
    if not any(operator(node) in COMPUTE for node in chosen):
        raise UserError("model: it has no Conv, Gemm or MatMul with constant weights, so there is nothing to quantise")
    inferred = onnx.shape_inference.infer_shapes(model)
    ranges, samples = calibrate(
        model, _float_activations(inferred.graph, chosen), calibration, settings, progress=progress
    )
    names = tuple(node.name for node in chosen)
    return CalibratedGraph(inferred, names, ranges, samples, target, calibration, layer_names(core.graph))


def write(
    graph: CalibratedGraph,
    settings: QuantizeSettings,
    *,
    keep_float: Collection[str] = (),
    progress: Progress | None = None,
) -> tuple[ModelProto, QuantizeRecord]:
    """Write the integer graph of a calibrated one, less the nodes of ``graph.model`` that compute ``keep_float``.

    Layers that onnxruntime would not run as integer kernels are left in float, too.
    """
    result, names = _fused_graph(graph, settings, keep_float, progress)
    scheme, reduce_range = resolve(settings, graph.target)
    slim = strip(result)
    excluded = {node.name for node in graph.model.graph.node if set(node.output) & set(keep_float)}
    record = QuantizeRecord.of(
        graph.model,
        names,
        slim,
        precision="int8",
        scheme=scheme,
        per_channel=settings.per_channel,
        reduce_range=reduce_range,
        calibration=settings.calibration,
        samples=graph.samples,
        warnings=_warnings(graph, settings, scheme, count_float(graph.model.graph, {*names, *excluded})),
    )
    return slim, record


def _fused_graph(
    graph: CalibratedGraph, settings: QuantizeSettings, keep_float: Collection[str], progress: Progress | None
) -> tuple[ModelProto, set[str]]:
    """Write the integer graph less the layers that are not fused in it; returns it with the nodes that are."""
    floats = set(keep_float)
    while True:
        result, names = integer_graph(graph, settings, keep_float=floats, progress=progress)
        if not fuses_here(resolve(settings, graph.target)[0], strict=graph.target.symmetric):
            return result, names
        loose = unfused_nodes(result, names)
        layers = [node for node in graph.model.graph.node if node.name in loose and operator(node) in COMPUTE]
        if not layers:
            return result, names - loose
        floats.update(name for node in layers for name in node.output)


def integer_graph(
    graph: CalibratedGraph,
    settings: QuantizeSettings,
    *,
    keep_float: Collection[str] = (),
    progress: Progress | None = None,
) -> tuple[ModelProto, set[str]]:
    """Write the integer graph with the nodes' names still in it; returns it with those of the integer ones."""
    model, strict = graph.model, graph.target.symmetric
    chosen = select_nodes(model.graph, keep_float=keep_float, float_biases=strict)
    names = [node.name for node in chosen if node.name in set(graph.nodes)]
    if not names:  # the quantiser would take an empty list for all
        raise UserError("model: no layer is left that runs as an integer kernel, so there is nothing to quantise")
    result = _insert_pairs(graph, settings, names)
    if settings.bias_correction:
        rounded = rounded_weights(result.graph, names)
        model, _ = correct_biases(model, rounded, twice(graph.calibration), settings, progress=progress)
        result = _insert_pairs(replace(graph, model=model), settings, names)
    if not strict:  # whose pairs stand where integers are read, and nowhere else
        free_float_readers(result.graph, set(names), _absorbed_rectifiers(model.graph, result.graph, names))
        if settings.tables:
            narrow_tables(result.graph, keep_float)
    sort_nodes(result.graph)
    return result, set(names)


def _absorbed_rectifiers(before: GraphProto, after: GraphProto, names: Collection[str]) -> dict[str, NodeProto]:
    """Find the rectifiers that the quantiser took away, since a range that begins at zero does the same.

    They are listed by the node in front of them; the constants that they read are put back.
    """
    makers, left, constants = producers(before), {node.name for node in after.node}, initializers(before)
    removed = [node for node in before.node if node.name in names and node.name not in left]
    there = initializers(after)
    for name in {name for node in removed for name in node.input[1:] if name in constants and name not in there}:
        after.initializer.append(constants[name])
    return {makers[node.input[0]].name: node for node in removed if node.input[0] in makers}


def resolve(settings: QuantizeSettings, target: Target) -> tuple[str, bool]:
    """Let the target decide what the settings leave open."""
    if target.precision != "int8" and settings.scheme == "auto":
        raise UserError(f"target={target.name}: it runs {target.precision}, not int8; use distill.quantize.to_half")
    scheme = target.scheme if settings.scheme == "auto" else settings.scheme
    reduce_range = target.reduce_range if settings.reduce_range == "auto" else settings.reduce_range
    return scheme, bool(reduce_range)


def _float_activations(graph: GraphProto, nodes: Iterable[NodeProto]) -> list[str]:
    """Name, in order, the activations that nodes read and write and that hold floats."""
    values, constants = (*graph.input, *graph.output, *graph.value_info), initializers(graph)
    floats = {value.name for value in values if value.type.tensor_type.elem_type == TensorProto.FLOAT}
    names = dict.fromkeys(name for node in nodes for name in (*node.input, *node.output))
    return [name for name in names if name in floats and name not in constants]


def _insert_pairs(graph: CalibratedGraph, settings: QuantizeSettings, names: list[str]) -> ModelProto:
    """Run onnxruntime's QDQ quantiser with our ranges and our choice of nodes."""
    from onnxruntime.quantization import CalibrationMethod, QuantType
    from onnxruntime.quantization.calibrate import TensorData, TensorsData
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

    model, (scheme, reduce_range) = graph.model, resolve(settings, graph.target)
    # A range without width gets a zero point of 0 whatever the type, and a rectifier before it would be lost.
    wide = {name: (low, high if (low, high) != (0, 0) else 1.0) for name, (low, high) in graph.ranges.items()}
    plain = PlainNames.of(model.graph)
    twin = plain.hide(model)
    data = {
        plain.numbers[name]: TensorData(lowest=np.float32(low), highest=np.float32(high))
        for name, (low, high) in wide.items()
    }
    strict = graph.target.symmetric
    options: dict[str, Any] = {
        "ActivationSymmetric": strict,
        "WeightSymmetric": True,
        "QuantizeBias": not strict,
        # TensorRT fuses a layer with what follows it at once: a pair in between would keep them apart.
        "OpTypesToExcludeOutputQuantization": sorted(QUANTIZED_OPERATORS) if strict else [],
        "TensorQuantOverrides": weight_overrides(
            twin.graph, names, per_channel=settings.per_channel, reduce_range=reduce_range
        ),
    }
    passed = {value.name for value in twin.graph.input}  # of inputs that are outputs it would make a second definition
    refill(twin.graph.output, [value for value in twin.graph.output if value.name not in passed])
    with silent():
        quantizer = QDQQuantizer(
            twin,
            settings.per_channel,
            reduce_range,
            QuantType.QInt8,
            QuantType.QUInt8 if scheme == "u8s8" else QuantType.QInt8,
            TensorsData(CalibrationMethod.MinMax, data),
            names,
            [],
            sorted(QUANTIZED_OPERATORS),
            options,
        )
        result = cast(ModelProto, quantizer.quantize_model())
    plain.reveal(result.graph)
    refill(result.graph.output, model.graph.output)
    _drop_bias_zero_points(result.graph)
    return result


def _drop_bias_zero_points(graph: GraphProto) -> None:
    """Leave the zero points of biases out: they are 0, which is the default, and WebGPU refuses those of 32 bits."""
    constants = initializers(graph)
    for node in graph.node:
        source = constants.get(node.input[0]) if operator(node) == "DequantizeLinear" else None
        if source is not None and source.data_type == TensorProto.INT32:
            del node.input[2:]


def _warnings(
    graph: CalibratedGraph, settings: QuantizeSettings, scheme: str, floats: Mapping[str, int]
) -> tuple[str, ...]:
    target, warnings = graph.target, []
    if graph.samples < min(_FEW_SAMPLES, settings.samples):
        warnings.append(f"{graph.samples} calibration samples: 200 to 500 are usual, the ranges may be too narrow")
    if scheme != target.scheme:
        warnings.append(f"quantize.scheme={scheme}: target {target.name} runs {target.scheme} faster")
    if floats:
        listed = ", ".join(f"{count} {name}" for name, count in sorted(floats.items()))
        warnings.append(f"stays float: {listed}")
    return tuple(warnings)
