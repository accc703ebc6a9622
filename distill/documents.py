"""Text and JSON that lie in a file: read so that the worst that a file can do is to be wrong; records as JSON.

A file may come from a stranger. It never hangs its reader (a pipe that nobody writes to), fills the memory (a device,
or gigabytes) or overflows the stack (nested too deeply).
"""

from __future__ import annotations

import codecs
import dataclasses
import errno
import json
import math
import os
import stat
from collections.abc import Hashable, Mapping
from functools import cache
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

if TYPE_CHECKING:
    from pydantic import TypeAdapter

T = TypeVar("T")
Json = Any
"""A value that JSON holds, where it really is of any form."""

MOST_BYTES = 2**28
"""Of a document; the largest that this product writes are a few megabytes."""

MOST_LEVELS = 100
"""Of a document; the deepest that this product writes have about ten."""


def read_text(path: Path) -> str:
    """Return the text of a file, or of a pipe such as a shell makes of ``<(command)``.

    Raises:
        OSError: it cannot be read, or is a folder or a device.
        ValueError: it is neither UTF-8 nor, by its first bytes, UTF-16, or is larger than ``MOST_BYTES``.
    """
    kind = os.stat(path).st_mode
    if stat.S_ISDIR(kind):
        raise IsADirectoryError(errno.EISDIR, "is a folder", str(path))
    if not (stat.S_ISREG(kind) or stat.S_ISFIFO(kind)):
        raise OSError(errno.EINVAL, "is a device or a socket", str(path))
    # Without O_NONBLOCK a pipe that nobody writes to would be waited for; with it such a pipe is empty.
    opened = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    with open(opened, "rb") as file:
        if stat.S_ISFIFO(kind):
            os.set_blocking(opened, True)
        content = file.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise ValueError(f"is larger than {MOST_BYTES >> 20} MiB")
    of_utf16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        return content.decode("utf-16" if of_utf16 else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(f"line {line}: is not {error.encoding.upper()}; save it as UTF-8") from error


def parse_json(text: str, *, finite: bool = False) -> Any:
    """Return the value of a JSON text; with ``finite``, NaN and infinities are refused, as the standard has it.

    Raises:
        ValueError: it is no JSON, is nested too deeply, or says a key of a mapping twice.
    """
    numbers: dict[str, Any] = {"parse_constant": _refuse, "parse_float": _number} if finite else {}
    try:
        value = json.loads(text, object_pairs_hook=_mapping, **numbers)
    except RecursionError as error:
        raise ValueError("is nested too deeply") from error
    require_shallow(value)
    return value


def require_shallow(value: Any) -> None:
    """Refuse a value of lists and mappings that is nested too deeply for whoever walks it. Raises ValueError."""
    level = [value]
    for _ in range(MOST_LEVELS):
        inner = [list(part.values()) if isinstance(part, dict) else part for part in level]
        level = [part for parts in inner if isinstance(parts, list) for part in parts]
        if not level:
            return
    raise ValueError("is nested too deeply")


def read_json(path: Path, *, finite: bool = False) -> Any:
    """Return the value that a file of JSON holds.

    Raises:
        OSError: what ``read_text`` raises.
        ValueError: it is no JSON, or what ``read_text`` refuses.
    """
    return parse_json(read_text(path), finite=finite)


def _mapping(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    mapping = dict(pairs)
    if len(mapping) != len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"{next(key for key in keys if keys.count(key) > 1)[:40]!r} comes twice")
    return mapping


def _number(text: str) -> float:
    value = float(text)
    return value if math.isfinite(value) else _refuse(text[:40])


def _refuse(name: str) -> NoReturn:
    raise ValueError(f"{name} is no finite number")


class Sparse:
    """A record of which the fields that are None are not written."""


def plain(value: Any) -> Any:
    """Turn records, mappings, tuples and paths into JSON values; a number that is not finite is null."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        sparse = isinstance(value, Sparse)
        return {name: plain(part) for name, part in fields.items() if part is not None or not sparse}
    if isinstance(value, Mapping):
        return {str(key): plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(part) for part in (sorted(value) if isinstance(value, set | frozenset) else value)]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return str(value) if isinstance(value, PurePath) else value


def read_as(record: type[T], value: Any, *, place: str = "") -> T:
    """Read a record, a dataclass or a TypedDict, from what `plain` made of it; ``place`` is what messages call it.

    Raises:
        ValueError: a value is of another type than its field, or a field is missing or unknown.
    """
    from pydantic import ValidationError

    try:
        records: list[T] = _adapter(record).validate_json(json.dumps([value]))  # type: ignore[arg-type]
    except ValidationError as error:
        first = error.errors()[0]
        way = ".".join(map(str, (*([place] if place else ()), *first["loc"][1:])))
        raise ValueError(f"{way or 'the whole'}: {first['msg']}") from error
    return records[0]


@cache
def _adapter(record: Hashable) -> TypeAdapter[Any]:
    from pydantic import ConfigDict, TypeAdapter

    # A list hands its configuration down to the records in it, which have none of their own.
    return TypeAdapter(list[record], config=ConfigDict(extra="forbid", strict=True))  # type: ignore[valid-type]
