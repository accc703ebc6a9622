"""Python objects in the place of references: a run knows each by a name that holds a digest of its code and content.

The name stands in the configuration, in every key and in the record, so that a run that goes on needs the same object.
"""

from __future__ import annotations

import functools
import inspect
import re
import sys
import types
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from distill.errors import UserError
from distill.references.digest import Digest
from distill.references.imports import imported_files, is_users

PREFIX = "object:"
_held: dict[str, object] = {}


def reference_to(value: object, name: str = "") -> str:
    """Return ``object:NAME-DIGEST``; objects of the same code and content, and those only, have the same."""
    name = name or getattr(value, "__name__", type(value).__name__)
    return f"{PREFIX}{re.sub(r'[^A-Za-z0-9_]+', '', name)}-{Digest().add(_Contents().of(value)).hexdigest()[:16]}"


@contextmanager
def held(objects: Mapping[str, object]) -> Iterator[None]:
    """Let these references stand for these objects in the meantime."""
    before = dict(_held)
    _held.update(objects)
    try:
        yield
    finally:
        _held.clear()
        _held.update(before)


def held_object(reference: str, subject: str) -> Any:
    """Return the object that a reference stands for.

    Raises:
        UserError: it is not at hand; ``subject`` opens the message.
    """
    if reference not in _held:
        raise UserError(f"{subject}: stands for a Python object; give the same one to distill.run again")
    return _held[reference]


class _Contents:
    """Takes objects apart into what a digest can take: numbers, texts, arrays, the code of functions and classes."""

    def __init__(self) -> None:
        # Objects by identity, each with its number: what is met again counts by that, and no identity is reused.
        self._seen: dict[int, tuple[int, object]] = {}
        self._sources: dict[str, str] = {}

    def of(self, value: Any) -> Any:
        if value is None or isinstance(value, bool | int | float | complex | str | bytes | np.ndarray):
            return value
        torch = sys.modules.get("torch")
        if torch is not None and isinstance(value, torch.Tensor):
            return "lazy" if torch.nn.parameter.is_lazy(value) else value
        if isinstance(value, tuple):  # may be shared in one process and not in another
            return [self.of(item) for item in value]
        if id(value) in self._seen:
            return ["again", self._seen[id(value)][0]]
        self._seen[id(value)] = (len(self._seen), value)
        if torch is not None and isinstance(value, torch.utils.data.DataLoader):
            return [self.of(value.dataset), self.of(value.collate_fn)]
        return [type(value).__qualname__, *self._parts(value)]

    def _parts(self, value: Any) -> list[Any]:
        if isinstance(value, Mapping):
            return [[self.of(key), self.of(item)] for key, item in value.items()]
        if isinstance(value, list):
            return [self.of(item) for item in value]
        if isinstance(value, set | frozenset):
            return sorted(map(repr, value))
        if isinstance(value, functools.partial):
            return [self.of(value.func), self.of(value.args), self.of(value.keywords)]
        if isinstance(value, types.MethodType):
            return [self.of(value.__self__), self.of(value.__func__)]
        if isinstance(value, types.FunctionType):
            cells = [cell.cell_contents for cell in value.__closure__ or () if cell != types.CellType()]
            source, names = self._source(value), value.__globals__
            if not source and value.__module__ == "__main__":  # typed at a prompt: what it uses counts, too
                cells += [names[name] for name in value.__code__.co_names if name in names]
            bound = self.of((value.__defaults__, value.__kwdefaults__, cells))
            return [value.__qualname__, source, self.of(value.__code__), bound]
        if isinstance(value, types.CodeType):
            return [value.co_code, self.of(value.co_names), self.of(value.co_consts)]
        if isinstance(value, type):
            source = self._source(value)
            members = [] if source else [item for item in vars(value).values() if isinstance(item, types.FunctionType)]
            return [value.__module__, value.__qualname__, source, self.of(members)]
        if isinstance(value, types.ModuleType) or not hasattr(value, "__dict__"):
            return [getattr(value, "__name__", value)]
        # A module in training mode is the same model as in eval mode.
        return [self.of(type(value)), self.of({key: item for key, item in vars(value).items() if key != "training"})]

    def _source(self, value: Any) -> str:
        """Return a hash of the user's file that defines a function or class, and of those that it imports."""
        try:
            name = inspect.getsourcefile(value) or ""
        except (TypeError, OSError):  # built in, or typed at a prompt
            name = ""
        if not is_users(name) or not Path(name).is_file():
            return ""
        if name not in self._sources:
            path = Path(name).resolve()
            files = imported_files(path, [path.parent, *map(Path, sys.path)], is_users)
            self._sources[name] = Digest().add([file.read_bytes() for file in files]).hexdigest()
        return self._sources[name]
