"""Thousands of random graphs, in worker processes that may crash or hang: what fails is cut down and written to a file.

python tests/export/random_campaign.py --graphs 20000 --out failures.jsonl
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import time
from collections import Counter
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

_PATIENCE_S = 60.0  # for one graph
_CHUNK = 200  # graphs that one process takes, so that its memory stays small
_STEPS = 14


def check(seed: int, steps: int) -> list[tuple[str, str]]:
    """Check all that has to hold of a graph; return (what, how it failed), or what it was good for (what, "")."""
    import random_checks as checks

    graph = checks.drawn(seed, steps)
    feeds = checks.usable(graph)
    if not feeds:
        return [("unusable", "")]
    tried: list[tuple[str, str]] = []
    rewrites = {"strip": checks.check_strip, "simplify": checks.check_simplify}
    for what in (*rewrites, *checks.KINDS):
        try:
            if what in rewrites:
                rewrites[what](graph, feeds)
                tried.append((what, ""))
            elif checks.check_quantized(graph, feeds, what, seed):
                tried.append((what, ""))
            else:
                tried.append((f"{what} refused", ""))
        except Exception as error:
            tried.append((what, f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"))
    return tried


def _work(pipe: Connection) -> None:
    while True:
        seed, steps = pipe.recv()
        pipe.send(check(seed, steps))


class Worker:
    """A process that checks graphs and is replaced when it crashes, hangs or has worked long."""

    def __init__(self) -> None:
        self._process: Any = None
        self._left = 0

    def check(self, seed: int, steps: int) -> list[tuple[str, str]]:
        """Check one graph; a crash or a hang is a failure like others."""
        if self._process is None or self._left == 0:
            self._start()
        self._left -= 1
        self._pipe.send((seed, steps))
        try:
            if self._pipe.poll(_PATIENCE_S):
                found: list[tuple[str, str]] = self._pipe.recv()
                return found
            how = "Hang: no answer within a minute"
        except (EOFError, ConnectionResetError):
            self._process.join()
            how = f"Crash: the process ended with {self._process.exitcode}"
        self.close()
        return [("process", how)]

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.join()
        self._process = None

    def _start(self) -> None:
        self.close()
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_work, args=(theirs,), daemon=True)
        self._process.start()
        theirs.close()
        self._left = _CHUNK


def smallest(worker: Worker, seed: int, what: str) -> tuple[int, str]:
    """Find the fewest steps at which a seed still fails in the same thing."""
    for steps in range(1, _STEPS + 1):
        for name, how in worker.check(seed, steps):
            if name == what and how:
                return steps, how
    return _STEPS, "not again"


def campaign(graphs: int, *, first: int = 0, out: Path, seconds: float = float("inf")) -> Counter[str]:
    """Check many graphs, append what fails to a file as lines of JSON, and return how many were good for what."""
    worker, counts, end = Worker(), Counter[str](), time.monotonic() + seconds
    for seed in range(first, first + graphs):
        if time.monotonic() > end:
            break
        counts["graphs"] += 1
        for what, how in worker.check(seed, _STEPS):
            counts[f"{what} failed" if how else what] += 1
            if how:
                steps, shortest = smallest(worker, seed, what)
                with out.open("a") as file:
                    line = {"what": what, "seed": seed, "steps": steps, "how": shortest, "at first": how}
                    file.write(json.dumps(line) + "\n")
        if counts["graphs"] % 100 == 0:
            print(dict(sorted(counts.items())), flush=True)
    worker.close()
    return counts


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--graphs", type=int, default=20_000)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument("--out", type=Path, default=Path("failures.jsonl"))
    chosen = parser.parse_args()
    print(dict(campaign(chosen.graphs, first=chosen.first, out=chosen.out, seconds=chosen.seconds)))
