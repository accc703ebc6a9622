"""A configuration's errors in words: which field, which value, what it must be, and what it is for."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any, get_args

from pydantic import ValidationError


def explain(error: ValidationError, root: type[Any], raw: Mapping[str, Any]) -> list[str]:
    """Return one line an error: place, value, what is allowed, and what it means.

    Args:
        error: what pydantic raised.
        root: the settings class that was validated.
        raw: the mapping that was validated.
    """
    lines: dict[str, None] = {}
    for one in error.errors():
        place = [str(part) for part in one["loc"] if not _is_branch(part)]
        branches = {str(part).strip("[]") for part in one["loc"] if _is_branch(part)}
        path, kind, value = ".".join(place), one["type"], one["input"]
        fields, described = _fields_at(root, place[:-1], branches), ""
        if place[-1].isdigit() and len(place) > 1:
            described = str(getattr(_fields_at(root, place[:-2]).get(place[-2]), "description", "") or "")
        elif fields and place[-1] in fields:
            described = str(fields[place[-1]].description or "")
        tail = f"; {described}" if described else ""
        if kind in ("unexpected_keyword_argument", "extra_forbidden"):
            near = difflib.get_close_matches(place[-1], fields, 1)
            hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(fields)}"
            lines[f"{path}: unknown key; {hint}"] = None
        elif kind in ("missing", "missing_argument", "missing_keyword_only_argument"):
            lines[f"{path}: is missing{tail}"] = None
        elif place == ["student"] or (place[:1] == ["student"] and kind == "literal_error"):
            if not isinstance(raw.get("student"), dict):
                lines[f"student={value!r}: must be a model, `teacher` or `off`"] = None
        elif kind in ("greater_than_equal", "greater_than", "less_than_equal", "less_than"):
            lines[f"{path}={value!r}: must be {_interval(_rules(root, place, fields))}{tail}"] = None
        elif kind == "value_error":
            # Of a section as a whole: the message names the fields and their values.
            lines[f"{path}: {one['msg'].removeprefix('Value error, ')}"] = None
        else:
            message = one["msg"].removeprefix("Value error, ")
            message = re.sub(r"^Input should be", "must be", message)
            lines[f"{path}={_short(value)}: {message}{tail}"] = None
    return list(lines)


def _is_branch(part: Any) -> bool:
    """Tell whether a part of an error's place names a branch of a union rather than a key."""
    return isinstance(part, str) and (part.endswith("Settings") or part.endswith("Section") or "[" in part)


def _fields_at(root: Any, path: list[str], branches: Collection[str] = ()) -> dict[str, Any]:
    """Return the fields of the settings class at a place below the root; none where there is no such class.

    Of several classes that may stand at a place, ``branches`` names the one that was tried.
    """
    kind = root
    for name in path:
        annotation = getattr(kind.__pydantic_fields__.get(name), "annotation", None)
        options = (annotation, *get_args(annotation))
        kinds = [option for option in options if hasattr(option, "__pydantic_fields__")]
        kind = next((option for option in kinds if option.__name__ in branches), kinds[0] if kinds else None)
        if kind is None:
            return {}
    return dict(kind.__pydantic_fields__)


def _rules(root: Any, place: list[str], fields: dict[str, Any]) -> Sequence[Any]:
    """Return the bounds on a field's type, or on the parts of a field that holds several numbers."""
    if not place[-1].isdigit():
        field = fields.get(place[-1])
        # The bounds of `Annotated[int, …] | None` lie on a part of the union.
        parts = [rule for part in get_args(getattr(field, "annotation", None)) for rule in _bounds(part)]
        return (*getattr(field, "metadata", ()), *parts)
    whole = _fields_at(root, place[:-2]).get(place[-2]) if len(place) > 1 else None
    return [rule for part in get_args(getattr(whole, "annotation", None)) for rule in _bounds(part)]


def _bounds(kind: Any) -> Sequence[Any]:
    return getattr(kind, "__metadata__", ())


def _interval(rules: Sequence[Any]) -> str:
    low, high = "", ""
    for rule in rules:
        if (bound := getattr(rule, "ge", None)) is not None:
            low = f"[{bound}"
        if (bound := getattr(rule, "gt", None)) is not None:
            low = f"({bound}"
        if (bound := getattr(rule, "le", None)) is not None:
            high = f"{bound}]"
        if (bound := getattr(rule, "lt", None)) is not None:
            high = f"{bound})"
    if low and high:
        return f"in {low}, {high}"
    return f"at least {low[1:]}" if low.startswith("[") else f"above {low[1:]}" if low else f"at most {high[:-1]}"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "…"
