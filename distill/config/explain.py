"""A configuration's errors: which field, which value, what it must be, and what it is for."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args, get_origin

from pydantic import ValidationError
from pydantic.fields import FieldInfo

Fields = Mapping[str, FieldInfo]


def explain(error: ValidationError, root: type[Any], raw: Mapping[str, Any]) -> list[str]:
    """Return one line an error of pydantic's: place, value, what is allowed, and what it means.

    ``raw`` is the mapping that was validated as the settings class ``root``.
    """
    lines: dict[str, None] = {}
    for problem in error.errors():
        place = [str(part) for part in problem["loc"] if not _is_branch(part)]
        path, kind, value = ".".join(place), problem["type"], problem["input"]
        field = _field_at(root, problem["loc"])
        tail = f"; {field.description}" if field and field.description else ""
        message = problem["msg"].removeprefix("Value error, ")
        if kind in ("unexpected_keyword_argument", "extra_forbidden"):
            section, union = _section_at(root, problem["loc"][:-1])
            lines[_unknown_key(path, value, section, union, raw)] = None
        elif kind in ("missing", "missing_argument", "missing_keyword_only_argument"):
            lines[f"{path}: is missing{tail}"] = None
        elif place == ["student"] or (place[:1] == ["student"] and kind == "literal_error"):
            if not isinstance(raw.get("student"), dict):
                lines[f"student={value!r}: must be a model, `teacher` or `off`"] = None
        elif kind in ("greater_than_equal", "greater_than", "less_than_equal", "less_than"):
            bounds = [*field.metadata, *_bounds(field.annotation)] if field else []
            lines[f"{path}={value!r}: must be {_interval(bounds)}{tail}"] = None
        elif kind == "value_error":
            # Of a section as a whole: the message names the fields and their values.
            lines[f"{path}: {message}"] = None
        else:
            lines[f"{path}={_short(value)}: {re.sub(r'^Input should be', 'must be', message)}{tail}"] = None
    return list(lines)


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


def _unknown_key(path: str, value: Any, section: type[Any] | None, union: Sequence[type[Any]], raw: Any) -> str:
    """Say what to do about a key that a section does not have, and which of its siblings in a union have it."""
    *parents, name = path.split(".")
    readers = [sibling for sibling in union if name in _fields(sibling)]
    tag = next((key for key, field in _fields(section).items() if readers and key in _tags(readers)), None)
    if tag is not None:
        for parent in parents:
            raw = raw[parent]
        others = dict.fromkeys(choice for reader in readers for choice in get_args(_fields(reader)[tag].annotation))
        return f"{path}={value} is not used by {tag}: {raw[tag]}, but by {', '.join(others)}; remove it"
    near = difflib.get_close_matches(name, _fields(section), 1)
    return f"{path}: unknown key; " + (f"did you mean {near[0]}?" if near else f"known: {', '.join(_fields(section))}")


def _tags(sections: Sequence[type[Any]]) -> list[str]:
    """Return the keys by whose literal values the sections of a union are told apart."""
    return [key for key, field in _fields(sections[0]).items() if get_origin(field.annotation) is Literal]


def _bounds(kind: Any) -> list[Any]:
    """Return the bounds on a type, and on the parts of a union or of several numbers."""
    return [*getattr(kind, "__metadata__", ()), *(bound for part in get_args(kind) for bound in _bounds(part))]


def _interval(rules: Sequence[Any]) -> str:
    bounds = ((name, getattr(rule, name, None)) for rule in rules for name in ("ge", "gt", "le", "lt"))
    limits = {name: bound for name, bound in bounds if bound is not None}
    low = f"[{limits['ge']}" if "ge" in limits else f"({limits['gt']}" if "gt" in limits else ""
    high = f"{limits['le']}]" if "le" in limits else f"{limits['lt']})" if "lt" in limits else ""
    if low and high:
        return f"in {low}, {high}"
    return f"at least {low[1:]}" if low.startswith("[") else f"above {low[1:]}" if low else f"at most {high[:-1]}"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "…"
