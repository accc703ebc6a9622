"""int8, int4 and fp16 of exported ONNX graphs, in the form that a target runs fastest."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from onnx import ModelProto

from distill.benchmarks.target import Target
from distill.errors import UserError
from distill.types import Feed, Progress

from .half import to_half
from .record import QuantizeRecord
from .settings import QuantizeSettings
from .static import quantize_onnx
from .weights import to_blocks, to_dynamic

__all__ = ["QuantizeRecord", "QuantizeSettings", "quantize", "quantize_onnx", "to_blocks", "to_dynamic", "to_half"]


def quantize(
    core: ModelProto,
    settings: QuantizeSettings | None = None,
    *,
    target: Target,
    calibration: Iterable[Feed] | None = None,
    keep_float: Collection[str] = (),
    progress: Progress | None = None,
) -> tuple[ModelProto, QuantizeRecord]:
    """Bring a float32 graph to the precision of its target: static int8, or fp16, which needs no samples.

    With samples fp16 also keeps in float32 what overflows on them.

    Raises:
        UserError: the graph is quantised already, or int8 has no calibration samples that fit it.
    """
    if target.precision == "fp16":
        return to_half(core, keep_float=keep_float, samples=calibration or ())
    if calibration is None:
        raise UserError("calibration: static int8 needs samples to find ranges; 200 to 500 are usual")
    return quantize_onnx(
        core, settings, target=target, calibration=calibration, keep_float=keep_float, progress=progress
    )
