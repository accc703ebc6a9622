"""The ``data`` section of a config. Imports no torch."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BeforeValidator, ConfigDict, Field, model_validator
from pydantic.dataclasses import dataclass

Fraction = Annotated[float, Gt(0), Lt(1)]

_IMAGE = {"augment", "padding", "mean", "std"}
_FETCHED = {"path", "download", "mirror"}
_COMMON = {"source", "metric", "positive", "validation"}
_USED: dict[str, set[str]] = {
    "digits": _COMMON | _IMAGE | {"test"},
    "fashion-mnist": _COMMON | _IMAGE | _FETCHED,
    "cifar10": _COMMON | _IMAGE | _FETCHED,
    "imagefolder": _COMMON | _IMAGE | {"path", "image_size", "channels", "test"},
    "breast-cancer": _COMMON | {"test"},
    "csv": _COMMON
    | {"path", "target", "group", "split", "categorical", "numeric", "missing", "decimal", "drop", "test"},
}
"""Which fields each source reads; a reference to the user's function reads ``_CUSTOM``."""
_CUSTOM = {"source", "metric", "validation", "test", "args"}

MISSING = ("NA", "N/A", "NaN", "null", "none", "?", "-")


def _as_words(given: Any) -> Any:
    """Take -999 and null, which YAML reads as a number and as nothing, for the words that they are in a table."""
    if not isinstance(given, list | tuple):
        return given
    return tuple("null" if one is None else str(one) if type(one) in (int, float) else one for one in given)


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class DataSettings:
    """Where the data come from and how they are split."""

    source: str | None = Field(
        default=None,
        description="digits, breast-cancer, fashion-mnist, cifar10, csv, imagefolder, or a function of yours: "
        "pkg.mod:function or ./file.py:function.",
    )
    args: dict[str, Any] = Field(default_factory=dict, description="Keyword arguments for your own function.")
    path: Path | None = Field(
        default=None, description="The data's folder, or the CSV file. A relative path starts at the config's folder."
    )
    target: str | None = Field(default=None, description="csv: the column that holds the class.")
    group: str | None = Field(
        default=None, description="csv: a column (patient, user, site) whose rows all stay in one split."
    )
    split: str | None = Field(
        default=None, description="csv: a column that holds train, validation or test for each row."
    )
    categorical: tuple[str, ...] = Field(
        default=(), description="csv: columns to read as categories although they hold numbers (or many values)."
    )
    numeric: tuple[str, ...] = Field(
        default=(), description="csv: columns to read as numbers although their texts look like codes (0123, 1e3)."
    )
    missing: Annotated[tuple[str, ...], BeforeValidator(_as_words)] = Field(
        default=MISSING,
        description="csv: what means a missing value in a column of numbers, in any case, beside the empty cell.",
    )
    decimal: Literal[".", ","] | None = Field(
        default=None, description="csv: the decimal mark. Default: for each column the one that its cells have."
    )
    drop: tuple[str, ...] = Field(default=(), description="csv: columns that are no input, such as an identifier.")
    image_size: Annotated[int, Ge(4), Le(2048)] | None = Field(
        default=None, description="imagefolder: the shorter side is resized to this, then the centre is cut out."
    )
    channels: Literal[1, 3] | None = Field(
        default=None, description="imagefolder: 1 for greyscale, 3 for RGB. Default: RGB unless every image is grey."
    )
    mean: tuple[Annotated[float, Ge(0), Le(1)], ...] | None = Field(
        default=None,
        description="Subtracted from pixels in 0..1: one number, or one a channel. Default: the training images' own.",
    )
    std: tuple[Annotated[float, Gt(0), Le(1)], ...] | None = Field(
        default=None, description="Divides after the subtraction, in the same units. Given together with mean."
    )
    validation: Fraction | None = Field(
        default=None,
        description="Share kept for validation where the data come without such a split. "
        "Default 0.1, at least 10 samples (digits 0.15; fashion-mnist 1/12, which is 5,000 images).",
    )
    test: Fraction | None = Field(
        default=None,
        description="Share kept for the test where the data come without such a split. Default 0.2, at least 10.",
    )
    augment: Literal["none", "crop", "crop-flip"] = Field(
        default="none",
        description="Images: crop shifts by up to `padding` pixels with zeros at the edge; crop-flip also mirrors.",
    )
    padding: Annotated[int, Ge(1), Le(64)] = Field(default=2, description="How far `augment: crop` shifts, in pixels.")
    metric: str | None = Field(
        default=None,
        description="The metric that the budget is stated in, or a function of yours of logits and class numbers: "
        "./file.py:function. Default: accuracy.",
    )
    positive: str | None = Field(
        default=None,
        description="Two classes: the label that f1 counts as positive. Default: the last one (breast-cancer: "
        "malignant).",
    )
    download: bool = Field(default=True, description="May fashion-mnist and cifar10 be downloaded.")
    mirror: str | None = Field(
        default=None, description="An http(s) folder to download from instead; checksums are the same."
    )

    @model_validator(mode="after")
    def _fields_fit_together(self) -> DataSettings:
        problems = [*self._unused(), *self._conflicts()]
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def _unused(self) -> list[str]:
        """Name the fields that were set and that the source would not read."""
        if self.source is None:
            return []
        used = _CUSTOM if ":" in self.source else _USED.get(self.source)
        if used is None:
            return []
        default = _plain_defaults()
        return [
            f"{field.name}={getattr(self, field.name)!s} is not used by source: {self.source}; remove it"
            for field in fields(self)
            if field.name not in used and getattr(self, field.name) != default[field.name]
        ]

    def _conflicts(self) -> list[str]:
        problems = []
        if (self.mean is None) != (self.std is None):
            problems.append("mean and std: give both or none")
        for name, value in (("mean", self.mean), ("std", self.std)):
            if value is not None and len(value) not in (1, 3):
                problems.append(f"{name} has {len(value)} numbers; give one, or one a channel (3)")
        if (self.validation or 0.0) + (self.test or 0.0) >= 1:
            problems.append(f"validation={self.validation} and test={self.test} leave nothing for training")
        if self.group is not None and self.split is not None:
            problems.append("group and split: give one; a split column already says where each row belongs")
        if self.source == "csv" and self.target is None:
            problems.append("target is missing; name the column that holds the class")
        if self.source in ("csv", "imagefolder") and self.path is None:
            problems.append(f"path is missing; source: {self.source} reads it")
        both = [name for name in self.numeric if name in self.categorical]
        problems += [f"numeric and categorical both name {name!r}; remove it from one" for name in both]
        if self.target is not None:
            twice = [name for name in ("drop", "categorical", "numeric") if self.target in getattr(self, name)]
            problems += [f"target={self.target!r} is also in {name}; remove it there" for name in twice]
        return problems


def _plain_defaults() -> dict[str, Any]:
    # Not DataSettings(): this runs inside its constructor.
    from pydantic.fields import FieldInfo

    values = {}
    for field in fields(DataSettings):
        default = field.default
        if isinstance(default, FieldInfo):
            default = default.get_default(call_default_factory=True, validated_data={})
        values[field.name] = default
    return values
