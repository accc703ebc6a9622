"""Images in folders: ``path/<class>/*.png``, or ``path/train/<class>/…`` with ``validation`` and ``test`` beside it."""

from __future__ import annotations

import os
import struct
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from distill.benchmarks.machine import usable_threads
from distill.errors import UserError
from distill.tasks.base import Task
from distill.tasks.image import Pixels, Pool, image_task
from distill.tasks.settings import DataSettings
from distill.tasks.sources import Progress
from distill.tasks.wording import did_you_mean, first_of

EXTENSIONS = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff", ".webp")
_SPLIT_FOLDERS = {
    "train": ("train",),
    "validation": ("validation", "val", "valid"),
    "test": ("test",),
}
_IN_MEMORY_BYTES = 1 << 30
_FIRST = 16
"""Images that decide between greyscale and RGB."""

# What Pillow raises on a damaged file, depending on the format.
_DAMAGED = (OSError, SyntaxError, ValueError, struct.error, IndexError, Image.DecompressionBombError)


@dataclass(frozen=True)
class _Files:
    """The image files of one split and the class number of each."""

    paths: tuple[Path, ...]
    target: tuple[int, ...]


@dataclass(frozen=True)
class _Form:
    """What every image is brought to: ``side`` pixels square, mode L or RGB; ``resize`` False demands that size."""

    side: int
    mode: Literal["L", "RGB"]
    resize: bool

    @property
    def channels(self) -> int:
        return 1 if self.mode == "L" else 3


def load_image_folder(settings: DataSettings, *, seed: int, folder: Path, progress: Progress | None = None) -> Task:
    """Return the task of a folder of images, decoded once to bytes.

    Raises:
        UserError: the folder is missing or holds no images, a class is empty or alone, a file cannot be decoded.
    """
    assert settings.path is not None
    root = folder / settings.path.expanduser()
    homes = _split_folders(root)
    labels = _classes(homes["train"])
    files = {split: _files(home, labels) for split, home in homes.items()}
    warnings = []
    if len(homes) == 1:
        few = [label for number, label in enumerate(labels) if files["train"].target.count(number) < 3]
        if few:
            raise UserError(
                f"{root / few[0]}: fewer than 3 images; each class needs one for train, validation and test each. "
                "Add images or remove the folder"
            )
    else:
        missing = [split for split in _SPLIT_FOLDERS if split not in homes]
        warnings += [f"{root} has no {split} folder: it is cut off train by seed" for split in missing]
    form = _form(files["train"].paths, settings)
    pools = {
        split: Pool(_decode(one.paths, form, progress), np.asarray(one.target, np.int64))
        for split, one in files.items()
    }
    return image_task("imagefolder", pools, labels, settings, seed=seed, warnings=warnings)


def _split_folders(root: Path) -> dict[str, Path]:
    if not root.is_dir():
        problem = "is a file" if root.exists() else "does not exist"
        near = sorted(one.name for one in root.parent.iterdir() if one.is_dir()) if root.parent.is_dir() else []
        hint = did_you_mean(root.name, near)
        raise UserError(f"data.path={root}: {problem}; give a folder with one folder a class{hint}")
    found = {}
    for split, names in _SPLIT_FOLDERS.items():
        present = [root / name for name in names if (root / name).is_dir()]
        if len(present) > 1:
            raise UserError(f"{root}: holds both {present[0].name} and {present[1].name}; keep one for {split}")
        if present:
            found[split] = present[0]
    if "train" in found:
        return found
    if found:
        raise UserError(f"{root}: has {first_of(one.name for one in found.values())} but no train folder; add it")
    return {"train": root}


def _classes(home: Path) -> list[str]:
    # Sorted as text, as torchvision's ImageFolder does: a model that was trained there has its classes in this order.
    labels = sorted(one.name for one in home.iterdir() if one.is_dir() and not one.name.startswith("."))
    if not labels:
        loose = [one.name for one in home.iterdir() if one.suffix.lower() in EXTENSIONS]
        held = f"images lie in it directly ({first_of(sorted(loose), 2)})" if loose else "it holds no folders"
        raise UserError(f"{home}: {held}; expected one folder a class: {home.name}/<class>/*.png")
    if len(labels) == 1:
        raise UserError(f"{home}: has the one class {labels[0]!r}; a classifier needs at least two")
    return labels


