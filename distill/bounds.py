"""How large a number may be that a user sets, in a configuration, on the command line or from Python.

Beyond these nothing could be meant, and what counts, waits or reserves memory by such a number would end in an error of
Python's, or not at all. A number is finite.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from annotated_types import Ge, Gt, Le

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

SETTINGS: ConfigDict = {"extra": "forbid", "allow_inf_nan": False}
"""Of every section of a configuration: no unknown key, no number that is not finite."""
