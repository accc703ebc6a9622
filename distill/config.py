"""The configuration of a run: one section a stage, read from YAML, a preset, or a mapping.

Everything is checked in one pass, before any data is read, and every error is reported with its place, its value and
the mend.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from annotated_types import Ge, Gt, Le
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from distill.benchmarks.settings import BenchmarkSettings
from distill.errors import UserError
from distill.export.settings import ExportSettings
from distill.presets import preset_text, presets
from distill.prune.settings import PruneSettings
from distill.quantize.settings import QuantizeSettings
from distill.tasks.settings import DataSettings
from distill.training import TrainSettings

_STRICT = ConfigDict(extra="forbid")


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class ModelSettings:
    """A model by reference."""

    model: str = Field(
        description="built-in name, timm:NAME, torchvision:NAME, package.module:function or ./file.py:function"
    )
    args: dict[str, Any] = Field(default_factory=dict, description="keyword arguments of the model's factory")


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class TeacherSettings(TrainSettings):
    """The teacher: loaded when ``weights`` is given, else trained with the settings here."""

    model: str = Field(description="as in student.model")
    args: dict[str, Any] = Field(default_factory=dict, description="keyword arguments of the model's factory")
    weights: Path | None = Field(
        default=None, description="safetensors, or a checkpoint that torch reads with weights_only=True"
    )
    pretrained: bool = Field(
        default=False, description="the factory returns a model that is trained already: do not train it"
    )


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class DistillSettings(TrainSettings):
    """How the student learns from the teacher's soft logits."""

    loss: Literal["kd"] = Field(default="kd", description="kd: (1 - weight)*hard + weight*T^2*KL")
    temperature: Annotated[float, Gt(0), Le(100)] = Field(
        default=4.0, description="softens both distributions; 1 leaves them as they are, 2 to 8 is usual"
    )
    weight: Annotated[float, Ge(0), Le(1)] = Field(
        default=0.9, description="share of the soft loss; 0 is training without a teacher"
    )
    views: Annotated[int, Ge(0)] = Field(
        default=8,
        description="augmented views that repeat in turn, so that the teacher answers once for each; 0: a new view "
        "every epoch, with the teacher in the loop",
    )
    control: bool = Field(
        default=True, description="also train the student without the teacher for the same steps, to compare"
    )


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class PruneSection(PruneSettings):
    """Structured pruning, and the distillation that recovers from it."""

    epochs: Annotated[int, Ge(0)] = Field(default=5, description="epochs of distillation after pruning")
    learning_rate: Annotated[float, Gt(0), Le(100)] = Field(default=0.02, description="of the recovery")


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class SearchSettings:
    """What Optuna may choose before the full run, on validation data."""

    trials: Annotated[int, Ge(0)] = Field(default=0, description="0 is no search")
    epochs: Annotated[float, Gt(0), Le(1)] = Field(
        default=0.25, description="share of distill.epochs that a trial trains"
    )
    temperature: tuple[float, float] = Field(default=(1.0, 8.0), description="range")
    weight: tuple[float, float] = Field(default=(0.3, 1.0), description="range")
    learning_rate: tuple[float, float] = Field(
        default=(0.3, 3.0), description="range, as a factor on distill.learning_rate"
    )
    ratio: tuple[float, float] = Field(default=(0.0, 0.6), description="range of prune.ratio")


@dataclass(frozen=True, kw_only=True, config=_STRICT)
class RunConfig:
    """A whole run."""

    task: str = Field(description="name of the run: a preset, or any word with a data section")
    teacher: TeacherSettings = Field(description="the model to be compressed")
    student: ModelSettings | Literal["teacher"] | None = Field(
        default="teacher", description="a smaller model; `teacher` starts from the teacher's own weights; off: likewise"
    )
    data: DataSettings = Field(default_factory=DataSettings, description="what it is trained and judged on")
    distill: DistillSettings | None = Field(default_factory=DistillSettings, description="or off")
    prune: PruneSection | None = Field(default_factory=PruneSection, description="or off")
    quantize: QuantizeSettings | None = Field(default_factory=QuantizeSettings, description="or off")
    export: ExportSettings | None = Field(default_factory=ExportSettings, description="or off")
    benchmark: BenchmarkSettings | None = Field(default_factory=BenchmarkSettings, description="or off")
    search: SearchSettings = Field(default_factory=SearchSettings, description="hyperparameters chosen by Optuna")
    device: Literal["auto", "cpu", "cuda"] = Field(default="auto", description="what trains")
    target: Literal["x86", "arm", "cuda", "tensorrt"] | None = Field(
        default=None, description="what the model is shipped to; none is the device that trains"
    )
    max_drop: Annotated[float, Ge(0), Le(1)] = Field(
        default=0.01, description="how much of the metric may be lost against the teacher; 0.01 is one point"
    )
    objective: Literal["latency", "size"] = Field(default="latency", description="what a stage has to improve")
    seed: Annotated[int, Ge(0)] = Field(default=0, description="of weights, order, augmentation and splits")


