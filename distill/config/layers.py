"""A configuration as it is written: a preset, a file over it, and the command line over both, down to one mapping."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from distill.config.presets import preset_text, presets
from distill.documents import parse_yaml
from distill.errors import UserError
from distill.prune.goals import GOALS

Raw = dict[str, Any]
"""A configuration as YAML has it: sections by their keys."""
STAGE_SECTIONS = ("distill", "prune", "quantize", "export", "benchmark")
PLACES = ("model", "source", "metric", "weights", "path")
"""Keys whose values may lie somewhere on the disk."""
SHORTHAND = {"teacher": "model", "student": "model", "data": "source", "target": "name"}


def read_layers(source: str | Path | Mapping[str, Any] | None, overrides: Iterable[str]) -> Raw:
    """Return one mapping of sections: the source over the preset that it extends, overrides over both.

    Args:
        source: a preset's name, a YAML file, a mapping, or None for ``digits``.
        overrides: ``section.key=value`` each, the value in YAML.

    Raises:
        UserError: no such file or preset, or something is not YAML.
    """
    raw, base = _read(source)
    # What a file says starts at its own folder, what the command line says at the current one.
    raw = {key: _rooted(key, value, base) for key, value in _extend(raw, ()).items()}
    for override in sorted(overrides, key=lambda text: not _chooses(text)):
        _override(raw, override)
    return {key: _expand(key, value) for key, value in raw.items()}


class _Loader(yaml.SafeLoader):
    """YAML in which 1e-3 is a number, as everywhere else, and a key that comes twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Build a mapping; of a key that comes twice YAML's own loader would keep the last, silently."""
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen and key.value != "<<":
                raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} comes twice", key.start_mark)
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"^[-+]?(?:[0-9][0-9_]*\.?[0-9_]*(?:[eE][-+]?[0-9]+)|\.?[0-9][0-9_]*\.[0-9_]*|\.[0-9_]+"
        r"(?:[eE][-+]?[0-9]+)?|\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
    ),
    list("-+0123456789."),
)


def _read(source: str | Path | Mapping[str, Any] | None) -> tuple[Raw, Path]:
    if source is None:
        source = "digits"
    if isinstance(source, Mapping):
        return json.loads(json.dumps(dict(source), default=str)), Path()
    path = Path(source)
    if str(source) in presets():
        return {"extends": str(source)}, Path()
    if not path.is_file():
        raise UserError(f"config={source}: neither a file nor a preset{_presets_near(source)}")
    return _parse(path.read_text(encoding="utf-8", errors="replace"), str(path)), path.parent


def _presets_near(name: object) -> str:
    """Return the end of a message that a preset is unknown."""
    near = difflib.get_close_matches(str(name), presets(), 1)
    hint = f"; did you mean {near[0]}?" if near else "."
    return f"{hint} Presets: {', '.join(presets())}"


def _parse(text: str, title: str) -> Raw:
    try:
        raw = parse_yaml(text, _Loader)
    except (yaml.YAMLError, ValueError) as error:
        place = getattr(error, "problem_mark", None)
        line = f" line {place.line + 1}" if place else ""
        raise UserError(f"{title}{line}: not YAML ({getattr(error, 'problem', error)})") from error
    if raw is None:
        raw = {}
    if not isinstance(raw, dict):
        raise UserError(f"{title}: must be a mapping of sections, is {type(raw).__name__}")
    return {str(key): value for key, value in raw.items()}


def _extend(raw: Raw, seen: tuple[str, ...]) -> Raw:
    """Lay the mapping over the preset that it extends; a bare preset's name as ``task`` extends it too."""
    raw = dict(raw)
    name = raw.pop("extends", None)
    if name is None and not seen and raw.get("task") in presets() and "data" not in raw:
        name = raw["task"]
    if name is None:
        return raw
    if not isinstance(name, str) or name not in presets():
        raise UserError(f"extends={name!r}: no such preset{_presets_near(name)}")
    return _merge(_extend(_parse(preset_text(name), f"preset {name}"), (*seen, name)), raw)


