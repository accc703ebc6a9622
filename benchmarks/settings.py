"""What a user may set about timing: the `benchmark` section of a config."""

from __future__ import annotations

from typing import Annotated

from annotated_types import Ge, Gt, Le, MinLen
from pydantic import Field
from pydantic.dataclasses import dataclass

from distill.bounds import SETTINGS, Rows, Seconds, Threads


@dataclass(frozen=True, kw_only=True, config=SETTINGS)
class BenchmarkSettings:
    """How files are timed; times in seconds."""

    batch_sizes: Annotated[tuple[Rows, ...], MinLen(1)] = Field(
        default=(1, 32), description="Batch sizes that are timed, each on its own."
    )
    threads: Threads = Field(default=1, description="Threads inside an operator, the same for every file.")
    # One session says nothing about how much sessions differ (up to 0.5 %), so two is the least.
    session_pairs: Annotated[int, Ge(2), Le(64)] = Field(
        default=6, description="Fresh pairs of sessions, the replicates behind an interval."
    )
    seconds_per_pair: Annotated[float, Gt(0), Le(60)] = Field(
        default=1.0, description="Seconds that one pair of sessions is timed for, warm-up included where it is short."
    )
    max_latency_s: Seconds | None = Field(
        default=None, description="The budget: seconds a call at the first batch size, or null for none."
    )
    timeout_s: Seconds | None = Field(
        default=None,
        description="Seconds after which a timing process that does not end is killed; null: 300, with TensorRT 1800.",
    )
