"""Base units into words for people: the only place that knows ms, MB, % and ×.

Every function takes any value whatever and never raises: what is None, not finite or no number at all is `DASH`, the
sign for "not run, not measured, not recorded". Intervals are two-sided 95 % intervals, as the records hold them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

from distill.clean import line as line
from distill.clean import text as clean_text

DASH = "–"
"""What a report shows where nothing was run or measured."""

MINUS = "\N{MINUS SIGN}"
SAME = "≈"
"""After a speed-up whose interval holds 1: no difference was shown."""

MANY = 2000
"""From this many samples on, one sample is less than 0.05 points and a second decimal says something."""

_LATENCY = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"), (1e-9, "ns"))
_BYTES = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "KB"), (1.0, "B"))
_COUNT = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""))


def number(value: Any) -> float | None:
    """Return ``value`` as a finite float; None for everything else (None, a bool, text, NaN, an integer too large)."""
    if value is None or isinstance(value, bool | str | bytes):
        return None
    try:
        quantity = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return quantity if math.isfinite(quantity) else None


def significant(value: Any, digits: int = 3) -> str:
    """Write a number with ``digits`` significant digits: 5.80, 0.0123, 2451, 1.20e+09."""
    quantity = number(value)
    if quantity is None:
        return DASH
    if quantity == 0:
        return "0"
    exponent = int(f"{quantity:.{digits - 1}e}".partition("e")[2])
    text = f"{quantity:.{max(0, digits - 1 - exponent)}f}" if -5 < exponent < 7 else f"{quantity:.{digits - 1}e}"
    return _signed(text)


def plain(value: Any) -> str:
    """Write a recorded number as it is, to six significant digits and without a unit."""
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 10**15:
        return _signed(str(value))
    quantity = number(value)
    return DASH if quantity is None else _signed(f"{quantity:.6g}")


def duration(seconds: Any) -> str:
    """Write a latency: 38.2 µs, 1.24 ms, 2.50 s."""
    return _scaled(seconds, _LATENCY)


def elapsed(seconds: Any) -> str:
    """Write how long something took: 0.4 s, 41 s, 3 min 05 s, 1 h 02 min."""
    quantity = number(seconds)
    if quantity is None or quantity < 0:
        return DASH
    if quantity < 9.95:
        return f"{quantity:.1f} s"
    whole = round(quantity)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def size(count: Any) -> str:
    """Write a number of bytes: 812 B, 96.4 KB, 1.09 MB (1 KB is 1000 bytes)."""
    return _scaled(count, _BYTES, whole=True)


def count(value: Any) -> str:
    """Write a number of parameters, MACs or samples: 812, 80.1 k, 31.2 M."""
    return _scaled(value, _COUNT, whole=True)


def percent(fraction: Any, decimals: int = 1) -> str:
    """Write a fraction as 97.2 %; a share that is not whole is never written as 0 % or 100 %."""
    digits = _percent_digits(fraction, decimals)
    return DASH if digits is None else f"{digits} %"


def share(fraction: Any) -> str:
    """Write a share of nodes: 100 %, 0 %, 87.5 %."""
    quantity = number(fraction)
    return percent(quantity, 0 if quantity in (0.0, 1.0) else 1)


def metric(estimate: Any, samples: Any = None, *, interval: bool = True) -> str:
    """Write a metric with its interval: 97.2 % [95.0, 98.5]; a metric that is no fraction keeps its own unit."""
    value = number(getattr(estimate, "value", None))
    if value is None:
        return DASH
    decimals = 2 if (number(samples) or 0) >= MANY else 1
    share = 0 <= value <= 1
    text = percent(value, decimals) if share else significant(value, 4)
    write = partial(_percent_digits, decimals=decimals) if share else partial(significant, digits=4)
    return _with_bounds(text, estimate, write) if interval else text


def points(fraction: Any, *, unit: bool = True) -> str:
    """Write a difference of fractions in points, two decimals: 0.28 points, −1.40 points."""
    quantity = number(fraction)
    if quantity is None or not math.isfinite(quantity * 100):
        return DASH
    return _signed(_fixed(quantity * 100, 2)) + (" points" if unit else "")


def drop(estimate: Any, *, unit: bool = True) -> str:
    """Write a drop with its interval: 0.28 points [−0.83, 1.39]."""
    text = points(getattr(estimate, "value", None), unit=unit)
    return _with_bounds(text, estimate, partial(points, unit=False))


def times(ratio: Any) -> str:
    """Write a ratio: 12.9×, 5.80×, 0.83×."""
    text = _ratio(ratio)
    return text if text == DASH else f"{text}×"


def speedup(estimate: Any, *, mark: bool = True) -> str:
    """Write a speed-up with its interval: 5.80× [5.61, 6.02]; with `SAME` after it where the interval holds 1."""
    text = times(getattr(estimate, "value", None))
    bounds = _bounds(estimate)
    if text == DASH or bounds is None:
        return text
    return f"{text} [{interval(estimate)}]" + (f" {SAME}" if mark and undecided(estimate) else "")


def finely(ratio: Any) -> str:
    """Write a ratio to a tenth of a per cent where it is near one: 0.952, 12.9."""
    quantity = number(ratio)
    return f"{quantity:.3f}" if quantity is not None and 0.2 < quantity < 5 else significant(ratio)


def faster(slowdown: Any, write: Callable[[Any], str] = finely) -> str:
    """Write a ratio of times, new over old, as the speed-up that it is: 0.952× [0.943, 0.961]; above 1 is faster."""
    value, bounds = number(getattr(slowdown, "value", None)), _bounds(slowdown)
    if not value or value < 0 or bounds is None or min(bounds) <= 0:
        return DASH
    return f"{write(1 / value)}× [{write(1 / bounds[1])}, {write(1 / bounds[0])}]"


def interval(estimate: Any) -> str:
    """Write the two bounds of a ratio with as many decimals as its value has: 5.61, 6.02."""
    bounds, value = _bounds(estimate), _ratio(getattr(estimate, "value", None))
    if bounds is None:
        return DASH
    decimals = len(value.partition(".")[2]) if "e" not in value and value not in ("0", DASH) else 3
    low, high = (_signed(_fixed(bound, decimals)) for bound in bounds)
    return f"{low}, {high}" if max(map(abs, bounds)) < 1e6 else f"{significant(bounds[0])}, {significant(bounds[1])}"


def undecided(estimate: Any) -> bool:
    """Tell whether a ratio's interval holds 1 and is wider than nothing: neither faster nor slower was shown."""
    bounds = _bounds(estimate)
    return bounds is not None and bounds[0] < bounds[1] and bounds[0] <= 1 <= bounds[1]


