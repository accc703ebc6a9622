"""16-bit floats for GPUs: fp16 and bfloat16, with float32 where 16 bits are too few."""

from __future__ import annotations

from .convert import HalfRecord, Kind, to_half
from .narrow import emulate

__all__ = ["HalfRecord", "Kind", "emulate", "to_half"]
