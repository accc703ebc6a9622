"""The ``data`` section of each family: where the data are, how they are split and judged. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BeforeValidator, Field, model_validator
from pydantic.dataclasses import dataclass

from distill.bounds import SETTINGS, Share

Fraction = Annotated[float, Gt(0), Lt(1)]
TestShare = Annotated[
    Fraction | None,
    Field(description="Share of the samples for the test where the data have no such split. Default 0.2, at least 10."),
]
PositiveLabel = Annotated[
    str | None,
    Field(
        description="Two classes: the label that f1 counts as positive. Default: the last one (breast-cancer: "
        "malignant)."
    ),
]


@dataclass(frozen=True, kw_only=True, config=SETTINGS)
class DataSettings:
    """Where the data come from, how they are split, and what a model is judged by."""

    loader: ClassVar[str] = ""
    """``module:function`` below ``distill.tasks``: what makes the task of these settings."""

    source: str | None = Field(
        default=None,
        description="digits, breast-cancer, fashion-mnist, cifar10, csv, imagefolder, or a function of yours: "
        "pkg.mod:function or ./file.py:function.",
    )
    validation: Fraction | None = Field(
        default=None,
        description="Share of the samples for validation where the data have no such split. "
        "Default 0.1, at least 10 samples (digits 0.15; fashion-mnist 1/12, which is 5,000 images).",
    )
    metric: str | None = Field(
        default=None,
        description="The metric that the budget is stated in, or a function of yours of logits and class numbers: "
        "./file.py:function. Default: accuracy.",
    )

    @property
    def shares(self) -> Mapping[str, float | None]:
        """Return the share that the user chose for each split which may have to be cut off train."""
        return {"validation": self.validation, "test": getattr(self, "test", None)}

    def conflicts(self) -> list[str]:
        """Say which fields do not go together; a family adds its own."""
        if sum(share or 0.0 for share in self.shares.values()) < 1:
            return []
        return [
            " and ".join(f"{split}={share}" for split, share in self.shares.items()) + " leave nothing for training"
        ]

    @model_validator(mode="after")
    def _fields_fit_together(self) -> DataSettings:
        problems = self.conflicts()
        if problems:
            raise ValueError("; ".join(problems))
        return self


@dataclass(frozen=True, kw_only=True, config=SETTINGS)
class ImageSettings(DataSettings):
    """What all pictures have: normalisation and augmentation."""

    positive: PositiveLabel = None
    mean: tuple[Share, ...] | None = Field(
        default=None,
        description="Subtracted from pixels in 0..1: one number, or one a channel. Default: the training images' own.",
    )
    std: tuple[Annotated[float, Gt(0), Le(1)], ...] | None = Field(
        default=None, description="Divides after the subtraction, in the same units. Comes together with mean."
    )
    augment: Literal["none", "crop", "crop-flip"] = Field(
        default="none",
        description="crop shifts by up to `padding` pixels with zeros at the edge; crop-flip also mirrors.",
    )
    padding: Annotated[int, Ge(1), Le(64)] = Field(default=2, description="How far `augment: crop` shifts, in pixels.")

    def conflicts(self) -> list[str]:
        """Say which fields do not go together."""
        problems = super().conflicts()
        if (self.mean is None) != (self.std is None):
            problems.append("mean and std: give both or none")
        for name, numbers in (("mean", self.mean), ("std", self.std)):
            if numbers is not None and len(numbers) not in (1, 3):
                problems.append(f"{name} has {len(numbers)} numbers; give one, or one a channel (3)")
        return problems


@dataclass(frozen=True, kw_only=True, config=SETTINGS)
class DigitsSettings(ImageSettings):
    """scikit-learn's embedded digits."""

    loader: ClassVar[str] = "image_sets:load_digits"

    source: Literal["digits"] = Field(default="digits", description="scikit-learn's embedded digits.")
    test: TestShare = None


@dataclass(frozen=True, kw_only=True, config=SETTINGS)
class PublishedSettings(ImageSettings):
    """A published set that lies in a folder or is downloaded: Fashion-MNIST and CIFAR-10."""

    loader: ClassVar[str] = "image_sets:load_published"

    source: Literal["fashion-mnist", "cifar10"] = Field(description="The set: 28x28 clothes, or 32x32 photographs.")
    path: Path | None = Field(
        default=None, description="Folder with the set's files. A relative path starts at the config's folder."
    )
    download: bool = Field(default=True, description="May the set be downloaded.")
    mirror: str | None = Field(
        default=None, description="An http(s) folder to download from instead; checksums are the same."
    )


