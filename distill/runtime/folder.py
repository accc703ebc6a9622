"""The one place for a run's files: keys, atomic writes, the lock, and what makes a killed run go on.

A stage is built in a hidden folder that bears its key and becomes visible by one rename, so that a folder that is
there is whole. What a measurement decided is a memo: written before it acts, read on every later run.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

from filelock import FileLock, Timeout

from distill import files
from distill.documents import plain, read_as
from distill.errors import UserError
from distill.sealed_files import AlteredError, altered, hashes_of, read_sealed, write_sealed
from distill.sealed_files import file_sha256 as file_sha256  # others take both from here
from distill.sealed_files import write_text as write_text
from distill.versions import version_of
from distill.wording import is_utf8

T = TypeVar("T")
_VERSIONS = ("torch", "onnx", "onnxruntime-gpu", "onnxruntime", "torch-pruning")
Record = dict[str, Any]
"""JSON values by name."""


def digest(*parts: Any) -> str:
    """Return sixteen hexadecimal digits that stand for records and JSON values, in order."""
    text = json.dumps(plain(parts), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@cache
def sources(*modules: str) -> str:
    """Return a hash of the source text of modules, packages with everything inside them."""
    hashed = hashlib.sha256()
    for name in modules:
        place = Path(str(import_module(name).__file__))
        for file in sorted(place.parent.rglob("*.py")) if place.name == "__init__.py" else [place]:
            hashed.update(file.relative_to(place.parent).as_posix().encode() + b"\0" + file.read_bytes())
    return hashed.hexdigest()[:16]


@cache
def versions() -> dict[str, str]:
    """Return the versions of the libraries that decide what a stage makes."""
    return {name: version for name in _VERSIONS if (version := version_of(name))}


def damaged(path: Path, error: BaseException | str, *, remove: Path) -> UserError:
    """Return what to raise for a file of a run that was whole once and cannot be read any more.

    ``remove`` is what has to go so that the run makes it again.
    """
    text = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return UserError(
        f"{path}: damaged ({text}); remove {remove}, then the same command makes it again and goes on from there"
    )


class RunFolder:
    """A run's folder, held by one process at a time.

    Use ``RunFolder.hold`` to get one.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.stages = path / "stages"
        self.memos = path / "decisions"
        self.cache = path / "cache"
        self.say: Callable[[str], None] = lambda text: None
        self.repairs: list[str] = []
        """What was found altered, and was made again."""

    @classmethod
    @contextmanager
    def hold(cls, path: Path) -> Iterator[RunFolder]:
        """Make the folder if need be and hold its lock; an error before any stage was begun leaves it as it was.

        Raises:
            UserError: the folder cannot be written, or another process holds it.
        """
        folder = cls(path)
        if not is_utf8(str(path)):
            raise UserError(f"run folder {str(path)!r}: its name is not UTF-8; choose another with --out")
        try:
            absent = [place for place in (path, *path.parents) if not place.exists()]
            is_new = bool(absent) or (path.is_dir() and not any(path.iterdir()))
            for place in (folder.stages, folder.memos, folder.cache):
                if place.is_symlink():
                    raise UserError(f"{place}: is a link, and a run writes into its own folder only; remove the link")
                place.mkdir(parents=True, exist_ok=True)
            lock = FileLock(path / ".lock", timeout=0)
            lock.acquire()
        except Timeout as error:
            raise UserError(
                f"run folder {path}: in use by another run; wait for it, or choose another with --out"
            ) from error
        except (OSError, ValueError) as error:  # a zero byte
            why = getattr(error, "strerror", None) or error
            raise UserError(f"run folder {path}: cannot be written ({why}); choose another with --out") from error
        try:
            files.sweep(path)
            yield folder
        except BaseException:
            if is_new and not any(folder.stages.iterdir()):
                for place in path.iterdir():
                    files.remove(place)
                for place in absent:
                    with suppress(OSError):  # another run began beside it
                        place.rmdir()
            raise
        finally:
            lock.release()

    def tell(self, text: str) -> None:
        """Note that something was not as it was left, and say so."""
        if text not in self.repairs:
            self.repairs.append(text)
            self.say(text)

    def stage(self, name: str, key: str, build: Callable[[Path], Record]) -> tuple[Path, Record, bool]:
        """Return a stage's folder and facts, built only when none with this key is there, every file as it was written.

        Args:
            name: ``NN-name``.
            key: hash of everything that decides what the stage makes.
            build: writes the files into the folder that it is given and returns the facts, as JSON values. The folder
                may hold a checkpoint of an earlier, killed attempt with the same key.

        Returns:
            The folder, the facts, and whether they were there already.
        """
        final, building = self.stages / name, self.stages / f".{name}-{key}"
        files.settle_folder(final)
        record = self._record(final)
        if record is not None and record["key"] == key:
            different = altered(final, record["files"])
            if not different:
                return final, record["facts"], True
            for file, how in different:
                hint = "; teacher.weights takes weights of your own" if file == "model.safetensors" else ""
                self.tell(f"{final / file} {how}: the stage is made again{hint}")
        for stale in self.stages.glob(f".{name}-*"):
            if stale != building:
                files.remove(stale)
        if building.is_symlink() or not building.is_dir():
            files.remove(building)
        building.mkdir(exist_ok=True)
        for path in list(building.rglob("*")):
            if path.is_symlink() or not (path.is_file() or path.is_dir()):  # nothing that a run left
                files.remove(path)
        # A stage that is whole but bears its hidden name was killed on the last step: it only wants renaming.
        built = self._record(building)
        if built is None or built["key"] != key or altered(building, built["files"]):
            facts = build(building)
            for left in building.glob(f"{Path(CHECKPOINT).stem}.*"):
                left.unlink()
            files.remove(building / RECORD)
            built = write_sealed(building / RECORD, {"key": key, "facts": facts, "files": hashes_of(building)})
        files.replace_folder(final, building, ours=None if record is None else {*record["files"], RECORD})
        return final, built["facts"], False

    def hashes(self, stage: Path) -> dict[str, str]:
        """Return the sha256 of every file of a stage, by name, as recorded when it was made."""
        record = self._record(stage)
        return {} if record is None else dict(record["files"])

    def _record(self, stage: Path) -> Record | None:
        """Return what was recorded about a stage; None where nothing is, or not what was written."""
        record = self._sealed(stage / RECORD, "the stage is made again")
        if record is None or not isinstance(record.get("facts"), dict) or not _is_hashes(record.get("files")):
            return None
        return record if isinstance(record.get("key"), str) else None

    def _sealed(self, path: Path, then: str) -> Record | None:
        try:
            return read_sealed(path)
        except AlteredError as error:
            self.tell(f"{path} {error}: {then}")
            return None

    def memo(self, name: str, key: str, compute: Callable[[], T], record: type[T]) -> T:
        """Return what was found out once under this key, a record of this type, and find it out when it was not."""
        path = self.memos / f"{name}-{key}.json"
        stored = self._sealed_record(path, record, "found out again")
        if stored is None:
            computed = compute()
            files.remove(path)
            stored = read_as(record, write_sealed(path, plain(computed)))
        return stored

    def note(self, name: str, record: Any) -> None:
        """Write a record that a later run has to know."""
        files.remove(self.memos / name)
        write_sealed(self.memos / name, plain(record))

    def noted(self, name: str, record: type[T]) -> T | None:
        """Return the record that ``note`` wrote; None where it wrote none, or something else is there."""
        return self._sealed_record(self.memos / name, record, "made again")

    def _sealed_record(self, path: Path, record: type[T], then: str) -> T | None:
        values = self._sealed(path, then)
        try:
            return None if values is None else read_as(record, values)
        except ValueError as error:
            self.tell(f"{path} is damaged ({error}): {then}")
            return None

    def publish(self, name: str, build: Callable[[Path], None], *, ours: Collection[str] | None = None) -> Path:
        """Replace the folder ``name`` by what ``build`` writes, whole or not at all.

        Args:
            name: of the folder.
            build: writes the files into the folder that it is given.
            ours: names of what goes with the old folder; the rest of it is the user's and stays. None for all of it.
        """
        final, building = self.path / name, self.path / f".{name}.tmp"
        files.settle_folder(final)
        files.remove(building)
        building.mkdir()
        build(building)
        files.replace_folder(final, building, ours=ours)
        return final


def _is_hashes(value: object) -> bool:
    """Whether a record says the hashes of files by their names."""
    return isinstance(value, dict) and all(isinstance(digest, str) for digest in value.values())


CHECKPOINT = "checkpoint.safetensors"
RECORD = "stage.json"
