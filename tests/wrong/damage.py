"""Damage to a document, by seed: in its values, in its text, and in what lies in its place."""

from __future__ import annotations

import copy
import json
import math
import os
import random
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ODD: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 2**63, 10**400, 0.5, -0.0, 1e308, 5e-324, math.nan, math.inf, -math.inf),
    *("", "x", "1", "\0", "nan", "../../x", [], {}, [[]], [None], {"": None}, {"a": []}, [0] * 9),
)
"""Values of every kind that JSON has, and of those that only Python's JSON has."""


def places(value: Any, way: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the way to every value inside a document."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*way, key)
        yield from places(inner, (*way, key))


def _changed(document: Any, way: tuple[Any, ...], change: Callable[[Any, Any], None]) -> str:
    damaged = copy.deepcopy(document)
    inner = damaged
    for key in way[:-1]:
        inner = inner[key]
    change(inner, way[-1])
    return json.dumps(damaged)


def in_a_value(document: Any, rng: random.Random) -> tuple[str, str]:
    """Damage one value; a way is drawn by its form first, so that a long list hides no other field."""
    forms: dict[tuple[Any, ...], list[tuple[Any, ...]]] = {}
    for way in places(document):
        forms.setdefault(tuple("#" if isinstance(key, int) else key for key in way), []).append(way)
    way = rng.choice(forms[rng.choice(list(forms))])
    kind = rng.choice(("odd", "odd", "odd", "odd", "none", "more", "twice"))
    named = "/".join(map(str, way))

    def twice(inner: Any, key: Any) -> None:
        inner[key] = [inner[key]] if isinstance(inner, dict) else inner[key]
        if isinstance(inner, list):
            inner.append(inner[key])

    def more(inner: Any, key: Any) -> None:
        if isinstance(inner, dict):
            inner["extra"] = 1
        else:
            inner.append(None)

    if kind == "odd":
        odd = rng.choice(ODD)
        return f"{named}={odd!r}"[:120], _changed(document, way, lambda inner, key: inner.__setitem__(key, odd))
    if kind == "none":
        return f"{named} removed", _changed(document, way, lambda inner, key: inner.__delitem__(key))
    return f"{named} {kind}", _changed(document, way, more if kind == "more" else twice)


def in_the_text(text: bytes, rng: random.Random) -> tuple[str, bytes]:
    """Damage the bytes of a document."""
    at = rng.randrange(len(text) + 1)
    key = text.split(b'"')[1] if text.count(b'"') > 1 else b"a"
    kinds: dict[str, Callable[[], bytes]] = {
        f"cut at {at}": lambda: text[:at],
        "empty": lambda: b"",
        "zeros": lambda: bytes(len(text)),
        f"zero at {at}": lambda: text[:at] + b"\0" + text[at:],
        f"bit at {at}": lambda: (
            text[:at] + bytes([text[min(at, len(text) - 1)] ^ 1 << rng.randrange(8)]) + text[at + 1 :]
        ),
        f"no utf-8 at {at}": lambda: text[:at] + b"\xff\xfe" + text[at:],
        "utf-16": lambda: text.decode().encode("utf-16"),
        "byte order mark": lambda: b"\xef\xbb\xbf" + text,
        "deep": lambda: b"[" * 100_000,
        "deep mapping": lambda: b'{"a":' * 50_000,
        "1e999": lambda: text.replace(b": 0", b": 1e999", 1),
        "twice": lambda: text + text,
        "twice a key": lambda: b'{"' + key + b'": 5,' + text.lstrip()[1:],
        "twice a key behind": lambda: text.rstrip()[:-1] + b', "' + key + b'": 5}',
        "a number": lambda: b"5",
        "a list": lambda: b"[" + text + b"]",
        "no JSON": lambda: b"PK\x03\x04" + text,
        "a long number": lambda: text.replace(b": 0", b": " + b"9" * 5000, 1),
    }
    name = rng.choice(list(kinds))
    return name, kinds[name]()


def _socket(path: Path) -> None:
    here = Path.cwd()
    os.chdir(path.parent)  # the path of a socket is short
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path.name)
    finally:
        os.chdir(here)


def _folder(path: Path) -> None:
    path.mkdir()
    (path / "mine.txt").write_text("mine")


IN_PLACE: dict[str, Callable[[Path], Any]] = {
    "folder": _folder,
    "pipe": os.mkfifo,
    "socket": _socket,
    "link that leads nowhere": lambda path: path.symlink_to("nowhere"),
    "link to itself": lambda path: path.symlink_to(path.name),
    "link to a device": lambda path: path.symlink_to("/dev/zero"),
    "link to a folder": lambda path: path.symlink_to("."),
    "nothing": lambda path: None,
}
"""What may lie where a document was."""


def in_its_place(path: Path, kind: str) -> None:
    """Lay something else in the place of a file."""
    path.unlink()
    IN_PLACE[kind](path)
