"""What a graph tells of an output: the operator that its values come from, and the axis of its classes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Family = Literal["softmax", "log_softmax", "sigmoid", "linear", "mixed", "other"]


@dataclass(frozen=True)
class Tail:
    """Where an output's values come from, behind operators that only move or scale them.

    Attributes:
        operator: the ONNX operator, as errors name it; several where the output is put together from them.
        family: what it makes: probabilities of exclusive classes, single probabilities, sums of products, values of
            several kinds side by side, or anything else.
        axis: the axis of the output along which it has its classes; None where that axis is gone, or cannot be traced.
        scaled: whether constants are added to, or multiplied with, what it makes.
    """

    operator: str
    family: Family
    axis: int | None = None
    scaled: bool = False


UNKNOWN = Tail("", "other")