@dataclass(frozen=True, kw_only=True, config=SETTINGS)
class ImageFolderSettings(ImageSettings):
    """The user's own pictures, one folder a class."""

    loader: ClassVar[str] = "image_folder:load_image_folder"

    source: Literal["imagefolder"] = Field(default="imagefolder", description="Your pictures, one folder a class.")
    path: Path = Field(
        description="The folder that holds one folder a class. A relative path starts at the config's folder."
    )
    test: TestShare = None
    image_size: Annotated[int, Ge(4), Le(2048)] | None = Field(
        default=None, description="The shorter side is resized to this, then the centre is cut out."
    )
    channels: Literal[1, 3] | None = Field(
        default=None, description="1 for greyscale, 3 for RGB. Default: RGB unless every image is grey."
    )


MISSING = ("NA", "N/A", "NaN", "null", "none", "?", "-")


def _as_texts(cells: object) -> object:
    """Take -999 and null, which YAML reads as a number and as nothing, for the texts that they are in a table."""
    if not isinstance(cells, list | tuple):
        return cells
    return tuple("null" if cell is None else str(cell) if type(cell) in (int, float) else cell for cell in cells)


@dataclass(frozen=True, kw_only=True, config=SETTINGS)
class BreastCancerSettings(DataSettings):
    """scikit-learn's embedded Breast Cancer Wisconsin data."""

    loader: ClassVar[str] = "tabular:load_breast_cancer"

    source: Literal["breast-cancer"] = Field(default="breast-cancer", description="scikit-learn's embedded tumours.")
    test: TestShare = None
    positive: PositiveLabel = None


@dataclass(frozen=True, kw_only=True, config=SETTINGS)
class CsvSettings(DataSettings):
    """The user's own table."""

    loader: ClassVar[str] = "tabular:load_csv"

    source: Literal["csv"] = Field(default="csv", description="A table of your own.")
    path: Path = Field(
        description="The CSV file, or a folder with train.csv. A relative path starts at the config's folder."
    )
    target: str = Field(description="The column that holds the class.")
    test: TestShare = None
    positive: PositiveLabel = None
    group: str | None = Field(
        default=None, description="A column (patient, user, site) whose rows all stay in one split."
    )
    split: str | None = Field(default=None, description="A column that holds train, validation or test for each row.")
    categorical: tuple[str, ...] = Field(
        default=(), description="Columns to read as categories although they hold numbers (or many values)."
    )
    numeric: tuple[str, ...] = Field(
        default=(), description="Columns to read as numbers although their texts look like codes (0123, 1e3)."
    )
    missing: Annotated[tuple[str, ...], BeforeValidator(_as_texts)] = Field(
        default=MISSING,
        description="What means a missing value in a column of numbers, in any case, beside the empty cell.",
    )
    decimal: Literal[".", ","] | None = Field(
        default=None, description="The decimal mark. Default: for each column the one that its cells have."
    )
    drop: tuple[str, ...] = Field(default=(), description="Columns that are no input, such as an identifier.")

    def conflicts(self) -> list[str]:
        """Say which fields do not go together."""
        problems = super().conflicts()
        if self.group is not None and self.split is not None:
            problems.append("group and split: give one; a split column already says where each row belongs")
        problems += [
            f"numeric and categorical both name {name!r}; remove it from one"
            for name in self.numeric
            if name in self.categorical
        ]
        problems += [
            f"target={self.target!r} is also in {field}; remove it there"
            for field in ("drop", "categorical", "numeric")
            if self.target in getattr(self, field)
        ]
        return problems


@dataclass(frozen=True, kw_only=True, config=SETTINGS)
class CustomSettings(DataSettings):
    """The user's own data, made by a function."""

    loader: ClassVar[str] = "custom:load_custom"

    source: str = Field(pattern=":", description="Your function: pkg.mod:function or ./file.py:function.")
    test: TestShare = None
    args: dict[str, Any] = Field(default_factory=dict, description="Keyword arguments for your function.")
