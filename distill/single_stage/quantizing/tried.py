"""What the verb `quantize` tried, as JSON."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from typing import Any

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
    written = {
        "model": model,
        "target": target,
        "max_drop": max_drop,
        "rows": rows,
        "judged": choice.judged,
        "chosen": choice.chosen.name,
        "why": choice.why,
        "candidates": [
            {
                "name": one.name,
                "within": one.within,
                **_lost(one.loss),
                "file_bytes": one.file_bytes,
                "ratio": None if one.ratio is None else asdict(one.ratio),
                "ratios": [asdict(ratio) for ratio in one.ratios],
                "record": None if one.record is None else asdict(one.record),
            }
            for one in choice.candidates
        ],
        "attempts": [{"name": one.name, **_lost(one.loss), "floats": list(one.floats)} for one in choice.attempts],
        "sensitivity": [{**asdict(one), "divergence": _finite(one.divergence)} for one in choice.sensitivity],
        "warnings": list(choice.warnings),
    }
    return json.dumps(written, indent=1, allow_nan=False) + "\n"


def _lost(loss: Loss) -> dict[str, Any]:
    return {
        "drop": _finite(loss.drop),
        "interval": None if loss.interval is None else [_finite(loss.interval.low), _finite(loss.interval.high)],
        "divergence": _finite(loss.divergence),
        "fault": loss.fault,
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
