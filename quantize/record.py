"""What a quantisation did."""

from __future__ import annotations

from dataclasses import dataclass, field


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
    scheme: str
    per_channel: bool
    reduce_range: bool
    calibration: str
    samples: int
    nodes_quantized: int
    nodes_float: int
    saturation_risk: float
    file_bytes: int
    float_operators: dict[str, int] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
