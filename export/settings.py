"""What an export may choose."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from annotated_types import Ge, Gt, Le
from pydantic import Field
from pydantic.dataclasses import dataclass

from distill.bounds import SETTINGS


@dataclass(frozen=True, kw_only=True, config=SETTINGS)
class ExportSettings:
    """How a module becomes an ONNX file, and how closely the file must follow it."""

    opset: Annotated[int, Ge(17), Le(21)] = Field(
        default=18, description="ONNX opset of the file. 18 loads in every onnxruntime since 1.14; 21 knows int4."
    )
    atol: Annotated[float, Gt(0)] = Field(
        default=1e-4, description="Absolute part of the largest allowed distance between logits."
    )
    rtol: Annotated[float, Ge(0)] = Field(
        default=1e-3, description="Part of the largest allowed distance that grows with the largest reference logit."
    )
    load_with: tuple[Path, ...] = Field(
        default=(),
        description="Python interpreters whose onnxruntime has to load the file too; its metadata names the oldest.",
    )
