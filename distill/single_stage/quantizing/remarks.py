"""Every remark that the verb `quantize` makes on what it made, each with what mends it."""

from __future__ import annotations

import numpy as np
from onnx import ModelProto, TensorProto, numpy_helper

from distill.benchmarks import units
from distill.benchmarks.target import Target
from distill.quantize.choose import FLOAT, Candidate, Choice
from distill.quantize.record import QuantizeRecord

_SMALLEST = float(np.finfo(np.float32).smallest_normal)


def of_choice(choice: Choice, target: Target, *, rows: int, max_drop: float) -> tuple[str, ...]:
    """Remarks on the candidates whose answers are none, and on the one that ships.

    Args:
        choice: what was tried and chosen.
        target: what it ships to.
        rows: how many were judged.
        max_drop: the budget, as a fraction.
    """
    warnings = [
        f"{wrong.name}: {wrong.loss.fault}, so it cannot ship" for wrong in choice.candidates if wrong.loss.fault
    ]
    chosen = choice.chosen
    if chosen.record is not None:
        warnings += _undecided(chosen, rows, max_drop) + _saturation(chosen.name, chosen.record, target)
    return tuple(warnings)


def _undecided(chosen: Candidate, rows: int, max_drop: float) -> list[str]:
    """Say when the budget lies inside the interval of a drop that keeps it."""
    drop = chosen.loss.interval
    if drop is None or drop.high <= max_drop:
        return []
    return [
        f"{chosen.name}: {rows} rows cannot tell whether the budget of {100 * max_drop:g} points holds, since a drop "
        f"of {units.points(drop.high)} fits them too; give more rows"
    ]


def _saturation(name: str, record: QuantizeRecord, target: Target) -> list[str]:
    """Say when a processor without VNNI would calculate with sums that do not fit."""
    if target.relied_on(record.saturation_risk) is None:
        return []
    return [
        f"{name}: {units.share(record.saturation_risk)} of its neighbouring weight pairs can overflow 16 bits on x86 "
        "processors without VNNI, whose answers are then wrong; for those say --reduce-range"
    ]


def of_core(core: ModelProto) -> tuple[str, ...]:
    """Remarks on the float graph, for where it is not timed: weights that are slow for what they are."""
    weights = [
        numpy_helper.to_array(tensor) for tensor in core.graph.initializer if tensor.data_type == TensorProto.FLOAT
    ]
    sizes = [np.abs(weight) for weight in weights]
    count = sum(int(((size > 0) & (size < _SMALLEST)).sum()) for size in sizes)
    if not count:
        return ()
    return (
        f"{FLOAT}: {count} weights are subnormal (denormal) numbers, with which a CPU calculates many times more "
        "slowly; set those below 1e-30 to zero before the export",
    )
