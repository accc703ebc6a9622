"""Pieces of error messages."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable

_YAML_WORDS = frozenset({"y", "n", "yes", "no", "on", "off", "true", "false", "null"})
_ALIKE = 0.75
_STEM = 4  # letters


def did_you_mean(name: str, options: Iterable[str]) -> str:
    """Return "; did you mean 'x'?" for what ``name`` may stand for, else "; there is: a, b, c" (at most 12)."""
    names = list(options)
    close = nearest_names(name, names, 1)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; there is: {', '.join(names[:12])}{', …' if len(names) > 12 else ''}" if names else ""


def nearest_names(name: str, options: Iterable[str], count: int) -> list[str]:
    """Return which options ``name`` may stand for, the likeliest first.

    They are spelled nearly alike, or one is the stem of the other (prune, pruning); names that differ in their numbers
    (resnet18, resnet20) mean different things.
    """

    def plain(text: str) -> str:
        return re.sub(r"[-_ .]", "", text.lower())

    def likeness(option: str) -> float:
        texts = plain(name), plain(option)
        digits = [re.sub(r"\D+", " ", text).strip() for text in texts]
        if all(digits) and not digits[0].startswith(digits[1]) and not digits[1].startswith(digits[0]):
            return 0
        alike = difflib.SequenceMatcher(None, *texts).ratio()
        shorter = min(texts, key=len)
        stem = shorter[: max(_STEM, len(shorter) - 1)]
        related = len(stem) >= _STEM and all(text.startswith(stem) for text in texts)
        turned = sorted(texts[0]) == sorted(texts[1])  # two letters of a short name
        return alike if alike >= _ALIKE or related or turned else 0

    scores = {option: likeness(option) for option in options}
    return sorted((option for option in scores if scores[option]), key=lambda option: -scores[option])[:count]


def first_of(names: Iterable[str], limit: int = 5) -> str:
    """Return the first names, comma-separated, and how many more there are."""
    every = list(names)
    more = len(every) - limit
    return ", ".join(every[:limit]) + (f" and {more} more" if more > 0 else "")


def yaml_list(name: str) -> str:
    """Return a YAML list of one text, quoted where YAML would read something else: [age], ["Price, EUR"], ["no"]."""
    bare = re.fullmatch(r"[A-Za-z][\w-]*", name, re.ASCII) and name.lower() not in _YAML_WORDS
    return f"[{name if bare else json.dumps(name, ensure_ascii=False)}]"


def is_utf8(text: str) -> bool:
    """Tell whether a text, such as a file's name, can be written as UTF-8; Python has surrogates for other bytes."""
    return not any("\ud800" <= sign <= "\udfff" for sign in text)


def shortened(text: str, limit: int = 60) -> str:
    """Return a text, the middle of a long one left out."""
    return text if len(text) <= limit else f"{text[: limit - 10]}…{text[-9:]}"


def quoted(value: object, limit: int = 60) -> str:
    """Return a value as Python writes it, a text in quotes and on one line; the middle of a long one is left out."""
    return repr(shortened(value, limit)) if isinstance(value, str) else shortened(repr(value), limit)
