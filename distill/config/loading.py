"""The configuration of a run: one section a stage, read from YAML, a preset, or a mapping.

Everything is checked in one pass, before any data is read, and every error is reported with its place, its value and
the mend.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le
from pydantic import AfterValidator, Field, TypeAdapter
from pydantic.dataclasses import dataclass

from distill.benchmarks.settings import BenchmarkSettings
from distill.benchmarks.target import TargetName
from distill.bounds import MOST_SEED, SETTINGS, AnyCount, LearningRate, PartialShare, Share
from distill.config.checking import validate
from distill.config.existence import unfound
from distill.config.layers import PLACES, SHORTHAND, STAGE_SECTIONS, Raw, presets_near, read_layers
from distill.config.presets import presets
from distill.distillation.losses import Temperature
from distill.distillation.settings import DistillSettings
from distill.errors import UserError
from distill.export.settings import ExportSettings
from distill.prune.settings import PruneSettings
from distill.quantize.settings import QuantizeSettings
from distill.tasks import FAMILIES, Data, DataSettings
from distill.training.settings import TrainSettings
from distill.wording import quoted


@dataclass(frozen=True, kw_only=True, config=SETTINGS)
class ModelSettings:
    """A model by reference."""

    model: str = Field(
        description="built-in name, timm:NAME, torchvision:NAME, transformers:NAME, package.module:function "
        "or ./file.py:function"
    )
    args: dict[str, Any] = Field(default_factory=dict, description="keyword arguments of the model's factory")


@dataclass(frozen=True, kw_only=True, config=SETTINGS)
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


@dataclass(frozen=True, kw_only=True, config=SETTINGS)
class PruneSection(PruneSettings):
    """Structured pruning, and the distillation that recovers from it."""

    epochs: AnyCount = Field(default=5, description="epochs of distillation after pruning")
    between: AnyCount = Field(default=1, description="epochs of distillation between two of several steps of pruning")
    learning_rate: LearningRate = Field(default=0.02, description="of the recovery")


_Factor = Annotated[float, Gt(0), Le(1e9)]


@dataclass(frozen=True, kw_only=True, config=SETTINGS)
class SearchSettings:
    """What Optuna may choose before the full run, on validation data."""

    trials: AnyCount = Field(default=0, description="0 is no search")
    epochs: Annotated[float, Gt(0), Le(1)] = Field(
        default=0.25, description="share of distill.epochs that a trial trains"
    )
    temperature: tuple[Temperature, Temperature] = Field(default=(1.0, 8.0), description="range")
    weight: tuple[Share, Share] = Field(default=(0.3, 1.0), description="range")
    learning_rate: tuple[_Factor, _Factor] = Field(
        default=(0.3, 3.0), description="range, as a factor on distill.learning_rate"
    )
    ratio: tuple[PartialShare, PartialShare] = Field(default=(0.0, 0.6), description="range of prune.ratio")


@dataclass(frozen=True, kw_only=True, config=SETTINGS)
class TargetSettings:
    """The device that the model is shipped to, and how it is reached where it is another machine."""

    name: TargetName = Field(description="the kind of device")
    measure: str | None = Field(
        default=None,
        description="command that has things timed on the device: gets a bundle folder, brings back its result.json",
    )


def _is_name(text: str) -> str:
    """Refuse what cannot name a folder: the run folder is called after the task."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", text):
        raise ValueError(
            f"must be 1 to 64 letters, digits, points, dashes or underscores, a letter or digit first, not {text!r}"
        )
    return text


_name = AfterValidator(_is_name)


