"""Pruning on every architecture that people have, beside torch-pruning: what works, what is refused, what it gains.

    python -m distill.versus.architectures list
    python -m distill.versus.architectures run results.jsonl --only 'torchvision/*' --ratios 0.3 0.5
    python -m distill.versus.architectures run results.jsonl --drawn 40 --seed 17 --ratios 0.4 --tool distill --untimed
    python -m distill.versus.architectures report results.jsonl

Needs torchvision, timm and transformers. Each step of each model runs in a process of its own with limits on time and
memory, so that a crash or a hang is a line in the results and not their end; what stands in the results is left out, so
that a stopped campaign goes on where it was.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np

from distill.benchmarks import Options, bench, resolve_target
from distill.benchmarks.timing.jobs import Timing
from distill.errors import DistillError
from distill.versus.gate import append, read_rows

from . import architectures_report, architectures_steps
from .apart import Limits, Result, apart, prepare
from .architectures_drawn import drawn
from .architectures_models import CASES, Case

PLAIN = "plain"
DEFAULTS, EXTRAS = "torch-pruning", "torch-pruning-extras"
TOOLS = ("distill", DEFAULTS, EXTRAS)
_LIMITS = Limits()
_PACKAGES = ("torch", "torchvision", "timm", "transformers", "torch-pruning", "onnxruntime-gpu", "onnxruntime")
_TIMING = Timing(pairs=4, seconds_per_pair=0.5)
_PREPARED = ("torch", "torch_pruning", "torch.onnx._internal.exporter._registration", architectures_steps.__name__)


@dataclass(frozen=True, kw_only=True)
class How:
    """What a step may take, and how long files are timed; where they are not, the unpruned model is not exported."""

    limits: Limits = _LIMITS
    timing: Timing | None = _TIMING


def pruned(case: Case, folder: Path, tool: str, asked: float, limits: Limits) -> Result:
    """Have a tool prune a case; ours is loaded again by one more process."""
    if tool != "distill":
        step = partial(architectures_steps.peer, extras=tool == EXTRAS, seconds=limits.seconds / 2)
        return apart(partial(step, case, folder, asked), limits)
    found = apart(partial(architectures_steps.ours, case, folder, asked), limits)
    if (folder / "structure.json").exists():
        found["reload"] = apart(partial(architectures_steps.again, case, folder), limits)
    return found


def timed(folder: Path, found: dict[str, Result], timing: Timing) -> Result:
    """Time the files that there are in turns, batch 1, one thread; add their times to ``found``; return the machine."""
    names = [name for name in found if (folder / f"{name}.onnx").exists()]
    if not names or names[0] != PLAIN:
        return {}
    with np.load(folder / "rows.npz") as stored:
        given = {name: stored[name][:1] for name in stored.files}
    options = Options(target=resolve_target(None, threads=1), timing=timing, rows=given)
    report = bench([folder / f"{name}.onnx" for name in names], options)
    for name, row in zip(names, report.cases[0].rows, strict=True):
        found[name]["p50_s"] = row.p50_s
        if row.ratio is not None:
            found[name]["ratio_to_plain"] = [row.ratio.value, row.ratio.low, row.ratio.high]
    return report.machine


def one(case: Case, asked: float, before: Result, folder: Path, tools: Sequence[str], how: How) -> Result:
    """Try one architecture at one ratio; ``before`` is what its ``plain`` step found."""
    begun = time.perf_counter()
    # Where its examples have nothing to add, what they would do has been done.
    alike = {DEFAULTS, EXTRAS} <= set(tools) and not before.get("extras", True)
    tried = [tool for tool in tools if tool != EXTRAS or not alike]
    found = {PLAIN: dict(before)} | {tool: pruned(case, folder, tool, asked, how.limits) for tool in tried}
    try:
        row: Result = {"machine": timed(folder, found, how.timing)} if how.timing else {}
    except DistillError as error:
        row = {"untimed": str(error)}
    if alike:
        found[EXTRAS] = found[DEFAULTS]
    versions = {}
    for name in _PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            versions[name] = version(name)
    about = {"case": case.title, "source": case.source, "shape": list(case.shape), "asked": asked}
    return about | {"tools": found, "versions": versions, "seconds": time.perf_counter() - begun} | row


def run(
    results: Path, cases: Iterable[Case], ratios: Sequence[float], tools: Sequence[str] = TOOLS, how: How | None = None
) -> None:
    """Try every case at every ratio that the results lack; a line is on the disk before the next is begun."""
    how = how or How()
    done = {(row["case"], row["asked"]) for row in read_rows(results)}
    for case in cases:
        missing = [asked for asked in ratios if (case.title, asked) not in done]
        if not missing:
            continue
        with tempfile.TemporaryDirectory(prefix="distill-versus-") as place:
            step = architectures_steps.plain if how.timing else architectures_steps.counted
            before = apart(partial(step, case, Path(place)), how.limits)
            for asked in missing:
                row = one(case, asked, before, Path(place), tools, how)
                append(results, row)
                with results.open("rb") as file:
                    os.fsync(file.fileno())
                for path in Path(place).iterdir():
                    if path.name not in ("plain.onnx", "rows.npz"):
                        path.unlink()
                print(architectures_report.line(row), flush=True)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m distill.versus.architectures",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    listed = verbs.add_parser("list", help="print the architectures")
    ran = verbs.add_parser("run", help="prune, check and time")
    ran.add_argument("results", type=Path)
    ran.add_argument("--ratios", type=float, nargs="+", default=[0.3, 0.5], help="shares of the MACs to remove")
    ran.add_argument("--tool", choices=TOOLS, action="append", help="only this one")
    ran.add_argument("--seconds", type=float, default=Limits.seconds, help="limit for a step")
    ran.add_argument("--gigabytes", type=float, default=Limits.memory_bytes / 2**30, help="limit for a step")
    ran.add_argument("--untimed", action="store_true", help="only whether it works: half the time")
    for verb in (listed, ran):
        verb.add_argument("--only", default="*", help="SOURCE/MODEL, with * and ?")
        verb.add_argument("--drawn", type=int, help="so many of timm's instead, drawn by --seed")
        verb.add_argument("--seed", type=int, default=0)
    shown = verbs.add_parser("report", help="print the tables")
    shown.add_argument("results", type=Path)
    given = parser.parse_args()
    if given.verb == "report":
        print(architectures_report.report(read_rows(given.results)))
        return
    chosen = CASES if given.drawn is None else drawn(given.drawn, given.seed)
    cases = (case for case in chosen if fnmatch(case.title, given.only))
    sources = (
        {"timm"} if given.drawn is not None else {case.source for case in CASES if fnmatch(case.title, given.only)}
    )
    prepare([*_PREPARED, *sorted(sources)])
    if given.verb == "list":
        for case in cases:
            print(case.title, "x".join(map(str, case.shape)), flush=True)
        return
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # before there is a process that others are forked from
    limits = Limits(seconds=given.seconds, memory_bytes=int(given.gigabytes * 2**30))
    run(
        given.results,
        cases,
        given.ratios,
        given.tool or TOOLS,
        How(limits=limits, timing=None if given.untimed else _TIMING),
    )


if __name__ == "__main__":
    main()
