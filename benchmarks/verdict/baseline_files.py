"""The two files of a baseline, replaced as one: its JSON has the model that it was measured with at any moment.

A new model lies under a hidden name until the JSON that means it is in place: before that the old pair stands, from
then on the new one, whose model only has to get its name. Who comes next gives it that, whoever was killed before.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from distill import files
from distill.benchmarks.onnx_file.external_data import copy_beside, external_files
from distill.benchmarks.onnx_file.facts import read_facts
from distill.benchmarks.onnx_file.signature import load_proto
from distill.errors import UserError


def model_beside(path: Path) -> Path | None:
    """Find the model of a baseline: `main.onnx` beside `main.json`, or with its external data in `main.model/`."""
    return next((place for place in _places(path) if place.is_file()), None)


def model_of(path: Path, sha256: str) -> Path | None:
    """Find the model that a baseline's JSON was measured with; None where no model was kept.

    Raises:
        UserError: another file has its name.
    """
    with suppress(OSError):  # where nothing may be written the hidden name will do
        settle(path, sha256)
    for place in (*_places(path), *_places(_next(path))):
        if _is(place, sha256):
            return place
    beside = model_beside(path)
    if beside is not None:
        raise UserError(f"{beside}: not the file that {path} was measured with (another sha256); remove one of them")
    return None


@contextmanager
def replacing_model(path: Path, model: Path) -> Iterator[None]:
    """Keep a model beside a baseline whose JSON is written in the context; after an error all is as it was.

    A model with external data is kept in a folder, so that several baselines never share them.
    """
    staged = _next(path)
    _remove(staged)
    try:
        extra = external_files(model, load_proto(model))
        if extra:
            with files.new_folder(_folder(staged)) as new:
                shutil.copyfile(model, new / "model.onnx")
                copy_beside(model, extra, new)
        else:
            _copy(model, _file(staged))
        sha256 = read_facts(_file(staged) if not extra else _folder(staged) / "model.onnx").sha256
        yield
    except BaseException:
        _remove(staged)
        raise
    settle(path, sha256)


def settle(path: Path, sha256: str) -> None:
    """Give the model of a baseline's JSON its name, where it lies under the hidden one.

    Raises:
        OSError: the folder cannot be written.
    """
    staged = _next(path)
    if _is(_file(staged), sha256):
        _copy(_file(staged), _file(path))
        # In one step: half a folder would be nobody's.
        with suppress(FileNotFoundError):
            _folder(path).rename(_folder(staged))
    elif _is(_folder(staged) / "model.onnx", sha256):
        _file(path).unlink(missing_ok=True)  # until the folder has its name, the hidden one is read
        files.replace_folder(_folder(path), _folder(staged))
    else:
        return
    _remove(staged)


def _is(model: Path, sha256: str) -> bool:
    with suppress(UserError):
        return model.is_file() and read_facts(model).sha256 == sha256
    return False


def _copy(source: Path, place: Path) -> None:
    with source.open("rb") as content, files.whole(place) as file:
        shutil.copyfileobj(content, file)


def _next(path: Path) -> Path:
    return path.with_name(f".{path.stem}.next{path.suffix}")


def _places(path: Path) -> tuple[Path, Path]:
    return _file(path), _folder(path) / "model.onnx"


def _file(path: Path) -> Path:
    return path.with_suffix(".onnx")


def _folder(path: Path) -> Path:
    return path.with_suffix(".model")


def _remove(path: Path) -> None:
    for place in (_file(path), _folder(path)):
        files.remove(place)
