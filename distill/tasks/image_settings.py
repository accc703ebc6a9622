"""The ``data`` sections of pictures: the built-in sets, and folders of the user's own. Imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar, Literal

from annotated_types import Ge, Gt, Le
from pydantic import Field
from pydantic.dataclasses import dataclass

from distill.tasks.settings import STRICT, DataSettings, PositiveLabel, TestShare


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ImageSettings(DataSettings):
    """What all pictures have: normalisation and augmentation."""

    positive: PositiveLabel = None
    mean: tuple[Annotated[float, Ge(0), Le(1)], ...] | None = Field(
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


@dataclass(frozen=True, kw_only=True, config=STRICT)
class DigitsSettings(ImageSettings):
    """scikit-learn's embedded digits."""

    loader: ClassVar[str] = "image_sets:load_digits"

    source: Literal["digits"] = Field(default="digits", description="scikit-learn's embedded digits.")
    test: TestShare = None


@dataclass(frozen=True, kw_only=True, config=STRICT)
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


@dataclass(frozen=True, kw_only=True, config=STRICT)
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
