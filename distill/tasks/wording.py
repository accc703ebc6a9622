"""Pieces of error messages."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def did_you_mean(name: str, options: Iterable[str]) -> str:
    """Return "; did you mean 'x'?" for the option closest to ``name``, else "; there is: a, b, c" (at most 12)."""
    names = list(options)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    lowered = {one.lower(): one for one in names}
    if not close and name.lower() in lowered:
        close = [lowered[name.lower()]]
    if close:
        return f"; did you mean {close[0]!r}?"
    shown = ", ".join(names[:12]) + (", …" if len(names) > 12 else "")
    return f"; there is: {shown}" if names else ""


def first_of(names: Iterable[str], limit: int = 5) -> str:
    """Return the first names, comma-separated, and how many more there are."""
    every = list(names)
    more = len(every) - limit
    return ", ".join(every[:limit]) + (f" and {more} more" if more > 0 else "")
