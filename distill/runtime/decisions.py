"""Decisions of an earlier run, read from its run.json to be done again.

The file may come from a stranger: it may hold only what a run decides, each value of its type. What the search chose is
checked beside the configuration, which says what it may choose (`distill.study.space`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from distill.documents import read_json
from distill.errors import UserError
from distill.runtime.facts import Decision

_STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
SHIP = "ship"
"""The decision of what ships where nothing meets the budget."""
WIDTHS = "prune-widths"
"""The decision of how many units of each group went, where that was measured."""


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class _Trial:
    params: dict[str, float]
    values: tuple[float, float]


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class _Search:
    chosen: dict[str, float]
    trial: int
    metric: float
    macs: float
    goal: float
    trials: list[_Trial]


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class _Skipped:
    name: str
    returns: str | list[str | None]


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class _Step:
    skipped: list[_Skipped]
    gone: dict[str, Annotated[int, Ge(0)]]


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class _Limited:
    value: float
    limit: float


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class _Ship:
    final: str
    reason: str
    candidates: dict[str, dict[str, _Limited]]


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class _Decisions:
    search: _Search | None = None
    prune: Decision | None = None
    quantize: Decision | None = None
    ship: _Ship | None = None
    widths: list[_Step] | None = Field(default=None, alias="prune-widths")


def read_decisions(path: Path) -> Mapping[str, Any]:
    """Return the decisions that a run.json holds, by stage, as JSON values.

    Raises:
        UserError: it is no run.json, or holds something else than decisions.
    """
    option = f"--decisions {path}"
    try:
        text = json.dumps(read_json(path, finite=True)["decisions"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{option}: not the run.json of a finished run ({type(error).__name__})") from error
    adapter = TypeAdapter(_Decisions)
    try:
        decisions: Mapping[str, Any] = adapter.dump_python(adapter.validate_json(text), mode="json", by_alias=True)
    except ValidationError as error:
        places = [(".".join(map(str, wrong["loc"])) or "decisions", wrong["msg"]) for wrong in error.errors()]
        lines = [f"{option}: {place}: {message[:1].lower()}{message[1:]}" for place, message in places[:10]]
        raise UserError("\n".join(lines)) from error
    return {name: decision for name, decision in decisions.items() if decision is not None}
