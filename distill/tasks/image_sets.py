"""The built-in image data sets: digits, fashion-mnist, cifar10."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from distill.files import at_home
from distill.tasks.base import Task
from distill.tasks.image import Pool, image_task
from distill.tasks.image_formats import read_cifar, read_idx_pair
from distill.tasks.settings import DigitsSettings, PublishedSettings
from distill.tasks.sources import Remote, Source, locate
from distill.types import Progress

FASHION_LABELS = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
CIFAR_LABELS = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

_IDX = {
    "train-images": Remote("train-images-idx3-ubyte.gz", "8d4fb7e6c68d591d4c3dfef9ec88bf0d"),
    "train-labels": Remote("train-labels-idx1-ubyte.gz", "25c81989df183df01b3e8a0aad5dffbe"),
    "test-images": Remote("t10k-images-idx3-ubyte.gz", "bef4ecab320f06d8554ea6380940ec79"),
    "test-labels": Remote("t10k-labels-idx1-ubyte.gz", "bb300cfdad3c16e7a12a480ee83cd310"),
}
_CIFAR_TRAIN = tuple(f"data_batch_{number}.bin" for number in range(1, 6))
_CIFAR_TEST = ("test_batch.bin",)
_CIFAR_ARCHIVE = "cifar-10-binary.tar.gz"


def _find_fashion(folder: Path) -> dict[str, Path] | None:
    # The folder itself, or the layout that torchvision leaves behind.
    for place in (folder, folder / "FashionMNIST" / "raw", folder / "raw"):
        zipped = {role: place / remote.name for role, remote in _IDX.items()}
        files = {role: path if path.is_file() else path.with_suffix("") for role, path in zipped.items()}
        if all(path.is_file() for path in files.values()):
            return files
    return None


def _find_cifar(folder: Path) -> dict[str, Path] | None:
    for place in (folder, folder / "cifar-10-batches-bin"):
        if all((place / name).is_file() for name in (*_CIFAR_TRAIN, *_CIFAR_TEST)):
            return {"batches": place}
    archive = folder / _CIFAR_ARCHIVE
    return {"batches": archive} if archive.is_file() else None


FASHION = Source(
    name="fashion-mnist",
    holds="the four idx files (train-images-idx3-ubyte.gz, …)",
    find=_find_fashion,
    system=(Path("/usr/share/datasets/fashion-mnist"),),
    remotes=tuple(_IDX.values()),
    urls=(
        "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion",
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com",
    ),
    package="dataset-fashion-mnist",
)
# The binary version: the one for Python is a pickle, which can run code when it is read.
CIFAR = Source(
    name="cifar10",
    holds="cifar-10-binary.tar.gz or its .bin files (not the pickled version for Python)",
    find=_find_cifar,
    system=(Path("/usr/share/datasets/cifar10"),),
    remotes=(Remote(_CIFAR_ARCHIVE, "c32a1d4ab5d03f1284b67883e8d87530"),),
    urls=("https://www.cs.toronto.edu/~kriz",),
)


def load_digits(settings: DigitsSettings, *, seed: int, folder: Path, progress: Progress | None = None) -> Task:
    """Return scikit-learn's embedded digits: 1,797 images of 8x8, the values 0..16 stretched to 0..255."""
    from sklearn.datasets import load_digits as embedded

    samples = embedded()
    pixels = np.rint(samples.images * (255 / 16)).astype(np.uint8)[..., None]
    pool = Pool(pixels, samples.target.astype(np.int64))
    labels = tuple(str(number) for number in range(10))
    return image_task("digits", {"train": pool}, labels, settings, seed=seed, validation=0.15)


def load_published(settings: PublishedSettings, *, seed: int, folder: Path, progress: Progress | None = None) -> Task:
    """Return Fashion-MNIST or CIFAR-10, of whose training images 5,000 validate; 10,000 others are for the test.

    Fashion-MNIST (Xiao et al. 2017): 60,000 training images of 28x28; CIFAR-10 (Krizhevsky 2009): 50,000 of 32x32 RGB.
    """
    source, labels, read, validation = {
        "fashion-mnist": (FASHION, FASHION_LABELS, _read_fashion, 1 / 12),
        "cifar10": (CIFAR, CIFAR_LABELS, _read_cifar, 0.1),
    }[settings.source]
    path = settings.path and folder / at_home(settings.path)
    location = locate(source, path=path, download=settings.download, mirror=settings.mirror, progress=progress)
    pools, warnings = read(location.files), location.warnings
    return image_task(source.name, pools, labels, settings, seed=seed, validation=validation, warnings=warnings)


def _read_fashion(files: Mapping[str, Path]) -> dict[str, Pool]:
    return {
        split: Pool(*read_idx_pair(files[f"{split}-images"], files[f"{split}-labels"], side=28, classes=10))
        for split in ("train", "test")
    }


def _read_cifar(files: Mapping[str, Path]) -> dict[str, Pool]:
    batches = {"train": _CIFAR_TRAIN, "test": _CIFAR_TEST}
    return {split: Pool(*read_cifar(files["batches"], names)) for split, names in batches.items()}
