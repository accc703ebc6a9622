"""`runner.py` with arms that waste a share of their own time, for campaigns that ask what the gate would catch."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

import runner  # type: ignore[import-not-found]


class SpinningArm(runner.Arm):  # type: ignore[misc]
    """An arm that spins for the share `spin` of every call's time after it."""

    def bind(self, session: Any, feeds: dict[str, Any]) -> None:
        """Make the call that is timed longer by its share."""
        super().bind(session, feeds)
        share, clock = self.spec.get("spin", 0.0), time.perf_counter
        call: Callable[[], object] = vars(self)["call"]
        if not share:
            return

        def longer() -> object:
            begin = clock()
            result = call()
            end = begin + (clock() - begin) * (1 + share)
            while clock() < end:
                pass
            return result

        self.call = longer


if __name__ == "__main__":
    runner.Arm = SpinningArm
    runner.main(*sys.argv[1:])