@dataclass(frozen=True, kw_only=True, config=SETTINGS)
class RunConfig:
    """A whole run."""

    task: Annotated[str, _name] = Field(description="name of the run: a preset, or any word with a data section")
    teacher: TeacherSettings = Field(description="the model to be compressed")
    student: ModelSettings | Literal["teacher"] | None = Field(
        default="teacher", description="a smaller model; `teacher` starts from the teacher's own weights; off: likewise"
    )
    data: Data = Field(default_factory=DataSettings, description="what it is trained and judged on")
    distill: DistillSettings | None = Field(default_factory=DistillSettings, description="or off")
    prune: PruneSection | None = Field(default_factory=lambda: PruneSection(), description="or off")
    quantize: QuantizeSettings | None = Field(default_factory=QuantizeSettings, description="or off")
    export: ExportSettings | None = Field(default_factory=ExportSettings, description="or off")
    benchmark: BenchmarkSettings | None = Field(default_factory=BenchmarkSettings, description="or off")
    search: SearchSettings = Field(default_factory=SearchSettings, description="hyperparameters chosen by Optuna")
    device: Literal["auto", "cpu", "cuda"] = Field(default="auto", description="what trains")
    target: TargetSettings | None = Field(
        default=None, description="what the model is shipped to; none is the device that trains"
    )
    max_drop: Share = Field(
        default=0.01, description="how much of the metric may be lost against the teacher; 0.01 is one point"
    )
    max_file_bytes: Annotated[int, Ge(1), Le(2**63 - 1)] | None = Field(
        default=None, description="the largest file that may ship, in bytes; null for none"
    )
    objective: Literal["latency", "size"] = Field(default="latency", description="what a stage has to improve")
    seed: Annotated[int, Ge(0), Le(MOST_SEED)] = Field(
        default=0, description="of weights, order, augmentation and splits"
    )

    @property
    def models(self) -> dict[str, TeacherSettings | ModelSettings]:
        """Return the models that a run builds, by their fields: the teacher, and a student where it is distilled."""
        if self.distill is None or not isinstance(self.student, ModelSettings):
            return {"teacher": self.teacher}
        return {"teacher": self.teacher, "student": self.student}


def load_config(
    source: str | Path | Mapping[str, Any] | RunConfig | None = None,
    overrides: Iterable[str] = (),
    *,
    find: bool = False,
) -> RunConfig:
    """Read a configuration.

    Args:
        source: a preset's name, a YAML file, a mapping, or None for ``digits``.
        overrides: ``section.key=value`` each, the value in YAML; they win over the source.
        find: whether the models, functions and files that it names have to be there; functions are imported.

    Raises:
        UserError: every error of the configuration at once, a line each.
    """
    return checked(*read_layers(to_dict(source) if isinstance(source, RunConfig) else source, overrides), find=find)


def checked(raw: Mapping[str, Any], problems: Iterable[str] = (), *, find: bool = False) -> RunConfig:
    """Return the configuration that a mapping of whole sections says, as ``read_layers`` returns it.

    ``problems`` are errors that are known already; ``find`` as ``load_config`` takes it.

    Raises:
        UserError: every error of the configuration at once, a line each.
    """
    name = _name_after(raw.get("data"))
    raw = {**({"task": name} if name else {}), **raw}
    config, errors = validate(RunConfig, raw, task="any", teacher={"model": "mlp"})
    wrong = {".".join(place) for place in errors.values()}
    lines = [*problems, *errors, *(text for text, places in _contradictions(config) if not _touch(wrong, places))]
    if "teacher" in wrong and "teacher" not in raw and "data" not in raw and raw.get("task") is not None:
        near = presets_near(raw["task"])
        lines.append(f"task={quoted(raw['task'])}: is no preset, so that teacher and data must say all{near}")
    if find:
        lines += [text for place, text in unfound(config) if not _touch(wrong, [place])]
    if lines:
        raise UserError("\n".join(dict.fromkeys(lines)))
    return config


def _name_after(data: object) -> str:
    """Return a name for a run that has none: that of its data's file, folder, module or set; "" if that is no name."""
    section = data if isinstance(data, Mapping) else {}
    path, source = section.get("path"), str(section.get("source") or "")
    if isinstance(path, str):
        word = Path(path).absolute().name.partition(".")[0]
    else:
        word = re.split(r"[/.]", (source.rpartition(":")[0] or source).removesuffix(".py"))[-1]
    return re.sub(r"[^A-Za-z0-9_-]+", "-", word).strip("-_")[:64]