STAGE_SECTIONS = ("distill", "prune", "quantize", "export", "benchmark")
_SHORTHAND = {"teacher": "model", "student": "model", "data": "source"}


def load_config(
    source: str | Path | Mapping[str, Any] | RunConfig | None = None, overrides: Iterable[str] = ()
) -> RunConfig:
    """Read a configuration.

    Args:
        source: a preset's name, a YAML file, a mapping, or None for ``digits``.
        overrides: ``section.key=value`` each, the value in YAML; they win over the source.

    Raises:
        UserError: every error of the configuration at once, a line each.
    """
    if isinstance(source, RunConfig):
        source = to_dict(source)
    raw, base = _read(source)
    raw = _extend(raw, ())
    for override in overrides:
        _override(raw, override)
    raw = {key: _expand(key, value, base) for key, value in raw.items()}
    try:
        config = TypeAdapter(RunConfig).validate_python(raw)
    except ValidationError as error:
        raise UserError("\n".join(_explain(error, raw))) from error
    problems = _contradictions(config)
    if problems:
        raise UserError("\n".join(problems))
    return config


def to_dict(config: RunConfig) -> dict[str, Any]:
    """Return the configuration as plain JSON values; ``load_config`` reads it back."""
    return TypeAdapter(RunConfig).dump_python(config, mode="json")  # type: ignore[no-any-return]


def config_hash(config: RunConfig) -> str:
    """Return eight hexadecimal digits that stand for the whole configuration."""
    return hashlib.sha256(json.dumps(to_dict(config), sort_keys=True).encode()).hexdigest()[:8]


def schema() -> dict[str, Any]:
    """Return the JSON schema of a configuration file, shorthands included, for editors."""
    built = TypeAdapter(RunConfig).json_schema()
    properties = built["properties"]
    properties["extends"] = {"type": "string", "description": "a preset to start from", "enum": list(presets())}
    for key in _SHORTHAND:
        properties[key] = {"anyOf": [properties[key], {"type": "string"}], "description": "a reference, or a section"}
    for key in (*STAGE_SECTIONS, "student"):
        properties[key] = {"anyOf": [properties[key], {"type": "boolean"}, {"const": "off"}]}
    built["required"] = []
    built["title"] = "distill configuration"
    return built


class _Loader(yaml.SafeLoader):
    """YAML in which 1e-3 is a number, as everywhere else."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:[0-9][0-9_]*\.?[0-9_]*(?:[eE][-+]?[0-9]+)|\.?[0-9][0-9_]*\.[0-9_]*|\.[0-9_]+"
               r"(?:[eE][-+]?[0-9]+)?|\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"),
    list("-+0123456789."),
)


def _read(source: str | Path | Mapping[str, Any] | None) -> tuple[dict[str, Any], Path]:
    if source is None:
        source = "digits"
    if isinstance(source, Mapping):
        return json.loads(json.dumps(dict(source), default=str)), Path()
    known = presets()
    path = Path(source)
    if str(source) in known:
        return {"extends": str(source)}, Path()
    if not path.is_file():
        near = difflib.get_close_matches(str(source), known, 1)
        hint = f"; did you mean {near[0]}?" if near else "."
        raise UserError(f"config={source}: neither a file nor a preset{hint} Presets: {', '.join(known)}")
    return _parse(path.read_text(encoding="utf-8", errors="replace"), str(path)), path.parent


def _parse(text: str, where: str) -> dict[str, Any]:
    try:
        raw = yaml.load(text, _Loader)  # noqa: S506: a SafeLoader
    except yaml.YAMLError as error:
        place = getattr(error, "problem_mark", None)
        line = f" line {place.line + 1}" if place else ""
        raise UserError(f"{where}{line}: not YAML ({getattr(error, 'problem', error)})") from error
    if raw is None:
        raw = {}
    if not isinstance(raw, dict):
        raise UserError(f"{where}: must be a mapping of sections, is {type(raw).__name__}")
    return {str(key): value for key, value in raw.items()}


def _extend(raw: dict[str, Any], seen: tuple[str, ...]) -> dict[str, Any]:
    """Lay the mapping over the preset that it extends; a bare preset's name as ``task`` extends it too."""
    known = presets()
    raw = dict(raw)
    name = raw.pop("extends", None)
    if name is None and not seen and raw.get("task") in known and "data" not in raw:
        name = raw["task"]
    if name is None:
        return raw
    if name not in known:
        near = difflib.get_close_matches(str(name), known, 1)
        hint = f"; did you mean {near[0]}?" if near else "."
        raise UserError(f"extends={name!r}: no such preset{hint} Presets: {', '.join(known)}")
    text = preset_text(name)
    return _merge(_extend(_parse(text, f"preset {name}"), (*seen, name)), raw)


