"""How long each node of a graph takes, read from profiled sessions: for choices, never for reports."""

from __future__ import annotations

import json
import re
import time
from collections import defaultdict
from pathlib import Path

from distill import scratch
from distill.benchmarks.runner import CPU, session_options
from distill.errors import NotMeasuredError
from distill.types import Feed

_LEAST_CALLS, _MOST_CALLS, _SECONDS = 10, 100, 1.0
# What onnxruntime adds to a node's name when it fuses it, or lays its data out by blocks.
_ADDED = re.compile(r"(_token_\d+|_nchwc|_quant|_Fused\w*)+$")


def kernel_seconds(
    model: bytes,
    feed: Feed,
    threads: int,
    *,
    provider: str = CPU,
    seconds: float = _SECONDS,
    least: int = _LEAST_CALLS,
) -> dict[str, list[float]]:
    """Return the seconds of every call of each node, by its name or, as fused ones have it, its output.

    The model is called ``least`` to 100 times on ``feed``, until ``seconds`` have passed.

    Raises:
        NotMeasuredError: there is no room for a profile.
    """
    import onnxruntime

    with scratch.folder("profile") as folder:
        options = session_options(threads)
        options.enable_profiling = True
        options.profile_file_prefix = str(folder / "profile")
        session = onnxruntime.InferenceSession(model, options, providers=[provider])
        begun = time.perf_counter()
        for number in range(_MOST_CALLS):
            if number >= least and time.perf_counter() - begun > seconds:
                break
            session.run(None, feed)
        try:
            events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
        except ValueError as error:  # onnxruntime does not say that it could not write on
            place = f"{folder.parent}: the profile of onnxruntime was not written whole"
            raise NotMeasuredError(f"{place}; make room for it, or name another folder in TMPDIR") from error
    seconds_by_node: dict[str, list[float]] = defaultdict(list)
    for event in events:
        name = str(event.get("name", ""))
        if event.get("cat") == "Node" and name.endswith("_kernel_time"):
            seconds_by_node[_ADDED.sub("", name.removesuffix("_kernel_time"))].append(event["dur"] / 1e6)
    return dict(seconds_by_node)