def _merge(base: Raw, over: Mapping[str, Any]) -> Raw:
    """Lay a mapping over another; what chooses a goal, a source or a model displaces what belonged to the old."""
    merged = dict(base)
    if set(over) & set(GOALS):
        # Another goal takes the place of the one below it.
        merged = {key: value for key, value in merged.items() if key not in GOALS}
    for key, entry in over.items():
        before = merged.get(key)
        shorthand = key in SHORTHAND and isinstance(entry, str) and entry not in ("teacher", "off")
        value: Any = {SHORTHAND[key]: entry} if shorthand and isinstance(before, dict) else entry
        if key in ("args", "augment") or not (isinstance(before, dict) and isinstance(value, Mapping)):
            merged[key] = value
        elif "source" in value and value["source"] != before.get("source"):
            merged[key] = dict(value)
        elif "model" in value and value["model"] != before.get("model"):
            # Another model: the old one's arguments and weights are not its own.
            merged[key] = _merge({k: v for k, v in before.items() if k not in ("args", "weights")}, value)
        else:
            merged[key] = _merge(before, value)
    return merged


def _override(raw: Raw, text: str) -> None:
    path, equals, value = text.partition("=")
    if not equals or not path.strip():
        raise UserError(f"--set {text}: must be section.key=value, for example prune.ratio=0.4")
    try:
        parsed = parse_yaml(value, _Loader)
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"--set {text}: {value!r} is not YAML") from error
    *sections, last = path.strip().split(".")
    if not sections and last in SHORTHAND and isinstance(parsed, str) and (last, parsed) != ("student", "teacher"):
        sections, last = [last], SHORTHAND[last]
    place = raw
    for section in sections:
        inner = place.get(section)
        if isinstance(inner, str) and section in SHORTHAND:
            inner = {SHORTHAND[section]: inner}
        elif not isinstance(inner, dict):
            inner = {}
        place[section] = inner = dict(inner)
        place = inner
    if sections and sections[0] in SHORTHAND and last == SHORTHAND[sections[0]] and place.get(last) != parsed:
        # As in a file: another model has other arguments and weights, another source other fields.
        for stale in list(place) if last == "source" else ("args", "weights"):
            place.pop(stale, None)
    if sections == ["prune"] and last in GOALS:
        for stale in GOALS:
            place.pop(stale, None)
    place[last] = parsed


def _chooses(override: str) -> bool:
    """Tell whether an override picks a model or a source; those go first, whatever their order."""
    path = override.partition("=")[0].strip()
    return path in SHORTHAND or path in [f"{section}.{name}" for section, name in SHORTHAND.items()]


def _rooted(key: str, value: Any, base: Path) -> Any:
    """Make the paths of a section relative to the folder of the file that holds it."""
    if key not in SHORTHAND or base == Path():
        return value
    if isinstance(value, str):
        return _rooted_reference(value, base)
    if not isinstance(value, dict):
        return value
    rooted = dict(value)
    for name, entry in value.items():
        if not isinstance(entry, str):
            continue
        if name in ("model", "source", "metric"):
            rooted[name] = _rooted_reference(entry, base)
        elif name in ("weights", "path") and not entry.startswith("~"):
            rooted[name] = str(base / entry)
    return rooted


def _rooted_reference(text: str, base: Path) -> str:
    place, _, name = text.rpartition(":")
    if not place.endswith(".py") or place.startswith("~") or Path(place).is_absolute():
        return text
    return f"{base / place}:{name}" if base.is_absolute() else f"./{base / place}:{name}"


def _expand(key: str, value: Any) -> Any:
    """Turn shorthands into sections."""
    if key == "student" and value in ("teacher", "off", False, None):
        return None if value in ("off", False, None) else value
    if key in STAGE_SECTIONS:
        if value in ("off", False):
            return None
        if value in (None, "on", True):
            return {}
    if key in SHORTHAND and isinstance(value, str):
        return {SHORTHAND[key]: value}
    return value
