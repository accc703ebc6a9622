"""The repairs of static int8: what each tries, how attempts with it are called, and what it rewrites.

A new repair is a setting in `QuantizeSettings`, its functions, and an entry here; `repair` climbs whatever it finds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from onnx import GraphProto, ModelProto

from distill.export.graph import operator
from distill.quantize.calibrate import twice
from distill.quantize.equalize import equalize
from distill.quantize.settings import QuantizeSettings
from distill.quantize.smooth import smooth
from distill.quantize.weights import tables_of
from distill.types import Feed, Progress

Changes = Mapping[str, object]
Rewrite = Callable[[ModelProto, QuantizeSettings, Iterable[Feed], Progress | None], ModelProto]


@dataclass(frozen=True)
class Repair:
    """One way to bring the answers of an int8 graph closer to those of the float graph.

    Attributes:
        rung: where it stands on the ladder; cheap repairs are tried first.
        variants: lists changes of the settings to try, given the settings that the climb began with and the float
            graph; all variants of one repair start from the best attempt before it.
        label: says in the name of an attempt that its settings have the repair; "" where they have not.
        rewrite: changes the float graph before ranges are found, where the settings ask for it; returns an equal graph
            and leaves its argument as it is. None for a repair that only changes how the graph is quantised.
    """

    rung: int
    variants: Callable[[QuantizeSettings, GraphProto], Sequence[Changes]]
    label: Callable[[QuantizeSettings], str]
    rewrite: Rewrite | None = None


def _smoothings(settings: QuantizeSettings, graph: GraphProto) -> list[Changes]:
    if "LayerNormalization" not in map(operator, graph.node):
        return []
    return [{"smooth": strength} | ranges for strength in (0.5, 0.7, 0.85) for ranges in ({}, _own_ranges(settings))]


def _equalizations(settings: QuantizeSettings, graph: GraphProto) -> list[Changes]:
    if not {"Conv", "Gemm"} & set(map(operator, graph.node)):
        return []
    return [{"equalize": True}, {"equalize": True} | _own_ranges(settings)]


def _own_ranges(settings: QuantizeSettings) -> dict[str, object]:
    """Return to the calibration that the climb began with: a rewritten graph may be better off with it again."""
    return {"calibration": settings.calibration}


def _smoothed(
    model: ModelProto, settings: QuantizeSettings, calibration: Iterable[Feed], progress: Progress | None
) -> ModelProto:
    if settings.smooth is None:
        return model
    return smooth(model, twice(calibration), settings, strength=settings.smooth, progress=progress)[0]


# In the order in which an attempt's name lists them, and rewrites follow each other.
REPAIRS: dict[str, Repair] = {
    "calibration": Repair(
        rung=1,
        variants=lambda settings, graph: [
            {"calibration": name} for name in ("percentile", "mse", "entropy", "average")
        ],
        label=lambda settings: settings.calibration if settings.calibration != "minmax" else "",
    ),
    "per_channel": Repair(
        rung=5,
        variants=lambda settings, graph: [{"per_channel": not settings.per_channel}],
        label=lambda settings: "" if settings.per_channel else "per layer",
    ),
    "smooth": Repair(
        rung=3,
        variants=_smoothings,
        label=lambda settings: "" if settings.smooth is None else f"smoothed {settings.smooth:g}",
        rewrite=_smoothed,
    ),
    "equalize": Repair(
        rung=4,
        variants=_equalizations,
        label=lambda settings: "equalised" if settings.equalize else "",
        rewrite=lambda model, settings, calibration, progress: equalize(model)[0] if settings.equalize else model,
    ),
    "bias_correction": Repair(
        rung=2,
        variants=lambda settings, graph: [{"bias_correction": True}],
        label=lambda settings: "biases corrected" if settings.bias_correction else "",
    ),
    "tables": Repair(
        rung=6,
        variants=lambda settings, graph: [{"tables": False}] if settings.tables and tables_of(graph) else [],
        label=lambda settings: "" if settings.tables else "tables in float",
    ),
}


def name_of(settings: QuantizeSettings) -> str:
    """Say in a few words how a graph is quantised: "int8 percentile, biases corrected"."""
    first, *labels = (repair.label(settings) for repair in REPAIRS.values())
    return ", ".join([f"int8 {first}".strip(), *filter(None, labels)])
