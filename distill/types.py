"""Types that every room uses."""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from typing import Annotated, Any

from annotated_types import Interval
from numpy.typing import NDArray

Array = NDArray[Any]
"""An array of any type and shape; the docstring beside it says which."""
Feed = dict[str, Array]
"""The inputs of one call, by the names of a graph's inputs."""
Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is over, and how much there is."""
Count = Annotated[int, Interval(ge=0, le=2**53)]
"""A number of things; a larger one no JSON reader keeps exactly."""
AboveZero = Annotated[float, Interval(gt=0, lt=inf)]
NotBelowZero = Annotated[float, Interval(ge=0, lt=inf)]
Share = Annotated[float, Interval(ge=0, le=1)]
