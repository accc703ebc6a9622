"""A configuration as it is written: a preset, a file over it, and the command line over both, down to one mapping."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path, PurePath
from typing import Any

from distill.config.presets import preset_text, presets
from distill.documents import MOST_LEVELS, read_text
from distill.errors import UserError
from distill.plain_yaml import parse_yaml
from distill.prune.goals import GOALS
from distill.wording import nearest_names, quoted

_MOST_SECTIONS = 20
Raw = dict[str, Any]
"""A configuration as YAML has it: sections by their keys."""
STAGE_SECTIONS = ("distill", "prune", "quantize", "export", "benchmark")
PLACES = ("model", "source", "metric", "weights", "path")
"""Keys whose values may lie somewhere on the disk."""
SHORTHAND = {"teacher": "model", "student": "model", "data": "source", "target": "name"}
NAMED = SHORTHAND | {"loss": "name"}
"""Sections, and parts of them, that a bare name stands for, with the key of the name."""


def read_layers(source: str | Path | Mapping[str, Any] | None, overrides: Iterable[str]) -> tuple[Raw, list[str]]:
    """Return one mapping of sections, the source over the preset that it extends and overrides over both, and errors.

    What an error is about is left out of the mapping, so that its other errors can be told beside these.

    Args:
        source: a preset's name, a YAML file, a mapping, or None for ``digits``.
        overrides: ``section.key=value`` each, the value in YAML.

    Raises:
        UserError: there is no such file, or it is not YAML.
    """
    problems: list[str] = []
    raw, base = _read(source)
    # What a file says starts at its own folder, what the command line says at the current one.
    raw = {key: _rooted(key, value, base) for key, value in _extend(raw, problems).items()}
    for override in sorted(overrides, key=lambda text: not _chooses(text)):
        try:
            _override(raw, override)
        except UserError as error:
            problems.append(str(error))
    return {key: _expand(key, value) for key, value in raw.items()}, problems


def _read(source: str | Path | Mapping[str, Any] | None) -> tuple[Raw, Path]:
    if source is None:
        source = "digits"
    if isinstance(source, Mapping):
        return _plain(source), Path()
    if str(source) in presets():
        return {"extends": str(source)}, Path()
    path = Path(source)
    try:
        text = read_text(path)
    except FileNotFoundError as error:
        raise UserError(f"config={source}: neither a file nor a preset{presets_near(source)}") from error
    except OSError as error:
        near = sorted(str(file) for file in path.glob("*.yaml"))
        mend = f"name {' or '.join(near[:3])}" if near else "name a YAML file"
        raise UserError(f"config={source}: cannot be read ({error.strerror or error}); {mend}") from error
    except ValueError as error:
        raise UserError(f"config={source}: {error}") from error
    return _parse(text, str(source)), path.parent


def _plain(value: Any, place: str = "", levels: int = MOST_LEVELS) -> Any:
    """Return a mapping of Python's as YAML would have it: a path as text, a number of numpy's or torch's as Python's.

    Raises:
        UserError: it holds an object, or itself.
    """
    if isinstance(value, Mapping) and levels:
        return {str(key): _plain(item, f"{place}.{key}".lstrip("."), levels - 1) for key, item in value.items()}
    if isinstance(value, list | tuple) and levels:
        return [_plain(item, place, levels - 1) for item in value]
    if isinstance(value, PurePath):
        return str(value)
    if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):
        return value.item()
    if value is None or type(value) in (bool, int, float, str):
        return value
    if not levels:
        raise UserError(f"{place[:40]}: is nested too deeply")
    raise UserError(
        f"{place}: is a {type(value).__name__}; must be texts, numbers, lists and mappings, as YAML has them; models, "
        "data and metrics that are objects are arguments of distill.run"
    )


def presets_near(name: object) -> str:
    """Return the end of a message that a preset is unknown."""
    near = nearest_names(str(name), presets(), 1)
    hint = f"; did you mean {near[0]}?" if near else "."
    return f"{hint} Presets: {', '.join(presets())}"


def _parse(text: str, title: str) -> Raw:
    try:
        raw = parse_yaml(text)
    except ValueError as error:
        raise UserError(f"{title} {error}") from error
    if not isinstance(raw, dict) or not raw:
        kind = "is empty" if not raw else "is one text" if isinstance(raw, str) else f"is a {type(raw).__name__}"
        raise UserError(
            f"{title}: {kind}; must be sections, of which `extends: PRESET` alone is enough{presets_near(title)}"
        )
    return {str(key): value for key, value in raw.items()}


def _extend(raw: Raw, problems: list[str]) -> Raw:
    """Lay the mapping over the preset that it extends; a bare preset's name as ``task`` extends it too."""
    raw = dict(raw)
    name = raw.pop("extends", None)
    if name is None and isinstance(raw.get("task"), str) and raw["task"] in presets() and "data" not in raw:
        name = raw["task"]
    if name is None:
        return raw
    if not isinstance(name, str) or name not in presets():
        problems.append(f"extends={quoted(name)}: no such preset{presets_near(name)}")
        name = "digits"  # any, so that nothing counts as missing
    return _merge(_parse(preset_text(name), f"preset {name}"), raw)


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
        parsed = parse_yaml(value)
    except ValueError as error:
        raise UserError(f"--set {quoted(text)}: {error}") from error
    *sections, last = path.strip().split(".")
    if len(sections) > _MOST_SECTIONS:
        raise UserError(f"--set {quoted(text)}: is nested too deeply")
    if not sections and last in SHORTHAND and isinstance(parsed, str) and (last, parsed) != ("student", "teacher"):
        sections, last = [last], SHORTHAND[last]
    place = raw
    for section in sections:
        inner = place.get(section)
        if isinstance(inner, str) and section in NAMED:
            inner = {NAMED[section]: inner}
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
