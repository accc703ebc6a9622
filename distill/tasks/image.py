"""Classification of images that are held in memory as bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distill.errors import UserError
from distill.export.preprocess import ImagePreprocess
from distill.references.digest import Digest
from distill.tasks.augment import shift_and_flip
from distill.tasks.base import SPLITS, Inputs
from distill.tasks.classifier import Classifier
from distill.tasks.settings import ImageSettings
from distill.tasks.splits import check_splits, cut_off_train, missing_splits, unused_shares
from distill.types import Feed

Pixels = NDArray[np.uint8]
Numbers = NDArray[np.int64]
ImageBatch = tuple[Tensor, Tensor]
"""Pixels uint8 [B, H, W, C] and class numbers int64 [B]."""

_CHUNK = 1 << 26


@dataclass(frozen=True)
class Pool:
    """Images as they came, before any split of ours: uint8 [N, H, W, C] and class numbers int64 [N]."""

    images: Pixels
    target: Numbers


@dataclass(frozen=True)
class ImageData:
    """One split: ``rows`` of a pool, augmented by view."""

    images: Tensor
    targets: Tensor
    rows: Tensor
    seed: int
    padding: int
    flip: bool

    def __len__(self) -> int:
        """Count the samples."""
        return len(self.rows)

    def fetch(self, index: Tensor, view: int | None) -> ImageBatch:
        """Return (uint8 [B, H, W, C], int64 [B]) of the samples ``index``, int64 [B]."""
        rows = self.rows[index.cpu()]
        pixels = self.images[rows]
        if view is not None and self.padding:
            pixels = shift_and_flip(
                pixels, index.cpu(), seed=self.seed, view=view, padding=self.padding, flip=self.flip
            )
        return pixels, self.targets[rows]


class ImageTask(Classifier[ImageData, ImagePreprocess]):
    """Images in, class out. The model sees ``(x - offset) * scale`` as float32 [B, C, H, W]."""

    kind = "image"

    @cached_property
    def _offset_and_scale(self) -> Tensor:
        numbers = (self._preprocess.offset, self._preprocess.scale)
        return torch.tensor(numbers, dtype=torch.float32).reshape(2, 1, -1, 1, 1)

    def inputs(self, batch: ImageBatch) -> Inputs:
        """Return one positional tensor, float32 [B, C, H, W], equal to ``graph_preprocess.apply`` bit by bit."""
        pixels = batch[0].permute(0, 3, 1, 2).contiguous()
        offset, scale = self._offset_and_scale.to(pixels.device)
        # One subtraction (exact, as both are whole numbers) and one product, in the order of the graph's nodes.
        return ((pixels.float() - offset) * scale,), {}

    def raw(self, batch: ImageBatch) -> Feed:
        """Return ``image``, uint8 [B, H, W, C]."""
        return {"image": batch[0].cpu().numpy()}

    def _hash(self, digest: Digest) -> Digest:
        digest.add([list(self._preprocess.offset), list(self._preprocess.scale)])
        pools: list[Tensor] = []
        for name in SPLITS:
            split = self._splits[name]
            digest.add([name, split.seed, split.padding, split.flip]).add(split.rows)
            # Splits cut from one pool share its array: it is hashed once.
            if not any(split.images is pool for pool in pools):
                pools.append(split.images)
                digest.add(split.images).add(split.targets)
            digest.add([split.images is pool for pool in pools])
        return digest


def image_task(
    name: str,
    pools: Mapping[str, Pool],
    labels: Sequence[str],
    settings: ImageSettings,
    *,
    seed: int,
    validation: float = 0.1,
    warnings: Sequence[str] = (),
) -> ImageTask:
    """Split what came without a split, fit the normalisation on train, and build the task.

    ``pools`` holds ``train`` and whichever other splits the data came with; ``validation`` is the default share.

    Raises:
        UserError: a split is too small, a class is missing, or a setting does not fit the data.
    """
    notes = [*warnings, *unused_shares(pools, settings)]
    rows: dict[str, Numbers] = {split: np.arange(len(pool.target)) for split, pool in pools.items()}
    train = pools["train"]
    rows |= cut_off_train(
        len(train.target), missing_splits(pools), settings, seed, target=train.target, validation=validation
    )
    home = {split: pools.get(split, train) for split in SPLITS}
    targets = {split: home[split].target[rows[split]] for split in SPLITS}
    notes += check_splits(targets, labels, own=pools, source=name)
    _, height, width, channels = train.images.shape
    offset, scale = _normalisation(train.images, rows["train"], settings, channels, name, notes)
    shared = {id(pool): (torch.from_numpy(pool.images), torch.from_numpy(pool.target)) for pool in pools.values()}
    splits = {
        split: ImageData(
            *shared[id(home[split])],
            rows=torch.from_numpy(rows[split]),
            seed=seed,
            padding=settings.padding if settings.augment != "none" else 0,
            flip=settings.augment == "crop-flip",
        )
        for split in SPLITS
    }
    preprocess = ImagePreprocess(height, width, channels, offset, scale)
    facts = {"channels": channels, "image_size": height}
    return ImageTask(name, splits, labels, preprocess, facts, settings, own=pools, warnings=notes)


def _normalisation(
    images: Pixels, rows: Numbers, settings: ImageSettings, channels: int, name: str, notes: list[str]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return offset and scale in 0..255 units, a number a channel each."""
    if settings.mean is None or settings.std is None:
        mean, deviation = _moments(images, rows)
        if deviation == 0:
            raise UserError(f"{name}: every pixel of the training images is {mean:.0f}; there is nothing to learn")
        return (float(np.rint(mean)),) * channels, (1 / deviation,) * channels
    for field, values in (("mean", settings.mean), ("std", settings.std)):
        if len(values) not in (1, channels):
            raise UserError(f"data.{field} has {len(values)} numbers; the images have {channels} channel(s)")
    offset = [255 * mean for mean in settings.mean] * (channels // len(settings.mean))
    scale = [1 / (255 * deviation) for deviation in settings.std] * (channels // len(settings.std))
    whole = float(np.rint(offset[0]))
    # A whole shared offset is a zero-point, which costs the int8 graph nothing. Offsets that differ by channel stay.
    if len(set(offset)) == len(set(scale)) == 1 and whole != offset[0]:
        notes.append(f"data.mean={settings.mean[0]} is {offset[0]:.2f} of 255; {whole:.0f} is used, a whole number")
        offset = [whole] * channels
    return tuple(offset), tuple(scale)


def _moments(images: Pixels, rows: Numbers) -> tuple[float, float]:
    """Return mean and standard deviation over all pixels and channels of the rows, from an exact count of bytes."""
    counts = np.zeros(256, np.int64)
    step = max(1, _CHUNK // max(1, int(np.prod(images.shape[1:]))))
    for start in range(0, len(rows), step):
        counts += np.bincount(images[rows[start : start + step]].reshape(-1), minlength=256)
    values = np.arange(256)
    mean = float((counts * values).sum() / counts.sum())
    return mean, float(np.sqrt((counts * (values - mean) ** 2).sum() / counts.sum()))
