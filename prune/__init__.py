"""Structured pruning of any ``nn.Module``: whole channels go, and a smaller ordinary module comes back.

``channels`` is the stage; ``attention``, ``depth`` and ``sparse`` are rooms for what else can go; ``staircase`` and
``latency`` ask a device what it buys.

``import distill.prune`` and ``distill.prune.settings`` bring no torch; the names below load on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from distill.prune.batchnorm import recalibrate as recalibrate
    from distill.prune.channels import prune_channels as prune_channels
    from distill.prune.graph.structure import apply_structure as apply_structure
    from distill.prune.graph.structure import apply_structure_ as apply_structure_
    from distill.prune.graph.structure import structure_of as structure_of
    from distill.prune.record import PruneRecord as PruneRecord
    from distill.prune.reload import load as load
    from distill.prune.reload import save as save
    from distill.prune.scores.importance import IMPORTANCES as IMPORTANCES
    from distill.prune.settings import PruneSettings as PruneSettings
    from distill.prune.widths.latency import Device as Device
    from distill.prune.widths.layer_costs import Staircase as Staircase
    from distill.prune.widths.sizes import Counts as Counts
    from distill.prune.widths.sizes import count as count

_HOME = {
    **dict.fromkeys(("apply_structure", "apply_structure_", "structure_of"), "graph.structure"),
    **dict.fromkeys(("load", "save"), "reload"),
    **dict.fromkeys(("Counts", "count"), "widths.sizes"),
    "recalibrate": "batchnorm",
    "prune_channels": "channels",
    "PruneRecord": "record",
    "IMPORTANCES": "scores.importance",
    "PruneSettings": "settings",
    "Device": "widths.latency",
    "Staircase": "widths.layer_costs",
}
__all__ = [*_HOME]


def __getattr__(name: str) -> Any:
    """Load a public name from its file on first use."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
