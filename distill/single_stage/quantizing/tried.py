"""What the verb `quantize` tried, as JSON."""

from __future__ import annotations

import json

from distill.documents import plain
from distill.quantize.choose import Choice
from distill.quantize.repair import Loss


def to_json(choice: Choice, *, model: str, target: str, max_drop: float, rows: int) -> str:
    """Write down what was tried and chosen; drops are fractions, and what is not finite is null.

    Args:
        choice: what was tried and chosen.
        model: what it was made from, as it was said.
        target: what it ships to.
        max_drop: the budget.
        rows: how many were judged.
    """
    record = {
        "model": model,
        "target": target,
        "max_drop": max_drop,
        "rows": rows,
        "judged": choice.judged,
        "chosen": choice.chosen.name,
        "why": choice.why,
        "candidates": [
            {
                "name": candidate.name,
                "within": candidate.within,
                **_lost(candidate.loss),
                "file_bytes": candidate.file_bytes,
                "ratio": candidate.ratio,
                "ratios": candidate.ratios,
                "record": candidate.record,
            }
            for candidate in choice.candidates
        ],
        "attempts": [
            {"name": attempt.name, **_lost(attempt.loss), "floats": attempt.floats} for attempt in choice.attempts
        ],
        "sensitivity": choice.sensitivity,
        "warnings": choice.warnings,
    }
    return json.dumps(plain(record), indent=1, allow_nan=False) + "\n"


def _lost(loss: Loss) -> dict[str, object]:
    interval = None if loss.interval is None else (loss.interval.low, loss.interval.high)
    return {"drop": loss.drop, "interval": interval, "divergence": loss.divergence, "fault": loss.fault}
