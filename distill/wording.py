"""Pieces of error messages."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable

_YAML_WORDS = frozenset({"y", "n", "yes", "no", "on", "off", "true", "false", "null"})


def did_you_mean(name: str, options: Iterable[str]) -> str:
    """Return "; did you mean 'x'?" for the option closest to ``name``, else "; there is: a, b, c" (at most 12)."""
    names = list(options)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    if close := close or [option for option in names if option.lower() == name.lower()]:
        return f"; did you mean {close[0]!r}?"
    shown = ", ".join(names[:12]) + (", …" if len(names) > 12 else "")
    return f"; there is: {shown}" if names else ""


def first_of(names: Iterable[str], limit: int = 5) -> str:
    """Return the first names, comma-separated, and how many more there are."""
    every = list(names)
    more = len(every) - limit
    return ", ".join(every[:limit]) + (f" and {more} more" if more > 0 else "")


def yaml_list(name: str) -> str:
    """Return a YAML list of one text, quoted where YAML would read something else: [age], ["Price, EUR"], ["no"]."""
    bare = re.fullmatch(r"[A-Za-z][\w-]*", name, re.ASCII) and name.lower() not in _YAML_WORDS
    return f"[{name if bare else json.dumps(name, ensure_ascii=False)}]"


def quoted(text: str, limit: int = 60) -> str:
    """Return a text in quotes on one line, the middle of a long one left out."""
    return repr(text if len(text) <= limit else f"{text[: limit - 10]}…{text[-9:]}")
