"""Images in folders: ``path/<class>/*.png``, or ``path/train/<class>/…`` with ``validation`` and ``test`` beside it."""

from __future__ import annotations

import hashlib
import io
import os
import struct
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from distill.benchmarks.timing.machine import usable_threads
from distill.errors import UserError
from distill.files import at_home
from distill.tasks.base import SPLITS, Task
from distill.tasks.image import Pixels, Pool, image_task
from distill.tasks.image_files import Files, find_pictures
from distill.tasks.settings import ImageFolderSettings
from distill.types import Progress
from distill.wording import first_of

_IN_MEMORY_BYTES = 1 << 30
_GREY = ("1", "L", "LA")
_ORIENTATION = 0x0112

# What Pillow raises on a damaged file, depending on the format.
_DAMAGED = (OSError, SyntaxError, ValueError, struct.error, IndexError, Image.DecompressionBombError)


class _Form(NamedTuple):
    """What every image is brought to: ``side`` pixels square, mode L or RGB, as many channels."""

    side: int
    mode: str
    channels: int


@dataclass(frozen=True)
class _Header:
    """What an image file says of itself before it is decoded."""

    path: Path
    size: tuple[int, int]
    mode: str
    transparent: bool
    frames: bool


@dataclass(frozen=True)
class _Decoded:
    """One split's images, [N, side, side, C], with each file's digest and those that EXIF turns."""

    pool: Pool
    digests: list[bytes]
    turned: list[Path]


def load_image_folder(
    settings: ImageFolderSettings, *, seed: int, folder: Path, progress: Progress | None = None
) -> Task:
    """Return the task of a folder of images, decoded once to bytes, upright as their EXIF orientation says.

    Raises:
        UserError: the folder is missing or holds no images, a class is empty or alone, a file cannot be decoded.
    """
    root = folder / at_home(settings.path)
    labels, files, warnings = find_pictures(root)
    if len(files) == 1:
        counts = Counter(number for _, number in files["train"])
        few = [label for number, label in enumerate(labels) if counts[number] < 3]
        if few:
            raise UserError(
                f"{root / few[0]}: fewer than 3 images; each class needs one for train, validation and test "
                "each. Add images or remove the folder"
            )
    else:
        missing = [split for split in SPLITS if split not in files]
        warnings += [f"{root} has no {split} folder: it is cut off train by seed" for split in missing]
    headers = _headers([path for split in files.values() for path, _ in split])
    form = _form(headers, settings)
    warnings += _conversions(headers, form, settings)
    decoded = {split: _decode(files[split], form, progress) for split in files}
    turned = [path for split in decoded.values() for path in split.turned]
    if turned:
        warnings.append(
            f"{len(turned)} image(s) were turned upright by their EXIF orientation, such as {turned[0]}; what the "
            "shipped file is fed with must be turned as well (Pillow: ImageOps.exif_transpose)"
        )
    warnings += _copies(files, decoded)
    pools = {split: images.pool for split, images in decoded.items()}
    return image_task("imagefolder", pools, labels, settings, seed=seed, warnings=warnings)


def _headers(paths: Sequence[Path]) -> list[_Header]:
    """Read the headers of all images; a damaged file has none, and is told when it is decoded."""

    def read(path: Path) -> _Header | None:
        try:
            with Image.open(path) as image:
                # Phones write a second picture into a JPEG file (MPO): it is no animation.
                frames = image.format != "MPO" and getattr(image, "is_animated", False)
                return _Header(path, image.size, image.mode, image.has_transparency_data, frames)
        except _DAMAGED:
            return None

    with ThreadPoolExecutor(max_workers=usable_threads()) as pool:
        return [header for header in pool.map(read, paths) if header is not None]


def _form(headers: Sequence[_Header], settings: ImageFolderSettings) -> _Form:
    """Decide size and channels: greyscale only where every image is grey."""
    grey = settings.channels == 1 or (
        settings.channels is None and bool(headers) and all(header.mode in _GREY for header in headers)
    )
    side = settings.image_size
    if side is None:
        first = headers[0].size if headers else (1, 1)
        other = next((header for header in headers if header.size != first), None)
        for_example = "set the side of the square that they are brought to, for example image_size:"
        if first[0] != first[1]:
            second = first if other is None else other.size
            raise UserError(
                f"data.image_size is missing: the images are {first[0]}x{first[1]}, {second[0]}x{second[1]}, …; "
                f"{for_example} 64"
            )
        if other is not None:
            raise UserError(
                f"data.image_size is missing: {other.path} is {other.size[0]}x{other.size[1]}, others are "
                f"{first[0]}x{first[0]}; {for_example} {first[0]}"
            )
        side = first[0]
    return _Form(side, "L", 1) if grey else _Form(side, "RGB", 3)


def _conversions(headers: Sequence[_Header], form: _Form, settings: ImageFolderSettings) -> Iterator[str]:
    """Say what is lost or added when images of several kinds are brought to one."""
    grey = [header for header in headers if header.mode in _GREY]
    if settings.channels is None and 0 < len(grey) < len(headers):
        yield f"{len(grey)} of {len(headers)} images are grey, such as {grey[0].path}: all are read as RGB"
    transparent = [header for header in headers if header.transparent]
    if transparent:
        yield f"{len(transparent)} image(s) have transparency, such as {transparent[0].path}: it is left out"
    kinds = Counter(header.mode for header in headers if header.mode not in (*_GREY, "P", "PA", "RGB", "RGBA", "RGBX"))
    if kinds:
        counts = ", ".join(f"{count} {mode}" for mode, count in kinds.most_common())
        yield f"images of other colour spaces are converted to {form.mode}, without a colour profile: {counts}"
    moving = [header for header in headers if header.frames]
    if moving:
        yield f"{len(moving)} image(s) have several frames, such as {moving[0].path}: the first is taken"


