"""How large a number may be: of a configuration, on the command line, from Python, or in a file that was written.

Beyond these nothing could be meant, and what counts, waits or reserves memory by such a number would end in an error of
Python's, or not at all. A number is finite.
"""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING, Annotated

from annotated_types import Ge, Gt, Interval, Le, Lt

if TYPE_CHECKING:
    from pydantic import ConfigDict

MOST_COUNT = 2**31 - 1
"""Of epochs, samples, steps, widths."""
MOST_ROWS = 2**20
"""Of rows in one call that is timed."""
MOST_SECONDS = 1e6
"""Eleven days; what waits refuses more than a few hundred years."""
MOST_SEED = 2**63 - 1
"""What torch takes."""
MOST_THREADS = 1024
MOST_VALUES = 2**31
"""Of an input that is drawn: more are a damaged file, or a slip of the pen."""

Count = Annotated[int, Ge(1), Le(MOST_COUNT)]
AnyCount = Annotated[int, Ge(0), Le(MOST_COUNT)]
Rows = Annotated[int, Ge(1), Le(MOST_ROWS)]
Seconds = Annotated[float, Gt(0), Le(MOST_SECONDS)]
Threads = Annotated[int, Ge(1), Le(MOST_THREADS)]
Natural = Annotated[int, Interval(ge=0, le=2**53)]
"""Of bytes, calls, weights; a larger one no JSON reader keeps exactly."""
AboveZero = Annotated[float, Interval(gt=0, lt=inf)]
NotBelowZero = Annotated[float, Interval(ge=0, lt=inf)]
Share = Annotated[float, Ge(0), Le(1)]
PartialShare = Annotated[float, Ge(0), Lt(1)]
LearningRate = Annotated[float, Gt(0), Le(100)]

SETTINGS: ConfigDict = {"extra": "forbid", "allow_inf_nan": False}
"""Of every section of a configuration: no unknown key, no number that is not finite."""
