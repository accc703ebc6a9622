"""Which families of data there are, and which of them a ``data`` section belongs to. Imports no torch."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Protocol, Union, get_args, get_type_hints

from pydantic import BeforeValidator, ConfigDict, Discriminator, Field, Tag, TypeAdapter, field_validator
from pydantic.dataclasses import dataclass
from pydantic.fields import FieldInfo
from pydantic.json_schema import SkipJsonSchema
from pydantic_core import PydanticCustomError

from distill.errors import UserError
from distill.references.functions import load_reference
from distill.tasks.settings import (
    BreastCancerSettings,
    CsvSettings,
    CustomSettings,
    DataSettings,
    DigitsSettings,
    ImageFolderSettings,
    PublishedSettings,
)
from distill.wording import nearest_names

if TYPE_CHECKING:
    from distill.tasks.base import Task
    from distill.types import Progress

FAMILIES: tuple[type[DataSettings], ...] = (
    DigitsSettings,
    BreastCancerSettings,
    PublishedSettings,
    CsvSettings,
    ImageFolderSettings,
    CustomSettings,
)
SOURCES = {name: family for family in FAMILIES for name in get_args(get_type_hints(family)["source"])}
"""The family of each source that has a name; any other is a function of the user's."""
_SOURCES_KNOWN = f"give {', '.join(SOURCES)}, or a function of yours: ./file.py:function"


class Loader(Protocol):
    """Makes a task of its family's settings; ``folder`` is where relative paths start."""

    def __call__(self, settings: Any, *, seed: int, folder: Path, progress: Progress | None = None) -> Task:
        """Read the data."""


def load_task(
    settings: DataSettings, *, seed: int, folder: Path | None = None, progress: Progress | None = None
) -> Task:
    """Read the data that ``settings.source`` names and return their task.

    ``seed`` decides every split of ours and every augmentation; ``folder`` is where relative paths and file
    references start (default: the current folder). ``progress`` is called with what is done, how much of it, of what.

    Raises:
        UserError: no such source, or the data are missing or wrong.
    """
    require_source(settings, folder)
    module, _, function = settings.loader.partition(":")
    loader: Loader = getattr(importlib.import_module(f"distill.tasks.{module}"), function)
    folder = folder or Path.cwd()
    if ":" not in (settings.metric or ""):
        return loader(settings, seed=seed, folder=folder, progress=progress)
    from distill.tasks.metrics import scored

    task = loader(replace(settings, metric=None), seed=seed, folder=folder, progress=progress)
    return scored(task, str(settings.metric), folder)


def require_source(settings: DataSettings, folder: Path | None = None) -> None:
    """Find out whether there are such data, without reading them; ``folder`` as ``load_task`` takes it.

    Raises:
        UserError: no such source, or no such function.
    """
    if settings.source is None:
        raise UserError(f"data.source is missing; {_SOURCES_KNOWN}")
    if not settings.loader:
        raise UserError(
            f"data.source={settings.source!r}: {_no_such_source(settings.source)} "
            "(a function of yours is written ./file.py:function)"
        )
    if isinstance(settings, CustomSettings):
        load_reference(settings.source, field="data.source", folder=folder)


def data_settings(**section: Any) -> DataSettings:
    """Return the settings of the family that ``source`` names, checked; a pydantic.ValidationError tells what is wrong.

    The keyword arguments are the keys of a ``data`` section.
    """
    settings: DataSettings = TypeAdapter(Data).validate_python(section)
    return settings


def _no_such_source(source: str) -> str:
    endings = Path(source).suffixes
    mend = next((_FILES[ending] for ending in endings if ending in _FILES), "")
    near = nearest_names(source, SOURCES, 1)
    return mend.format(source) if mend else f"no such data{f'; did you mean {near[0]!r}?' if near else ''}"


_FILES = {
    **dict.fromkeys((".csv", ".tsv"), "is a table; write data: {{source: csv, path: {}, target: COLUMN}}"),
    **dict.fromkeys(
        (".npz", ".npy"),
        "holds arrays; write a function that loads them and returns {{'train': (x, y)}}, and name it",
    ),
    ".py": "is a file of code; name the function in it, as {}:make_data",
}
"""What to write in place of a file's name."""


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="ignore"))
class _UnknownSettings(DataSettings):
    """A section whose source is missing or that nobody has, so that this error stands beside the config's others."""

    source: str = Field(description=_SOURCES_KNOWN)

    @field_validator("source")
    @classmethod
    def _refuse(cls, source: str) -> str:
        raise PydanticCustomError("no_such_source", "{hint}", {"hint": _no_such_source(source)})


def _defaults(family: type[Any]) -> Mapping[str, Any]:
    """Return every key of a family with its default; PydanticUndefined where it has none."""
    keys: Mapping[str, FieldInfo] = family.__pydantic_fields__
    return {name: field.get_default(call_default_factory=True, validated_data={}) for name, field in keys.items()}


def _family(section: Any) -> type[DataSettings]:
    """Return the class of a section, a mapping or settings; DataSettings where it has no family's keys."""
    if isinstance(section, DataSettings):
        return type(section)
    keys: Mapping[str, Any] = section if isinstance(section, Mapping) else {}
    source = keys.get("source")
    if source is None and not any(keys.keys() & _defaults(family).keys() for family in FAMILIES):
        return DataSettings
    if not isinstance(source, str):
        return _UnknownSettings
    return SOURCES.get(source) or (CustomSettings if ":" in source else _UnknownSettings)


def _without_idle_keys(section: Any) -> Any:
    """Leave out null, and the keys of other families that only repeat what those have by default."""
    if not isinstance(section, Mapping):
        return section
    own = _defaults(_family(section))
    idle = [(name, value) for family in FAMILIES for name, value in _defaults(family).items() if name not in own]
    return {
        name: value
        for name, value in section.items()
        if value is not None and (name, tuple(value) if isinstance(value, list) else value) not in idle
    }


if TYPE_CHECKING:
    Data = DataSettings
else:
    Data = Annotated[
        Union[
            *(Annotated[family, Tag(family.__name__)] for family in FAMILIES),
            *(SkipJsonSchema[Annotated[family, Tag(family.__name__)]] for family in (DataSettings, _UnknownSettings)),
        ],
        Discriminator(lambda section: _family(section).__name__),
        BeforeValidator(_without_idle_keys),
    ]
"""A ``data`` section: the settings of one family, by its source."""