def _decode(files: Files, form: _Form, progress: Progress | None) -> _Decoded:
    """Decode all images; beyond 1 GiB they lie in a temporary file, not in memory."""
    paths, target = zip(*files, strict=True)
    pixels = _room((len(paths), form.side, form.side, form.channels))
    digests = [b""] * len(paths)
    turned: list[Path] = []
    broken: list[tuple[Path, Exception]] = []

    def decode(number: int) -> None:
        try:
            data = paths[number].read_bytes()
            digests[number] = hashlib.blake2b(data, digest_size=16).digest()
            pixels[number], upright = _pixels(paths[number], data, form)
            if not upright:
                turned.append(paths[number])
        except UserError:
            raise
        except _DAMAGED as error:
            broken.append((paths[number], error))

    # Threads are enough: Pillow lets go of the interpreter while it decodes.
    with ThreadPoolExecutor(max_workers=usable_threads()) as pool:
        for count, _ in enumerate(pool.map(decode, range(len(paths))), start=1):
            if progress is not None and (count % 64 == 0 or count == len(paths)):
                progress("decode images", count, len(paths))
    if broken:
        broken.sort(key=lambda pair: pair[0])
        raise UserError(_undecodable([path for path, _ in broken], broken[0][1]))
    return _Decoded(Pool(pixels, np.asarray(target, np.int64)), digests, sorted(turned))


def _pixels(path: Path, data: bytes, form: _Form) -> tuple[Pixels, bool]:
    """Return an image as uint8 [side, side, C], and whether it lay upright in its file."""
    with Image.open(io.BytesIO(data)) as image:
        if image.mode.startswith(("I", "F")):
            raise UserError(f"{path}: has more than 8 bits a channel (mode {image.mode}); convert it to 8 bits")
        # Pillow turns a TIFF as it loads it; and a PNG may say its orientation behind its pixels.
        before = _orientation(image) if image.format == "TIFF" else 1
        image.load()
        upright = before == _orientation(image) == 1
        picture = image if upright else ImageOps.exif_transpose(image)
        # By way of RGBA: Pillow warns where it drops a palette's transparency on the straight way.
        picture = (picture.convert("RGBA") if picture.has_transparency_data else picture).convert(form.mode)
    width, height = picture.size
    side = form.side
    if (width, height) != (side, side):
        scale = side / min(width, height)
        wide, high = max(side, round(width * scale)), max(side, round(height * scale))
        left, top = (wide - side) // 2, (high - side) // 2
        picture = picture.resize((wide, high), Image.Resampling.BILINEAR).crop((left, top, left + side, top + side))
    return np.asarray(picture, np.uint8).reshape(side, side, form.channels), upright


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 to 8; 1, upright, where there is none or it cannot be read."""
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except _DAMAGED:
        return 1
    return int(value) if value in range(1, 9) else 1


def _copies(files: Mapping[str, Files], decoded: Mapping[str, _Decoded]) -> Iterator[str]:
    """Warn of equal files: in two classes, in two splits, or where a split of ours may part them."""
    places: dict[bytes, list[tuple[str, int, Path]]] = defaultdict(list)
    for split, images in decoded.items():
        for digest, (path, number) in zip(images.digests, files[split], strict=True):
            places[digest].append((split, number, path))
    copies = [group for group in places.values() if len(group) > 1]
    mislabelled = [group for group in copies if len({number for _, number, _ in group}) > 1]
    if mislabelled:
        pair = _pair(mislabelled, 1)
        yield f"{len(mislabelled)} image(s) lie in two classes, equal byte for byte: {pair}; remove one of each"
    leaks = [group for group in copies if len({split for split, _, _ in group}) > 1]
    if leaks:
        yield (
            f"data leak: {len(leaks)} image(s) lie in two splits, equal byte for byte: {_pair(leaks, 0)}; remove one "
            "of each"
        )
    inside = [group for group in copies if group not in mislabelled and len({split for split, _, _ in group}) == 1]
    if inside and len(files) < len(SPLITS):
        yield (
            f"{len(inside)} image(s) have copies, equal byte for byte: {_pair(inside, None)}; a copy in another split "
            "is a data leak, remove it"
        )


def _pair(groups: Sequence[Sequence[tuple[str, int, Path]]], differs: Literal[0, 1] | None) -> str:
    """Name two files of the first group, which differ in their split (0), in their class (1), or in neither."""
    first, *others = groups[0]
    second = next(copy for copy in others if differs is None or copy[differs] != first[differs])
    return f"{first[2]} and {second[2]}"


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
    if isinstance(error, UnidentifiedImageError):
        text = "its format is unknown"
    others = f"; so are {first_of(map(str, paths[1:]), 3)}" if len(paths) > 1 else ""
    return f"{paths[0]}: not a whole image ({text}){others}; replace or remove it"
