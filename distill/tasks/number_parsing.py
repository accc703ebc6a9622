"""The grammar of numbers in a table: which texts are numbers, which are codes, and which only look like numbers.

``docs/tables.md`` says the same in prose.
"""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Mapping
from decimal import Decimal

from distill.wording import quoted

MARKS = (".", ",")
"""The decimal marks that are known."""

_NUMBER = {
    mark: re.compile(rf"[+-]?(\d+({point}\d*)?|{point}\d+)(e[+-]?\d{{1,6}})?", re.ASCII | re.IGNORECASE)
    for mark, point in ((".", r"\."), (",", ","))
}
_INFINITE = re.compile(r"[+-]?inf(inity)?", re.ASCII | re.IGNORECASE)
_LEADING_ZERO = re.compile(r"[+-]?0\d", re.ASCII)
_HEXADECIMAL = re.compile(r"0x[\da-f]+", re.ASCII | re.IGNORECASE)
_GROUPS = re.compile(r"[+-]?[1-9]\d{0,2}(([., '’\u00a0\u2009\u202f])\d{3})(\2\d{3})*([.,]\d*)?", re.ASCII)
_ONE_GROUP = {mark: re.compile(rf"[+-]?[1-9]\d{{0,2}}{re.escape(mark)}\d{{3}}", re.ASCII) for mark in MARKS}


def is_number(text: str, mark: str = ".") -> bool:
    """Tell whether a text is a number with this decimal mark: 5, -5, +5, 5.25, .5, 5., 1e-3, inf; codes too."""
    return bool(_NUMBER[mark].fullmatch(text) or _INFINITE.fullmatch(text))


def is_code(text: str) -> bool:
    """Tell whether a text is digits that stand for themselves: a leading zero (0123), an underscore, 0x.

    Programming languages read numbers in them; a table means the text.
    """
    bare = text.replace("_", "")
    digits = any(number.fullmatch(bare) for number in _NUMBER.values())
    return (digits and (bare != text or bool(_LEADING_ZERO.match(bare)))) or bool(_HEXADECIMAL.fullmatch(text))


def value_of(text: str, mark: str = ".") -> float:
    """Return the value of a number, infinite where float64 cannot hold it."""
    return float(text.replace(mark, "."))


def decimal_mark(texts: Iterable[str]) -> str:
    """Return the mark with which more of the texts are numbers; the point where both read as many."""
    every = list(texts)
    points, commas = (sum(bool(_NUMBER[mark].fullmatch(text)) for text in every) for mark in MARKS)
    return "," if commas > points else "."


def plain(text: str, mark: str = ".") -> str:
    """Return the shortest spelling of a number without an exponent: no plus sign, no trailing decimal zeros.

    1.50 becomes 1.5, 0.0 becomes 0, .5 becomes 0.5. A number with an exponent keeps it: 1.0e3 becomes 1e3.
    """
    head, letter, exponent = re.fullmatch(r"([^eE]*)([eE]?)(.*)", text.replace(mark, ".")).groups()  # type: ignore[union-attr]
    sign = "-" if head.startswith("-") else ""
    whole, _, part = head.lstrip("+-").partition(".")
    part = part.rstrip("0")
    digits = (whole or "0") + (f".{part}" if part else "")
    return f"{sign if digits != '0' else ''}{digits}{letter}{exponent}"


def one_by_exponent(texts: Iterable[str], mark: str = ".") -> tuple[str, str] | None:
    """Return two texts that are one number by way of an exponent, such as 1e3 and 1000 or 1E3; None if there are none.

    All texts must be finite numbers.
    """
    spelled: dict[Decimal, str] = {}
    for text in sorted(texts):
        value = Decimal(text.replace(mark, "."))
        other = spelled.setdefault(value, text)
        if ("e" in (text + other).lower()) and plain(other, mark) != plain(text, mark):
            return other, text
    return None


def alike(texts: Iterable[str], mark: str = ".") -> list[list[str]]:
    """Return the groups of texts that differ in nothing but trailing decimal zeros or a plus sign, such as 0 and 0.0.

    Codes, and numbers with an exponent, are like nothing else.
    """
    groups: dict[str, list[str]] = defaultdict(list)
    for text in sorted(texts):
        if is_quantity(text, mark) and "e" not in text.lower():
            groups[plain(text, mark)].append(text)
    return [group for group in groups.values() if len(group) > 1]


def is_quantity(text: str, mark: str = ".") -> bool:
    """Tell whether a text is a finite number and no code."""
    return bool(_NUMBER[mark].fullmatch(text)) and not is_code(text)


def may_be_thousands(texts: Iterable[str], mark: str) -> bool:
    """Tell whether every text that holds ``mark`` has it just before the last three digits, as 1,234 has."""
    marked = [text for text in texts if mark in text]
    return bool(marked) and all(_ONE_GROUP[mark].fullmatch(text) for text in marked)


def notation(text: str, mark: str = ".") -> str | None:
    """Return what keeps a text from being a number that people would read as one; None for any other text."""
    reason, bare = None, text
    if any(letter.isdecimal() and not letter.isascii() for letter in bare):
        bare = "".join(str(unicodedata.decimal(letter)) if letter.isdecimal() else letter for letter in bare)
        reason = "digits other than 0 to 9"
    if any(letter in "−–" for letter in bare):
        bare, reason = bare.replace("−", "-").replace("–", "-"), "a dash for the minus sign"
    signs = [letter for letter in bare if letter in "%‰" or unicodedata.category(letter) == "Sc"]
    if signs:
        bare, reason = "".join(letter for letter in bare if letter not in signs).strip(), f"the sign {signs[0]}"
    if _GROUPS.fullmatch(bare):
        return "separators of thousands" if reason is None or not is_number(bare, mark) else reason
    if reason is None and is_number(bare, MARKS[1 - MARKS.index(mark)]):
        return "a decimal comma beside decimal points" if mark == "." else "a decimal point beside decimal commas"
    return reason if reason is not None and any(is_number(bare, other) for other in MARKS) else None


def counted(counts: Mapping[str, int], limit: int = 3) -> str:
    """Return texts with how often each occurs, the most frequent first: "'null' 80, empty 7"."""
    ranked = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
    listed = ", ".join(f"{quoted(text) if text else 'empty'} {count}" for text, count in ranked[:limit])
    return listed + (", …" if len(ranked) > limit else "")
