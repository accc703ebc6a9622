"""A configuration's errors: which field, which value, what it must be, and what it is for."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, get_args, get_origin

from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from distill.wording import nearest_names, quoted

Fields = Mapping[str, FieldInfo]
Place = tuple[str, ...]
"""The keys that lead to a value in a configuration."""
MISSING = ("missing", "missing_argument", "missing_keyword_only_argument")
_UNKNOWN = ("unexpected_keyword_argument", "extra_forbidden")
_BOUNDED = ("greater_than_equal", "greater_than", "less_than_equal", "less_than", "finite_number")


def explain(error: ValidationError, root: type[Any], raw: Mapping[str, Any]) -> dict[str, Place]:
    """Return a line for each error of pydantic's, and where it is: place, value, what is allowed, and what it means.

    ``raw`` is the mapping that was validated as the settings class ``root``.
    """
    lines: dict[str, Place] = {}
    for problem in error.errors():
        place = place_of(problem)
        path, kind, value = ".".join(place), problem["type"], problem["input"]
        field = _field_at(root, problem["loc"])
        tail = f"; {field.description}" if field and field.description else ""
        message = problem["msg"].removeprefix("Value error, ")
        bounds = [*field.metadata, *_bounds(field.annotation)] if field else []
        if kind in _UNKNOWN:
            section, union = _section_at(root, problem["loc"][:-1])
            line = _unknown_key(place, value, (section, union), root, raw)
        elif kind in MISSING:
            line = f"{path}: is missing{tail}"
        elif place == ("student",) or (place[:1] == ("student",) and kind == "literal_error"):
            if isinstance(raw.get("student"), dict):
                continue
            line = f"student={quoted(value)}: must be a model, `teacher` or `off`"
        elif kind in _BOUNDED and _interval(bounds):
            line = f"{path}={quoted(value)}: must be {_interval(bounds)}{tail}"
        elif kind == "value_error":
            # Of a section as a whole: the message names the fields and their values.
            line = f"{path}: {message}"
        else:
            line = f"{path}={quoted(value)}: {re.sub(r'^Input should be', 'must be', message)}{tail}"
        lines[line] = place
    return lines


def place_of(problem: ErrorDetails) -> Place:
    """Return where an error is, without the branches of unions on the way."""
    *parts, last = problem["loc"] or ("",)
    kept = [*(part for part in parts if not _is_branch(part)), last]
    if problem["type"] not in _UNKNOWN and _is_branch(last):
        kept.pop()
    return tuple(map(str, kept))


def _is_branch(part: str | int) -> bool:
    """Tell whether a part of an error's place names a branch of a union rather than a key."""
    return isinstance(part, str) and (part.endswith(("Settings", "Section")) or "[" in part)


def _fields(section: type[Any] | None) -> Fields:
    return getattr(section, "__pydantic_fields__", {})


def _sections(annotation: Any) -> list[type[Any]]:
    """Return the settings classes that an annotation names."""
    if _fields(annotation):
        return [annotation]
    return [section for part in get_args(annotation) for section in _sections(part)]


def _section_at(root: type[Any], place: Sequence[str | int]) -> tuple[type[Any] | None, list[type[Any]]]:
    """Return the settings class at a place below the root, None where there is none, and those that it stands among."""
    section: type[Any] | None = root
    union = [root]
    for part in place:
        if _is_branch(part):
            section = next((branch for branch in union if branch.__name__ == str(part).strip("[]")), section)
        else:
            union = _sections(getattr(_fields(section).get(str(part)), "annotation", None))
            section = next(iter(union), None)
    return section, union


def _field_at(root: type[Any], place: Sequence[str | int]) -> FieldInfo | None:
    """Return the field at a place, also of one of several numbers in it."""
    while place and (isinstance(place[-1], int) or _is_branch(place[-1])):
        place = place[:-1]
    return _fields(_section_at(root, place[:-1])[0]).get(str(place[-1])) if place else None


def _unknown_key(
    place: Place, value: Any, at: tuple[type[Any] | None, Sequence[type[Any]]], root: type[Any], raw: Any
) -> str:
    """Say what to do about a key that a section does not have: who has it, or what it may stand for."""
    *parents, name = place
    (section, union), path = at, ".".join(place)
    readers = [sibling for sibling in union if name in _fields(sibling)]
    tag = next((key for key, field in _fields(section).items() if readers and key in _tags(readers)), None)
    if tag is not None:
        for parent in parents:
            raw = raw[parent]
        others = dict.fromkeys(choice for reader in readers for choice in get_args(_fields(reader)[tag].annotation))
        return f"{path}={quoted(value)} is not used by {tag}: {raw[tag]}, but by {', '.join(others)}; remove it"
    homes = [home for home in _homes(name, root) if home != path]
    if homes:
        return f"{path}: unknown key; it is set as {' or '.join(homes)}"
    near = nearest_names(name, _fields(section), 1)
    return f"{path}: unknown key; " + (f"did you mean {near[0]}?" if near else f"known: {', '.join(_fields(section))}")


def _homes(name: str, root: type[Any]) -> Iterator[str]:
    """Yield the places of a configuration, not deeper than its sections, where a key of this name is known."""
    for key, field in _fields(root).items():
        if key == name:
            yield key
        elif any(name in _fields(section) for section in _sections(field.annotation)):
            yield f"{key}.{name}"


def _tags(sections: Sequence[type[Any]]) -> list[str]:
    """Return the keys by whose literal values the sections of a union are told apart."""
    return [key for key, field in _fields(sections[0]).items() if get_origin(field.annotation) is Literal]


def _bounds(kind: Any) -> list[Any]:
    """Return the bounds on a type, and on the parts of a union or of several numbers."""
    return [*getattr(kind, "__metadata__", ()), *(bound for part in get_args(kind) for bound in _bounds(part))]


def _interval(rules: Sequence[Any]) -> str:
    """Write bounds as an interval; empty where there are none."""
    bounds = ((name, getattr(rule, name, None)) for rule in rules for name in ("ge", "gt", "le", "lt"))
    limits = {name: bound for name, bound in bounds if bound is not None}
    low = f"[{limits['ge']}" if "ge" in limits else f"({limits['gt']}" if "gt" in limits else ""
    high = f"{limits['le']}]" if "le" in limits else f"{limits['lt']})" if "lt" in limits else ""
    if low and high:
        return f"in {low}, {high}"
    if low:
        return f"{'at least' if low.startswith('[') else 'above'} {low[1:]}"
    return f"{'at most' if high.endswith(']') else 'below'} {high[:-1]}" if high else ""
