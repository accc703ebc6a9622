"""What a quantisation did."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any, Self

from onnx import ModelProto

from distill.benchmarks.onnx_file.saturation import saturating_share
from distill.export.graph import initializers
from distill.export.stripping import to_bytes
from distill.quantize.select_nodes import count_float, is_compute


@dataclass(frozen=True)
class QuantizeRecord:
    """The choices and the outcome of one quantisation.

    ``nodes_quantized`` and ``nodes_float`` count the nodes that compute (Conv, Gemm, MatMul, Add of two activations):
    those meant to run as integer (or fp16) kernels, and the rest; ``float_operators`` names the rest by kind. Which
    kernels really run is for a profile to say. ``saturation_risk`` is the share of neighbouring weight pairs whose
    products with the largest activation do not fit into 16 bits: harmless with VNNI, AMX or ARM dot products, wrong
    results without. ``file_bytes`` is the size of the file.
    """

    precision: str
    scheme: str = "none"
    per_channel: bool = False
    reduce_range: bool = False
    calibration: str = "none"
    samples: int = 0
    nodes_quantized: int = 0
    nodes_float: int = 0
    saturation_risk: float = 0.0
    file_bytes: int = 0
    float_operators: dict[str, int] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    @classmethod
    def of(cls, model: ModelProto, chosen: Collection[str], written: ModelProto, **choices: Any) -> Self:
        """Describe the graph that was written of a float one, whose nodes of these names were chosen."""
        constants, floats = initializers(model.graph), count_float(model.graph, chosen)
        return cls(
            nodes_quantized=sum(is_compute(node, constants) for node in model.graph.node if node.name in chosen),
            nodes_float=sum(floats.values()),
            saturation_risk=saturating_share(written),
            file_bytes=len(to_bytes(written)),
            float_operators=dict(sorted(floats.items())),
            **choices,
        )
