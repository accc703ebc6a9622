"""Types that every room uses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numpy.typing import NDArray

Array = NDArray[Any]
"""An array of any type and shape; the docstring beside it says which."""
Feed = dict[str, Array]
"""The inputs of one call, by the names of a graph's inputs."""
Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is over, and how much there is."""
