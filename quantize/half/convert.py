"""fp16 and bfloat16 for GPUs: float32 at the borders and where 16 bits are too few."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import Literal

import numpy as np
from onnx import ModelProto, TensorProto, numpy_helper

from distill.errors import UserError
from distill.export.graph import opset_of
from distill.export.stripping import strip
from distill.quantize.half.damaging_nodes import DECIDES, NOT_FINITE, Verdict, find_culprits
from distill.quantize.half.float32_nodes import (
    LARGEST,
    NO_TYPE,
    REASONS,
    SMALLEST,
    Island,
    fill_gaps,
    islands,
    too_large,
    too_small,
)
from distill.quantize.select_nodes import COMPUTE
from distill.types import Feed

from ..calibrate import slices
from ..float_graph import float_graph
from ..record import QuantizeRecord
from .magnitudes import magnitudes, unfit
from .narrow import narrow
from .operands import element_types, first_opset

Kind = Literal["fp16", "bf16"]
_ELEMENTS: dict[Kind, int] = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
_SAMPLES = 512
_ROWS = 32  # a larger batch is cut: its activations would be held at once
_COMPARED = 2  # batches that are kept, to compare answers on


@dataclass(frozen=True)
class HalfRecord(QuantizeRecord):
    """The record of a graph in 16-bit floats: `islands` are all nodes with floats that stayed float32, and why.

    ``nodes_float`` and ``float_operators`` count those of them that compute. ``samples`` is how many were run.
    """

    islands: tuple[Island, ...] = ()


def to_half(
    core: ModelProto,
    *,
    keep_float: Collection[str] = (),
    samples: Iterable[Feed] = (),
    kind: Kind = "fp16",
) -> tuple[ModelProto, HalfRecord]:
    """Turn a float32 graph into 16-bit floats with float32 inputs, outputs and islands; the graph given is not changed.

    Normalisations, softmax and the like stay float32, and so does every node whose constants do not fit into fp16. With
    samples, so do the nodes around every activation that fp16 cannot hold, with a margin of four at both ends of its
    range; then the answers are compared with those of float32, and the nodes that spoil them are sought and stay
    float32 too. bfloat16 has float32's range and 8 binary digits: nothing overflows, answers are compared alike.

    Args:
        core: an exported graph.
        keep_float: outputs, by name in ``core``, of nodes that stay float32.
        samples: batches as the graph takes them, read once and no further than 512 rows; none where there are none.
        kind: fp16, or bf16 for providers that have it (CUDA from compute capability 8.0 on; no CPU kernels).

    Raises:
        UserError: the graph is quantised or 16 bits already, holds no float32 constants, or has no operator that
            computes in bf16; samples that do not fit, or on which only float32 gives finite answers.
    """
    element = _ELEMENTS[kind]
    model = float_graph(core, newer=kind == "bf16", verb="convert")
    if not any(tensor.data_type == TensorProto.FLOAT for tensor in model.graph.initializer):
        raise UserError(f"model: it has no float32 constants, so there is nothing to convert to {kind}")
    types = element_types(model)
    why = islands(model, types, element, keep_float=keep_float)
    _check_compute(model, why, kind)
    why |= fill_gaps(model, types, why)
    verdict, counts, unread = Verdict(0.0, {}), list[int](), iter(samples)
    if (first := next(unread, None)) is not None:
        rows = _counted(slices(model, chain([first], unread), _SAMPLES, _ROWS), counts)
        compared = list(islice(rows, _COMPARED))
        if kind == "fp16":
            why = unfit(model, types, magnitudes(model, types, chain(compared, rows))) | why
            why |= fill_gaps(model, types, why)
        verdict = find_culprits(model, why, element, types, compared)
        why |= verdict.culprits
    if np.isinf(verdict.distance):
        other = "bf16 where the provider has it, or float32" if kind == "fp16" else "float32"
        raise UserError(f"model: {kind} answers with NaN or infinity what float32 answers with numbers; ship {other}")
    slim = strip(narrow(model, why, element, types))
    return slim, _record_of(model, slim, kind, why, sum(counts), verdict)


def _check_compute(model: ModelProto, why: Mapping[str, str], kind: Kind) -> None:
    """Refuse a graph of which nothing that computes exists in the 16 bits asked for."""
    layers = [node for node in model.graph.node if node.op_type in COMPUTE]
    if layers and all(why.get(node.name) == NO_TYPE for node in layers):
        needed = max(first_opset(node.op_type, _ELEMENTS[kind]) or 0 for node in layers)
        names = ", ".join(sorted({node.op_type for node in layers}))
        mend = f"export with opset {needed}" if needed > opset_of(model) else "ship float32"
        raise UserError(f"model: opset {opset_of(model)} has no {kind} for {names}; {mend}")


def _counted(batches: Iterable[tuple[Feed, int]], counts: list[int]) -> Iterator[Feed]:
    """Yield batches, and write down how many rows each has as it is read."""
    for feed, length in batches:
        counts.append(length)
        yield feed


def _record_of(
    model: ModelProto, slim: ModelProto, kind: Kind, why: Mapping[str, str], samples: int, verdict: Verdict
) -> HalfRecord:
    """Describe the conversion of ``model`` to ``slim``, whose nodes in ``why`` stayed float32."""
    halves = {node.name for node in model.graph.node} - why.keys()
    islands = tuple(
        Island(node.output[0], node.op_type, why[node.name]) for node in model.graph.node if node.name in why
    )
    return HalfRecord.of(
        model,
        halves,
        slim,
        precision=kind,
        samples=samples,
        warnings=(*_constant_warnings(model, kind), *_island_warnings(model, kind, islands, verdict)),
        islands=islands,
    )


def _constant_warnings(model: ModelProto, kind: Kind) -> Iterator[str]:
    """Say which weights fp16 cannot hold; bfloat16 holds what float32 does."""
    if kind == "bf16":
        return
    large, small = too_large(model.graph), too_small(model.graph)
    if large:
        yield f"{len(large)} constants exceed fp16's {LARGEST:.0f}: the nodes that read them stay float32"
    floats = [tensor for tensor in model.graph.initializer if tensor.data_type == TensorProto.FLOAT]
    lost = [tensor for tensor in floats if tensor.name in small and len(tensor.dims) > 1]
    if lost:  # an eps is as small, and is no one's worry
        yield f"{len(lost)} weights lie below fp16's smallest normal {SMALLEST:.1e}: their readers stay float32"
    weights = [numpy_helper.to_array(tensor) for tensor in floats if tensor.name not in small]
    total = sum(weight.size for weight in weights)
    tiny = sum(int(((weight != 0) & (np.abs(weight) < SMALLEST)).sum()) for weight in weights)
    if tiny > total // 100:
        yield f"{tiny} of {total} weights are below fp16's smallest normal number {SMALLEST:.1e} and lose digits"


def _island_warnings(model: ModelProto, kind: Kind, islands: Sequence[Island], verdict: Verdict) -> Iterator[str]:
    """Say what stays float32 beyond what always does."""
    for operator, count in Counter(island.operator for island in islands if island.why == NO_TYPE).items():
        later = first_opset(operator, _ELEMENTS[kind]) or 0
        if operator in COMPUTE and later > opset_of(model):
            yield f"{count} {operator} stay float32: opset {opset_of(model)} has no {kind} for them, opset {later} has"
    measured = [island for island in islands if island.why not in {*REASONS, NOT_FINITE, DECIDES}]
    if measured:
        listed = ", ".join(f"{count} {name}" for name, count in sorted(Counter(o.operator for o in measured).items()))
        yield (
            f"stays float32, as fp16 does not hold its values on the samples: {listed}; {measured[0].operator} "
            f"{measured[0].output!r} has {measured[0].why}"
        )
    for reason in (NOT_FINITE, DECIDES):
        named = [island for island in islands if island.why == reason]
        if named:
            listed = ", ".join(f"{island.operator} {island.output!r}" for island in named)
            yield f"stays float32, since it {reason}: {listed}"
    if not verdict.near:
        far = f"{100 * verdict.distance:.0f} % of the largest float32 answer"
        yield f"{kind} answers lie up to {far} away on the samples, and no few nodes in float32 mend that"
