"""All errors of a configuration in one pass: what is wrong is set aside until the rest can be judged as a whole."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from distill.config.explain import MISSING, Place, explain, place_of

Config = TypeVar("Config")
_MOST_ROUNDS = 20
_ANY = "any"


def validate(root: type[Config], raw: Mapping[str, Any], **required: Any) -> tuple[Config, dict[str, Place]]:
    """Return a configuration without what is wrong in it, and a line for each error with its place.

    Args:
        root: the settings class of the whole.
        raw: sections by their keys.
        required: what stands for a section that must not be left out.
    """
    kept, lines = copy.deepcopy(dict(raw)), dict[str, Place]()
    adapter = TypeAdapter(root)
    for _ in range(_MOST_ROUNDS):
        try:
            config = adapter.validate_python(kept)
            break
        except ValidationError as error:
            aside = list(lines.values())
            for line, place in explain(error, root, kept).items():
                # What lacks a field that was set aside lacks nothing.
                if place not in aside and place[:1] not in aside:
                    lines[line] = place
            for problem in error.errors():
                _set_aside(kept, place_of(problem), problem["type"], required)
    else:
        config = adapter.validate_python(required)
    for line, place in _switches(raw, config, ()):
        lines.setdefault(line, place)
    return config, lines


def _set_aside(raw: dict[str, Any], place: Place, kind: str, required: Mapping[str, Any]) -> None:
    """Take a wrong value out of a configuration; what is missing gets any value."""
    *parents, name = place
    section: Any = raw
    for parent in parents:
        if not isinstance(section.get(parent), dict):
            name, section = parent, section  # a list: all of it goes
            break
        section = section[parent]
    top = place[0]
    if kind in MISSING and section is not raw and name not in section:
        section[name] = _ANY
    elif section is raw or name == "source" or name not in section:
        raw.pop(top, None)
        raw |= {key: value for key, value in required.items() if key == top}
    else:
        del section[name]


def _switches(raw: Any, config: Any, place: Place) -> Iterator[tuple[str, Place]]:
    """Yield an error for each true and false that stands where a number belongs, as which Python would take it."""
    if isinstance(raw, bool) and type(config) in (int, float):
        yield f"{'.'.join(place)}={str(raw).lower()}: must be a number", place
    elif isinstance(raw, Mapping) and dataclasses.is_dataclass(config):
        for key, value in raw.items():
            yield from _switches(value, getattr(config, str(key), None), (*place, str(key)))
    elif isinstance(raw, list) and isinstance(config, tuple):
        for number, (value, read) in enumerate(zip(raw, config, strict=False)):
            yield from _switches(value, read, (*place, str(number)))