def _files(home: Path, labels: Sequence[str]) -> _Files:
    """Return the image files below each class's folder, sorted; hidden files are none."""
    known = {label: number for number, label in enumerate(labels)}
    folders = sorted(one.name for one in home.iterdir() if one.is_dir() and one.name[0] != ".")
    strange = [name for name in folders if name not in known]
    if strange:
        raise UserError(f"{home / strange[0]}: no such class in train{did_you_mean(strange[0], labels)}")
    paths: list[Path] = []
    target: list[int] = []
    for label, number in known.items():
        if not (home / label).is_dir():
            continue  # a split may lack a class; the splits' check warns about it
        mine = sorted(
            Path(place) / name
            for place, _, names in os.walk(home / label, followlinks=True)
            for name in names
            if name[0] != "." and name.lower().endswith(EXTENSIONS)
        )
        if not mine:
            raise UserError(
                f"{home / label}: holds no images ({', '.join(EXTENSIONS[:3])}, …); add some or remove the folder"
            )
        paths += mine
        target += [number] * len(mine)
    if not paths:
        raise UserError(f"{home}: holds no images; expected one folder a class")
    return _Files(tuple(paths), tuple(target))


def _form(paths: Sequence[Path], settings: DataSettings) -> _Form:
    """Decide size and channels; the first images are spread over the whole list, so over the classes."""
    sample = paths[:: max(1, len(paths) // _FIRST)][:_FIRST]
    sizes, modes = [], []
    for path in sample:
        try:
            with Image.open(path) as image:
                sizes.append(image.size)
                modes.append(image.mode)
        except _DAMAGED as error:
            raise UserError(_undecodable([path], error)) from error
    grey = settings.channels == 1 or (settings.channels is None and all(mode in ("L", "1", "LA") for mode in modes))
    side = settings.image_size
    if side is None:
        width, height = sizes[0]
        if width != height or len(set(sizes)) > 1:
            other = next((size for size in sizes if size != sizes[0]), sizes[0])
            raise UserError(
                f"data.image_size is missing: the images are {width}x{height}, {other[0]}x{other[1]}, …; "
                "set the side of the square that they are brought to, for example image_size: 64"
            )
        side = width
    return _Form(side, "L" if grey else "RGB", settings.image_size is not None)


def _decode(paths: Sequence[Path], form: _Form, progress: Progress | None) -> Pixels:
    """Return all images as uint8 [N, side, side, C]; beyond 1 GiB they lie in a temporary file, not in memory."""
    pixels = _room((len(paths), form.side, form.side, form.channels))
    broken: list[tuple[Path, Exception]] = []

    def one(number: int) -> None:
        try:
            pixels[number] = _read(paths[number], form)
        except UserError:
            raise
        except _DAMAGED as error:
            broken.append((paths[number], error))

    # Threads are enough: Pillow lets go of the interpreter while it decodes.
    with ThreadPoolExecutor(max_workers=usable_threads()) as pool:
        for done, _ in enumerate(pool.map(one, range(len(paths))), start=1):
            if progress is not None and (done % 64 == 0 or done == len(paths)):
                progress("decode images", done, len(paths))
    if broken:
        broken.sort(key=lambda pair: pair[0])
        raise UserError(_undecodable([path for path, _ in broken], broken[0][1]))
    return pixels


def _read(path: Path, form: _Form) -> Pixels:
    with Image.open(path) as image:
        if image.mode.startswith(("I", "F")):
            raise UserError(f"{path}: has more than 8 bits a channel (mode {image.mode}); convert it to 8 bits")
        picture = image.convert(form.mode)
    width, height = picture.size
    side = form.side
    if not form.resize and (width, height) != (side, side):
        raise UserError(
            f"data.image_size is missing: {path} is {width}x{height}, others are {side}x{side}; "
            f"set the side of the square that they are brought to, for example image_size: {side}"
        )
    if (width, height) != (side, side):
        scale = side / min(width, height)
        wide, high = max(side, round(width * scale)), max(side, round(height * scale))
        left, top = (wide - side) // 2, (high - side) // 2
        picture = picture.resize((wide, high), Image.Resampling.BILINEAR).crop((left, top, left + side, top + side))
    return np.asarray(picture, np.uint8).reshape(side, side, form.channels)


def _room(shape: tuple[int, int, int, int]) -> Pixels:
    count = int(np.prod(shape, dtype=np.int64))
    if count <= _IN_MEMORY_BYTES:
        return np.empty(shape, np.uint8)
    try:
        with tempfile.TemporaryFile(prefix="distill-images-") as file:
            # Claim the space now: a map over a full disk dies of a signal in the middle, which nobody can catch.
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, count)
            else:
                file.truncate(count)
            return np.memmap(file, np.uint8, "r+", shape=shape)  # holds on to the file when it is closed here
    except OSError as error:
        raise UserError(
            f"no room for {count / 2**30:.1f} GiB of decoded images in {tempfile.gettempdir()} ({error.strerror}); "
            "set TMPDIR to a larger disk or lower data.image_size"
        ) from error


def _undecodable(paths: Sequence[Path], error: Exception) -> str:
    text = (str(error).splitlines() or [type(error).__name__])[0]
    others = f"; so are {first_of(map(str, paths[1:]), 3)}" if len(paths) > 1 else ""
    return f"{paths[0]}: not a whole image ({text}){others}; replace or remove it"