def by_name(name: str, value: Any) -> str:
    """Write a recorded value in the unit of its name (``_s``, ``_bytes``, ``_share``, ``agreement``); else as it is."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if number(value) is None:
        return DASH if value is None or isinstance(value, int | float) else clean_text(value)
    for ending, write in (("_s", duration), ("_bytes", size), ("_share", share), ("agreement", share)):
        if name.endswith(ending):
            return write(value)
    return plain(value)


def _bounds(estimate: Any) -> tuple[float, float] | None:
    low, high = number(getattr(estimate, "low", None)), number(getattr(estimate, "high", None))
    return None if low is None or high is None else (low, high)


def _with_bounds(text: str, estimate: Any, write: Callable[[Any], str | None]) -> str:
    bounds = _bounds(estimate)
    return text if text == DASH or bounds is None else f"{text} [{write(bounds[0])}, {write(bounds[1])}]"


def _ratio(value: Any) -> str:
    quantity = number(value)
    return significant(value, 2 if quantity is not None and 0.1 <= abs(quantity) < 0.995 else 3)


def _percent_digits(fraction: Any, decimals: int) -> str | None:
    quantity = number(fraction)
    if quantity is None or not math.isfinite(quantity * 100):
        return None
    text = _fixed(quantity * 100, decimals)
    if 0 < quantity < 1:
        while float(text) in (0.0, 100.0) and decimals < 6:
            decimals += 1
            text = _fixed(quantity * 100, decimals)
    return _signed(text)


def _fixed(value: float, decimals: int) -> str:
    return f"{value:.{decimals}f}" if abs(value) < 1e12 else f"{value:.2e}"


def _signed(text: str) -> str:
    """Put a real minus sign in front, and none in front of a zero."""
    if not text.startswith("-"):
        return text
    return MINUS + text[1:] if text.strip("-0.") else text[1:]


def _scaled(value: Any, units: tuple[tuple[float, str], ...], *, whole: bool = False) -> str:
    """Write with three significant digits in the largest unit that leaves 1 or more after rounding.

    What comes in ``whole`` units is written as it is below 1000.
    """
    quantity = number(value)
    if quantity is None:
        return DASH
    if whole and abs(quantity) < 999.5:
        digits, unit = _signed(f"{quantity:.0f}"), units[-1][1]
    else:
        rounded = float(f"{quantity:.2e}")
        scale, unit = next(((s, u) for s, u in units if abs(rounded) >= s), units[-1 if quantity else 0])
        digits = significant(rounded / scale)
    return f"{digits} {unit}".rstrip()
