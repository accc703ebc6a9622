"""Compress a PyTorch model into the smallest, fastest ONNX file that meets a budget on a real device.

``distill.run(config)`` does all of it and returns a ``RunResult``; ``distill.prune_model(model, …)`` and
``distill.quantize_model(model, …)`` do one stage on any model; ``distill.prune``, ``distill.quantize``,
``distill.export`` and ``distill.benchmarks`` work alone. Names load on first use, so that importing one part brings no
other.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from distill.config.loading import RunConfig, load_config
    from distill.errors import DistillError, Exit, NotComparableError, NotMeasuredError, UserError
    from distill.pipeline import run
    from distill.runtime.records import RunResult, StageRecord
    from distill.single_stage.prune_model import Pruned, prune_model
    from distill.single_stage.quantize_model import Quantized, quantize_model

_HOME = {
    "RunConfig": "config.loading",
    "load_config": "config.loading",
    "DistillError": "errors",
    "Exit": "errors",
    "NotComparableError": "errors",
    "NotMeasuredError": "errors",
    "UserError": "errors",
    "Pruned": "single_stage.prune_model",
    "prune_model": "single_stage.prune_model",
    "Quantized": "single_stage.quantize_model",
    "quantize_model": "single_stage.quantize_model",
    "run": "pipeline",
    "RunResult": "runtime.records",
    "StageRecord": "runtime.records",
}

__all__ = [
    "DistillError",
    "Exit",
    "NotComparableError",
    "NotMeasuredError",
    "Pruned",
    "Quantized",
    "RunConfig",
    "RunResult",
    "StageRecord",
    "UserError",
    "load_config",
    "prune_model",
    "quantize_model",
    "run",
]


def __getattr__(name: str) -> Any:
    """Load a public name from its file on first use."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
