"""The one place for a run's files: keys, atomic writes, the lock, and what makes a killed run go on.

A stage is built in a hidden folder that bears its key and becomes visible by one rename, so that a folder that is
there is whole. What a measurement decided is a memo: written before it acts, read on every later run.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from distill import files
from distill.documents import read_json
from distill.errors import UserError

_VERSIONS = ("torch", "onnx", "onnxruntime-gpu", "onnxruntime", "torch-pruning")


def digest(*parts: Any) -> str:
    """Return sixteen hexadecimal digits that stand for JSON values, in order."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def file_sha256(path: Path) -> str:
    """Return the sha256 of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@cache
def sources(*modules: str) -> str:
    """Return a hash of the source text of modules, packages with everything inside them."""
    hashed = hashlib.sha256()
    for name in modules:
        place = Path(str(import_module(name).__file__))
        files = sorted(place.parent.rglob("*.py")) if place.name == "__init__.py" else [place]
        for file in files:
            hashed.update(file.relative_to(place.parent).as_posix().encode() + b"\0" + file.read_bytes())
    return hashed.hexdigest()[:16]


@cache
def versions() -> dict[str, str]:
    """Return the versions of the libraries that decide what a stage makes."""
    found = {}
    for name in _VERSIONS:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def damaged(path: Path, error: BaseException | str, *, remove: Path) -> UserError:
    """Return what to raise for a file of a run that was whole once and cannot be read any more.

    ``remove`` is what has to go so that the run makes it again.
    """
    text = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return UserError(
        f"{path}: damaged ({text}); remove {remove}, then the same command makes it again and goes on from there"
    )


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    files.write_whole(path, text)


class RunFolder:
    """A run's folder, held by one process at a time.

    Use ``RunFolder.hold`` to get one.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.stages = path / "stages"
        self.memos = path / "decisions"
        self.cache = path / "cache"

    @classmethod
    @contextmanager
    def hold(cls, path: Path) -> Iterator[RunFolder]:
        """Make the folder if need be and hold its lock.

        Raises:
            UserError: the folder cannot be written, or another process holds it.
        """
        folder = cls(path)
        try:
            for place in (folder.stages, folder.memos, folder.cache):
                place.mkdir(parents=True, exist_ok=True)
            lock = FileLock(path / ".lock", timeout=0)
            lock.acquire()
        except Timeout as error:
            raise UserError(
                f"run folder {path}: in use by another run; wait for it, or choose another with --out"
            ) from error
        except OSError as error:
            raise UserError(
                f"run folder {path}: cannot be written ({error.strerror or error}); choose another with --out"
            ) from error
        try:
            files.sweep(path)
            yield folder
        finally:
            lock.release()

    def stage(self, name: str, key: str, build: Callable[[Path], dict[str, Any]]) -> tuple[Path, dict[str, Any], bool]:
        """Return a stage's folder and facts, built only when none with this key is there.

        Args:
            name: ``NN-name``.
            key: hash of everything that decides what the stage makes.
            build: writes the files into the folder that it is given and returns the facts, as JSON values. The folder
                may hold a checkpoint of an earlier, killed attempt with the same key.

        Returns:
            The folder, the facts, and whether they were there already.
        """
        final = self.stages / name
        known = _read_stage(final)
        if known is not None and known.get("key") == key:
            _require_files(final)
            return final, known["facts"], True
        for stale in self.stages.glob(f".{name}-*"):
            if stale.name != f".{name}-{key}":
                shutil.rmtree(stale, ignore_errors=True)
        building = self.stages / f".{name}-{key}"
        building.mkdir(exist_ok=True)
        # A stage that is whole but bears its hidden name was killed on the last step: it only wants renaming.
        known = _read_stage(building)
        if known is None:
            known = {"key": key, "facts": json.loads(json.dumps(build(building)))}
            for left in building.glob(f"{Path(CHECKPOINT).stem}.*"):
                left.unlink()
            write_text(building / "stage.json", json.dumps(known, indent=1) + "\n")
        if final.exists():
            shutil.rmtree(final)
        building.rename(final)
        return final, known["facts"], False

    def memo(self, name: str, key: str, compute: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
        """Return what was found out once under this key, and find it out when it was not."""
        path = self.memos / f"{name}-{key}.json"
        known = _read_json(path)
        if known is None:
            known = json.loads(json.dumps(dict(compute())))
            write_text(path, json.dumps(known, indent=1) + "\n")
        return known

    def note(self, name: str, values: Mapping[str, Any]) -> None:
        """Write what a later run has to know."""
        write_text(self.memos / name, json.dumps(dict(values), indent=1) + "\n")

    def noted(self, name: str) -> dict[str, Any]:
        """Return what ``note`` wrote; nothing where it wrote nothing."""
        return _read_json(self.memos / name) or {}

    def publish(self, name: str, build: Callable[[Path], None]) -> Path:
        """Replace the folder ``name`` by what ``build`` writes, whole or not at all."""
        final, building = self.path / name, self.path / f".{name}.tmp"
        shutil.rmtree(building, ignore_errors=True)
        building.mkdir()
        build(building)
        shutil.rmtree(final, ignore_errors=True)
        building.rename(final)
        return final


CHECKPOINT = "checkpoint.safetensors"


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        value = read_json(path)
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def _read_stage(folder: Path) -> dict[str, Any] | None:
    known = _read_json(folder / "stage.json")
    return known if known and isinstance(known.get("facts"), dict) else None


def _require_files(folder: Path) -> None:
    """Refuse what would be waited for, such as a pipe; a run writes plain files only.

    Raises:
        UserError: something else has the name of a file.
    """
    for path in folder.iterdir():
        if not path.is_file():
            raise damaged(path, "is no file", remove=folder)
