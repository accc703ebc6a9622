"""Structured pruning of any ``nn.Module``: whole channels go, and a smaller ordinary module comes back.

``channels`` is the stage; ``attention``, ``depth`` and ``sparse`` are rooms for what else can go; ``staircase`` and
``latency`` ask a device what it buys.

``import distill.prune`` and ``distill.prune.settings`` bring no torch; the names below load on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from distill.prune.batchnorm import recalibrate
    from distill.prune.channels import prune_channels
    from distill.prune.graph.structure import apply_structure, apply_structure_, structure_of
    from distill.prune.record import PruneRecord
    from distill.prune.reload import load, save
    from distill.prune.scores.importance import IMPORTANCES
    from distill.prune.settings import PruneSettings
    from distill.prune.widths.counts import Counts, count
    from distill.prune.widths.latency import Device
    from distill.prune.widths.staircase import Staircase

__all__ = [
    "IMPORTANCES",
    "Counts",
    "Device",
    "PruneRecord",
    "PruneSettings",
    "Staircase",
    "apply_structure",
    "apply_structure_",
    "count",
    "load",
    "prune_channels",
    "recalibrate",
    "save",
    "structure_of",
]

_HOME = {
    "IMPORTANCES": "scores.importance",
    "Counts": "widths.counts",
    "Device": "widths.latency",
    "PruneRecord": "record",
    "PruneSettings": "settings",
    "Staircase": "widths.staircase",
    "apply_structure": "graph.structure",
    "apply_structure_": "graph.structure",
    "count": "widths.counts",
    "load": "reload",
    "prune_channels": "channels",
    "save": "reload",
    "recalibrate": "batchnorm",
    "structure_of": "graph.structure",
}


def __getattr__(name: str) -> Any:
    """Load a public name from its file on first use."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
