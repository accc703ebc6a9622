"""Every remark that the verb `quantize` makes on what it made, each with what mends it."""

from __future__ import annotations

from collections.abc import Sequence

from distill.benchmarks import units
from distill.benchmarks.target import Target
from distill.intervals import Estimate
from distill.quantize.choose_precision import Candidate, Choice, unresolved


def of_choice(choice: Choice, target: Target, *, rows: int, max_drop: float) -> list[str]:
    """Remarks on the candidates whose answers are none, and on the one that ships.

    ``rows`` were judged, and ``max_drop`` is the budget, as a fraction.
    """
    broken = [candidate for candidate in choice.candidates if candidate.loss.fault]
    warnings = [f"{candidate.name}: {candidate.loss.fault}, so it cannot ship" for candidate in broken]
    name, record, drop = choice.chosen.name, choice.chosen.record, choice.chosen.loss.interval
    if record is None:
        return warnings
    if drop is not None and drop.high > max_drop:
        warnings.append(_open_budget(name, drop, rows, max_drop))
    if target.relied_on(record.saturation_risk) is not None:
        warnings.append(
            f"{name}: {units.share(record.saturation_risk)} of its neighbouring weight pairs can overflow 16 bits on "
            "x86 processors without VNNI, whose answers are then wrong; for those say --reduce-range"
        )
    return warnings


def unproven(choice: Choice, timed: Sequence[Candidate], *, rows: int, max_drop: float) -> list[str]:
    """Say what could not be resolved of the choice: by rows, as `of_choice` takes them, and, of ``timed``, by time."""
    drop = choice.chosen.loss.interval
    if choice.chosen.record is None:
        return [choice.why] if unresolved(timed) is not None else []
    return [] if drop is None or drop.high <= max_drop else [_open_budget(choice.chosen.name, drop, rows, max_drop)]


def _open_budget(name: str, drop: Estimate, rows: int, max_drop: float) -> str:
    return (
        f"{name}: {rows} rows cannot tell whether the budget of {100 * max_drop:g} points holds, since a drop of "
        f"{units.points(drop.high)} fits them too; give more rows"
    )