def _merge(base: dict[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, given in over.items():
        value, before = given, merged.get(key)
        if key in _SHORTHAND and isinstance(value, str) and isinstance(before, dict) and value not in ("teacher", "off"):
            value = {_SHORTHAND[key]: value}
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


def _override(raw: dict[str, Any], text: str) -> None:
    path, equals, value = text.partition("=")
    if not equals or not path.strip():
        raise UserError(f"--set {text}: must be section.key=value, for example prune.ratio=0.4")
    *sections, last = path.strip().split(".")
    place = raw
    for section in sections:
        inner = place.get(section)
        if isinstance(inner, str) and section in _SHORTHAND:
            inner = {_SHORTHAND[section]: inner}
        elif not isinstance(inner, dict):
            inner = {}
        place[section] = inner = dict(inner)
        place = inner
    try:
        parsed = yaml.load(value, _Loader)  # noqa: S506: a SafeLoader
    except yaml.YAMLError as error:
        raise UserError(f"--set {text}: {value!r} is not YAML") from error
    if last in _SHORTHAND and not sections and isinstance(parsed, str) and parsed != "off":
        parsed = {_SHORTHAND[last]: parsed} if not (last == "student" and parsed == "teacher") else parsed
        if isinstance(parsed, dict) and isinstance(place.get(last), dict):
            parsed = _merge(place[last], parsed)
    place[last] = parsed


def _expand(key: str, value: Any, base: Path) -> Any:
    """Turn shorthands into sections, and make paths of a file relative to that file."""
    if key == "student" and value in ("teacher", "off", False, None):
        return None if value in ("off", False, None) else value
    if key in STAGE_SECTIONS:
        if value in ("off", False):
            return None
        if value in (None, "on", True):
            return {}
    if key in _SHORTHAND and isinstance(value, str):
        value = {_SHORTHAND[key]: value}
    if key in ("teacher", "student", "data") and isinstance(value, dict):
        value = dict(value)
        for name in ("weights", "path", "model", "source"):
            entry = value.get(name)
            relative = isinstance(entry, str) and (name in ("weights", "path") or entry.startswith("./"))
            if relative and not Path(entry).is_absolute() and base != Path():
                value[name] = str(base / entry) if name in ("weights", "path") else f"./{base / entry}"
                if base.is_absolute() and name in ("model", "source"):
                    value[name] = str(base / entry)
    return value


def _contradictions(config: RunConfig) -> list[str]:
    problems = []
    for name in ("temperature", "weight", "learning_rate", "ratio"):
        low, high = getattr(config.search, name)
        if low > high:
            problems.append(f"search.{name}=[{low}, {high}]: the first must not be above the second")
    if config.benchmark and config.benchmark.max_latency_s is not None and config.export is None:
        problems.append("export=off with benchmark.max_latency_s: a latency budget is about an exported file")
    return problems


def _explain(error: ValidationError, raw: dict[str, Any]) -> list[str]:
    """Write one line an error: place, value, what is allowed, and what it means."""
    lines: dict[str, None] = {}
    for one in error.errors():
        place = [str(part) for part in one["loc"] if not _is_branch(part)]
        path, kind, value = ".".join(place), one["type"], one["input"]
        fields, described = _fields_at(place[:-1]), ""
        if fields and place[-1] in fields:
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
            lines[f"{path}={value!r}: must be {_interval(place, fields)}{tail}"] = None
        else:
            message = one["msg"].removeprefix("Value error, ")
            message = re.sub(r"^Input should be", "must be", message)
            lines[f"{path}={_short(value)}: {message}{tail}"] = None
    return list(lines)


def _is_branch(part: Any) -> bool:
    """Tell whether a part of an error's place names a branch of a union rather than a key."""
    return isinstance(part, str) and (part.endswith("Settings") or part.endswith("Section") or "[" in part)


def _fields_at(path: list[str]) -> dict[str, Any]:
    kind: Any = RunConfig
    for name in path:
        found = {f.name: f.type for f in dataclasses.fields(kind)}.get(name) if dataclasses.is_dataclass(kind) else None
        kind = next((s for s in _SECTIONS if s.__name__ in str(found)), None)
        if kind is None:
            return {}
    return dict(kind.__pydantic_fields__)


_SECTIONS = (
    TeacherSettings,
    ModelSettings,
    DataSettings,
    DistillSettings,
    PruneSection,
    QuantizeSettings,
    ExportSettings,
    BenchmarkSettings,
    SearchSettings,
)


def _interval(place: list[str], fields: dict[str, Any]) -> str:
    low, high = "", ""
    for rule in getattr(fields.get(place[-1]), "metadata", ()):
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
