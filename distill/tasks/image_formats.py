"""Readers of the two binary image formats that need no pickle: IDX (MNIST family) and CIFAR-10's binary version."""

from __future__ import annotations

import gzip
import io
import struct
import tarfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from distill.errors import UserError

Bytes = NDArray[np.uint8]

_CIFAR_SIDE = 32
_CIFAR_RECORD = 1 + 3 * _CIFAR_SIDE * _CIFAR_SIDE
_BROKEN = (OSError, EOFError, zlib.error, tarfile.TarError)


def read_idx(path: Path) -> Bytes:
    """Return an IDX file of unsigned bytes, plain or gzip, in its own shape.

    The format: two zero bytes, type 8, the number of axes, each length as big-endian uint32, then the values.

    Raises:
        UserError: the file is missing, truncated, longer than it says, or something else.
    """
    data = _whole(path)
    if len(data) < 4 or data[:3] != b"\x00\x00\x08":
        raise UserError(f"{path}: not an IDX file of bytes; get it again")
    axes = data[3]
    header = 4 + 4 * axes
    if len(data) < header:
        raise UserError(f"{path}: truncated in its header; get it again")
    shape = struct.unpack(f">{axes}I", data[4:header])
    expected = int(np.prod(shape, dtype=np.int64))
    if len(data) - header != expected:
        raise UserError(
            f"{path}: truncated or damaged: its header promises {expected} bytes, it holds {len(data) - header}; "
            "get it again"
        )
    return np.frombuffer(bytearray(data), np.uint8, offset=header).reshape(shape)


def read_idx_pair(images: Path, labels: Path, *, side: int, classes: int) -> tuple[Bytes, NDArray[np.int64]]:
    """Return images uint8 [N, side, side, 1] and labels int64 [N] of two IDX files.

    Raises:
        UserError: a file is broken, or the two do not belong together.
    """
    pixels, numbers = read_idx(images), read_idx(labels)
    if pixels.ndim != 3 or pixels.shape[1:] != (side, side):
        raise UserError(f"{images}: holds an array of shape {pixels.shape}; expected [N, {side}, {side}]")
    if numbers.ndim != 1 or len(numbers) != len(pixels):
        raise UserError(f"{labels}: holds shape {numbers.shape}; expected one label for each of {len(pixels)} images")
    if len(numbers) and int(numbers.max()) >= classes:
        raise UserError(f"{labels}: holds the label {int(numbers.max())}; expected 0 to {classes - 1}")
    return pixels[..., None], numbers.astype(np.int64)


def read_cifar(place: Path, names: Sequence[str]) -> tuple[Bytes, NDArray[np.int64]]:
    """Return images uint8 [N, 32, 32, 3] and labels int64 [N] of binary batches in a folder or a .tar.gz.

    A record is one label byte and 3072 bytes of pixels, channel by channel.

    Raises:
        UserError: a batch is missing or broken; the message names the file.
    """
    members = _cifar_members(place, names)
    parts = []
    for name, data in members.items():
        if not data or len(data) % _CIFAR_RECORD:
            raise UserError(
                f"{place}/{name}: truncated or damaged: {len(data)} bytes are no whole number of {_CIFAR_RECORD}-byte "
                "records; get it again"
            )
        records = np.frombuffer(data, np.uint8).reshape(-1, _CIFAR_RECORD)
        if int(records[:, 0].max()) > 9:
            label = int(records[:, 0].max())
            raise UserError(f"{place}/{name}: holds the label {label}; expected 0 to 9; get it again")
        parts.append(records)
    records = np.concatenate(parts)
    pixels = records[:, 1:].reshape(-1, 3, _CIFAR_SIDE, _CIFAR_SIDE).transpose(0, 2, 3, 1)
    return np.ascontiguousarray(pixels), records[:, 0].astype(np.int64)


def _cifar_members(place: Path, names: Sequence[str]) -> dict[str, bytes]:
    if place.is_dir():
        return {name: _whole(place / name) for name in names}
    try:
        with tarfile.open(place, "r:gz") as archive:
            members = {Path(member.name).name: member for member in archive if member.isfile()}
            missing = [name for name in names if name not in members]
            if missing:
                raise UserError(f"{place}: holds no {missing[0]}; expected CIFAR-10's binary version")
            return {name: _member(archive, members[name]) for name in names}
    except _BROKEN as error:
        raise UserError(f"{place}: truncated or damaged ({error}); get it again") from error


def _member(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    stream = archive.extractfile(member)
    return stream.read() if stream is not None else b""


def _whole(path: Path) -> bytes:
    try:
        with path.open("rb") as plain:
            zipped = plain.read(2) == b"\x1f\x8b"
            plain.seek(0)
            stream: io.BufferedIOBase | BinaryIO = gzip.GzipFile(fileobj=plain) if zipped else plain
            return stream.read()
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except _BROKEN as error:
        raise UserError(f"{path}: truncated or damaged ({error}); get it again") from error
