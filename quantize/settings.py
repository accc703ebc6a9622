"""What a quantisation may choose."""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from annotated_types import Gt, Le
from pydantic import Field
from pydantic.dataclasses import dataclass

from distill.bounds import SETTINGS, Count, Share, Threads

Calibration = Literal["minmax", "average", "percentile", "entropy", "mse"]
CALIBRATIONS: tuple[str, ...] = get_args(Calibration)


@dataclass(frozen=True, kw_only=True, config=SETTINGS)
class QuantizeSettings:
    """How an exported float32 graph becomes int8 or fp16."""

    scheme: Literal["auto", "u8s8", "s8s8"] = Field(
        default="auto",
        description="Types of activations and weights in an int8 graph; auto takes what the target runs fastest.",
    )
    per_channel: bool = Field(
        default=True, description="One weight scale for each output channel (true) or for each layer (false)."
    )
    reduce_range: Literal["auto"] | bool = Field(
        default="auto",
        description="Keep int8 weights to 7 bits, so that a CPU without VNNI does not saturate; auto asks the target.",
    )
    calibration: Calibration = Field(
        default="minmax",
        description="How the range of an activation is chosen from the calibration samples: all values, the mean of "
        "each sample's smallest and largest, all but the tails, or what loses least by divergence or squared error.",
    )
    percentile: Annotated[float, Gt(50), Le(100)] = Field(
        default=99.99, description="Share of values, in percent, that calibration: percentile leaves unclipped."
    )
    smooth: Share | None = Field(
        default=None,
        description="Move outlying channels behind layer normalisations into the weights, by this strength; 0.5 is "
        "usual. Reads the samples once more.",
    )
    equalize: bool = Field(
        default=False,
        description="Let neighbouring layers share their ranges channel by channel first, for scales of whole layers.",
    )
    bias_correction: bool = Field(
        default=False,
        description="Give back to each layer the mean that rounding its weights took; reads the samples a second time.",
    )
    tables: bool = Field(
        default=True, description="Keep embedding tables in 8 bits, too, with a scale for each row; not for TensorRT."
    )
    samples: Count = Field(default=512, description="Calibration samples to read at most.")
    threads: Threads | None = Field(
        default=None, description="Threads of the calibration run; all usable ones when not given."
    )
