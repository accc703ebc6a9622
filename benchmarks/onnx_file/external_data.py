"""The files beside a model that hold its external data: found, and refused where they lie outside its folder."""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath, PureWindowsPath

from google.protobuf.message import Message  # type: ignore[import-untyped]
from onnx import ModelProto, TensorProto
from onnx.external_data_helper import ExternalDataInfo

from distill.errors import UserError

# In place of a file onnxruntime reads its own memory there, at the offset that the model names.
_MEMORY = "*/_ORT_MEM_ADDR_/*"


def external_tensors(proto: ModelProto) -> Iterator[TensorProto]:
    """Yield every tensor of a model, at any depth, whose data lie in another file."""
    return filter(lambda tensor: tensor.data_location == TensorProto.EXTERNAL, _tensors(proto))


def external_files(path: Path, proto: ModelProto) -> list[Path]:
    """List the files that hold a model's external data, as they are named beside it.

    A link is followed where what it names lies in the folder of the model's own file, once links are followed: that is
    how a cache of models lays a model and its data side by side.

    Args:
        path: the model's file.
        proto: what was read from it, without the external data.

    Raises:
        UserError: one lies elsewhere, is missing, too short, or no regular file. None of them has been opened then.
    """
    files: dict[str, Path] = {}
    for tensor in external_tensors(proto):
        info = part_of(path, tensor)
        if info.location not in files:
            files[info.location] = external_file(path, info.location)
        if (info.offset or 0) + (info.length or 0) > files[info.location].stat().st_size:
            raise UserError(
                f"{path}: its external data {info.location!r} end too early for {tensor.name!r}; copy them again"
            )
    return list(dict.fromkeys(files.values()))


def external_file(path: Path, location: str) -> Path:
    """Return the file that a location beside a model names. Raises what `external_files` raises."""
    subject = f"{path}: its external data {location!r}"
    parts = {part for kind in (PurePosixPath, PureWindowsPath) for part in kind(location).parts}
    anchored = PurePosixPath(location).is_absolute() or PureWindowsPath(location).anchor
    if not location or "\0" in location or ".." in parts or anchored or location == _MEMORY:
        raise UserError(
            f"{subject} lie outside its own folder; export it again with the data beside the model, in one folder"
        )
    home = path.absolute().parent
    file = home / location
    real, homes = os.path.realpath(file), {os.path.realpath(home), os.path.dirname(os.path.realpath(path))}
    if not any(Path(real).is_relative_to(folder) for folder in homes):
        raise UserError(
            f"{subject} are a link to outside its own folder ({real}); if you trust the model, copy its folder with "
            "`cp -rL`, which puts the data themselves there"
        )
    if file.exists() and not file.is_file():
        raise UserError(f"{subject} are no regular file; copy them beside the model")
    if not file.is_file():
        raise UserError(f"{subject} are missing; copy them beside the model")
    return file


def copy_beside(model: Path, files: Iterable[Path], folder: Path) -> None:
    """Copy the files of a model's external data into a folder, laid out as they lie beside the model."""
    for source in files:
        target = folder / source.relative_to(model.absolute().parent)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)


def part_of(path: Path, tensor: TensorProto) -> ExternalDataInfo:
    """Return where a tensor's data lie: location, offset and length. Raises UserError for what is no such place."""
    try:
        with unknown_entries_ignored():
            return ExternalDataInfo(tensor)
    except ValueError as error:  # such as a negative offset
        raise UserError(f"{path}: {error}; export it again") from error


@contextmanager
def unknown_entries_ignored() -> Iterator[None]:
    """Keep onnx from warning of entries of external data that it does not know, which mean nothing."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Ignoring unknown external data", category=UserWarning)
        yield


def _tensors(message: Message) -> Iterator[TensorProto]:
    """Yield the tensors in a message; a graph's own come before those of its nodes."""
    if isinstance(message, TensorProto):
        yield message
        return
    for field, value in sorted(message.ListFields(), key=lambda pair: pair[0].name == "node"):
        if field.message_type is not None:
            for part in value if isinstance(value, Sequence) else (value,):
                yield from _tensors(part)