def _touch(wrong: Iterable[str], places: Iterable[str]) -> bool:
    """Tell whether a place is among the wrong ones, or holds one, or lies in one."""
    pairs = [(f"{bad}.", f"{place}.") for bad in wrong for place in places]
    return any(bad.startswith(place) or place.startswith(bad) for bad, place in pairs)


def to_dict(config: RunConfig) -> Raw:
    """Return the configuration as plain JSON values; ``load_config`` reads it back."""
    plain: Raw = TypeAdapter(RunConfig).dump_python(config, mode="json")
    # An empty section means its defaults, so a stage that is off has to say so.
    can_be_off = (*STAGE_SECTIONS, "student")
    return {key: "off" if key in can_be_off and value is None else value for key, value in plain.items()}


def config_hash(config: RunConfig) -> str:
    """Return eight hexadecimal digits that stand for the whole configuration."""
    return hashlib.sha256(json.dumps(to_dict(config), sort_keys=True).encode()).hexdigest()[:8]


def settings_hash(config: RunConfig) -> str:
    """Return sixteen hexadecimal digits that stand for a configuration wherever its files lie.

    Unlike ``config_hash`` it knows files by their names only, so that it may go into a model that two folders make
    alike.
    """
    plain = to_dict(config)
    for section in SHORTHAND:
        if isinstance(plain[section], dict):
            plain[section] = {
                name: Path(value).name if name in PLACES and isinstance(value, str) else value
                for name, value in plain[section].items()
            }
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:16]


def schema() -> Mapping[str, Any]:
    """Return the JSON schema of a configuration file, shorthands included, for editors."""
    built = TypeAdapter(RunConfig).json_schema()
    properties = built["properties"]
    properties["extends"] = {"type": "string", "description": "a preset to start from", "enum": list(presets())}
    # A preset or the command line may say what a file leaves out, so nothing is required, and several families may fit.
    properties["data"]["anyOf"] = properties["data"].pop("oneOf")
    for family in FAMILIES:
        built["$defs"][family.__name__].pop("required", None)
    for key in SHORTHAND:
        properties[key] = {"anyOf": [properties[key], {"type": "string"}], "description": "a reference, or a section"}
    for key in (*STAGE_SECTIONS, "student"):
        properties[key] = {"anyOf": [properties[key], {"type": "boolean"}, {"const": "off"}]}
    built["required"] = []
    built["title"] = "distill configuration"
    return built


def _contradictions(config: RunConfig) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield what does not go together, and the places that it is about."""
    for name in ("temperature", "weight", "learning_rate", "ratio"):
        low, high = getattr(config.search, name)
        if low > high:
            yield f"search.{name}=[{low}, {high}]: the first must not be above the second", (f"search.{name}",)
    if config.search.trials:
        yield from _out_of_reach(config)
    if config.benchmark and config.benchmark.max_latency_s is not None and config.export is None:
        text = "export=off with benchmark.max_latency_s: a latency budget is about an exported file"
        yield text, ("export", "benchmark.max_latency_s")


def _out_of_reach(config: RunConfig) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield the ranges of the search whose upper end another section refuses, and the places of both."""
    if config.prune and config.search.ratio[1] > config.prune.max_ratio:
        text = (
            f"search.ratio={list(config.search.ratio)}: goes above prune.max_ratio={config.prune.max_ratio}; "
            "lower the one or raise the other"
        )
        yield text, ("search.ratio", "prune.max_ratio")
    highest = config.search.learning_rate[1] * config.distill.learning_rate if config.distill else 0.0
    if highest > 100:
        text = (
            f"search.learning_rate={list(config.search.learning_rate)}: times distill.learning_rate it reaches "
            f"{highest:g}, above 100; lower one of them"
        )
        yield text, ("search.learning_rate", "distill.learning_rate")
