"""What a conversion to 16-bit floats did, and what it has to tell."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from onnx import ModelProto, TensorProto, numpy_helper

from distill.export.graph import opset_of

from ..record import QuantizeRecord
from ..select import COMPUTE
from .culprits import DECIDES, NOT_FINITE, Verdict
from .islands import LARGEST, NO_TYPE, REASONS, SMALLEST, Island, too_large, too_small
from .operands import first_opset

Kind = Literal["fp16", "bf16"]
ELEMENTS: dict[Kind, int] = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}


@dataclass(frozen=True)
class HalfRecord(QuantizeRecord):
    """The record of a graph in 16-bit floats: `islands` are all nodes with floats that stayed float32, and why.

    ``nodes_float`` and ``float_operators`` count those of them that compute. ``samples`` is how many were run.
    """

    islands: tuple[Island, ...] = ()


def record_of(
    model: ModelProto, slim: ModelProto, kind: Kind, why: Mapping[str, str], samples: int, verdict: Verdict
) -> HalfRecord:
    """Describe a conversion.

    Args:
        model: the float32 graph with its nodes' names.
        slim: the graph of 16-bit floats.
        kind: which these are.
        why: node name -> why it stayed float32.
        samples: how many were run.
        verdict: how the answers compare on them.
    """
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
        later = first_opset(operator, ELEMENTS[kind]) or 0
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
