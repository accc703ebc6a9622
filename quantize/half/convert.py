"""fp16 and bfloat16 for GPUs: float32 at the borders and where 16 bits are too few."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from itertools import chain, islice

import numpy as np
from onnx import ModelProto, TensorProto

from distill.errors import UserError
from distill.export.graph import opset_of
from distill.export.stripping import strip
from distill.types import Feed

from ..calibrate import slices
from ..float_graph import float_graph
from ..select import COMPUTE
from .culprits import Verdict, find_culprits
from .islands import NO_TYPE, fill_gaps, islands
from .magnitudes import magnitudes, unfit
from .narrow import narrow
from .operands import element_types, first_opset
from .record import ELEMENTS, HalfRecord, Kind, record_of

_SAMPLES = 512
_ROWS = 32  # a larger batch is cut: its activations would be held at once
_COMPARED = 2  # batches that are kept, to compare answers on


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
    element = ELEMENTS[kind]
    model = float_graph(core, needs="and bf16 needs 13 or newer" if kind == "bf16" else None, verb="convert")
    if not any(tensor.data_type == TensorProto.FLOAT for tensor in model.graph.initializer):
        raise UserError(f"model: it has no float32 constants, so there is nothing to convert to {kind}")
    types = element_types(model)
    why = islands(model, types, element, keep_float=keep_float)
    _check_compute(model, why, kind)
    why |= fill_gaps(model, types, why)
    rows = _Rows(model, samples)
    verdict = Verdict(0.0, {})
    if rows.given:
        if kind == "fp16":
            why = unfit(model, types, magnitudes(model, types, rows)) | why
            why |= fill_gaps(model, types, why)
        verdict = find_culprits(model, why, element, types, rows.compared())
        why |= verdict.culprits
    if np.isinf(verdict.distance):
        other = "bf16 where the provider has it, or float32" if kind == "fp16" else "float32"
        raise UserError(f"model: {kind} answers with NaN or infinity what float32 answers with numbers; ship {other}")
    slim = strip(narrow(model, why, element, types))
    return slim, record_of(model, slim, kind, why, rows.count, verdict)


def _check_compute(model: ModelProto, why: Mapping[str, str], kind: Kind) -> None:
    """Refuse a graph of which nothing that computes exists in the 16 bits asked for."""
    layers = [node for node in model.graph.node if node.op_type in COMPUTE]
    if layers and all(why.get(node.name) == NO_TYPE for node in layers):
        needed = max(first_opset(node.op_type, ELEMENTS[kind]) or 0 for node in layers)
        names = ", ".join(sorted({node.op_type for node in layers}))
        mend = f"export with opset {needed}" if needed > opset_of(model) else "ship float32"
        raise UserError(f"model: opset {opset_of(model)} has no {kind} for {names}; {mend}")


class _Rows:
    """Samples that are read once: counted, cut into batches, the first of which are kept to compare answers on."""

    def __init__(self, model: ModelProto, samples: Iterable[Feed]) -> None:
        source = iter(samples)
        first = next(source, None)
        self.given, self.count = first is not None, 0
        self._batches = slices(model, chain([first] if first is not None else [], source), _SAMPLES, _ROWS)
        self._first: list[Feed] = []

    def __iter__(self) -> Iterator[Feed]:
        """Yield what has not been read yet."""
        for feed, length in self._batches:
            self.count += length
            if len(self._first) < _COMPARED:
                self._first.append(feed)
            yield feed

    def compared(self) -> list[Feed]:
        """Return the first batches, read as far as need be."""
        for _ in islice(self, _COMPARED - len(self._first)):
            pass
        return self._first
