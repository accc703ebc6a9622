"""nn.Module -> verified, small ONNX file with preprocessing and metadata inside; torch is loaded for export only."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from distill.export.parity_check import Parity, parity, run_onnx
from distill.export.simplification import simplify
from distill.export.stripping import strip, to_bytes

from .columns import CategoryColumn, ColumnsPreprocess, NumericColumn
from .metadata import loaded_with, loads_in, read_labels, read_metadata, write_metadata
from .preprocess import FeaturesPreprocess, ImagePreprocess, InputSpec, Preprocess
from .settings import ExportSettings

if TYPE_CHECKING:
    from .onnx_export import export_onnx

__all__ = [
    "CategoryColumn",
    "ColumnsPreprocess",
    "ExportSettings",
    "FeaturesPreprocess",
    "ImagePreprocess",
    "InputSpec",
    "NumericColumn",
    "Parity",
    "Preprocess",
    "export_onnx",
    "loaded_with",
    "loads_in",
    "parity",
    "read_labels",
    "read_metadata",
    "run_onnx",
    "simplify",
    "strip",
    "to_bytes",
    "write_metadata",
]


def __getattr__(name: str) -> Any:
    """Load torch only for the one function that needs it."""
    if name == "export_onnx":
        from .onnx_export import export_onnx

        return export_onnx
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
