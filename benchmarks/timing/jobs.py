"""The jobs that `runner.py` is given: which files, which inputs, on what, for how long."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from distill import scratch
from distill.benchmarks.onnx_file.external_data import external_files
from distill.benchmarks.onnx_file.signature import load_proto
from distill.benchmarks.settings import BenchmarkSettings
from distill.benchmarks.target import Target, why_unmeasurable
from distill.benchmarks.timing.process import run_job
from distill.errors import NotMeasuredError
from distill.types import Array, Feed

if TYPE_CHECKING:
    from distill.benchmarks.runner import Answer, Job, Spec

_LONGEST_TEXT = 1024
"""Characters: a category is shorter, and a longer text that is shortened is as unknown as before."""


@dataclass(frozen=True)
class ArmSpec:
    """One file that is timed: where it lies and what it is fed with.

    `command` starts the process that the arm lives in, where it needs one of its own: another interpreter, or torch,
    which is told by `torch` what to run (`TorchCallable.arm`) in place of a file.
    """

    path: Path
    feeds: Feed
    command: tuple[str, ...] = ()
    torch: Mapping[str, str] | None = None

    @property
    def shapes(self) -> dict[str, list[int]]:
        """The shape of every input."""
        return {name: list(value.shape) for name, value in self.feeds.items()}


@dataclass(frozen=True)
class Timing:
    """How long files are timed: `pairs` of fresh sessions at most, `gate` says when fewer will do (`Rule.for_runner`).

    `total_s` is the most that all of them may take, loading left out; None leaves it to the runner.
    """

    pairs: int = 6
    seconds_per_pair: float = 1.0
    seed: int = 0
    total_s: float | None = None
    timeout_s: float | None = None
    gate: Mapping[str, Any] | None = field(default=None)

    @classmethod
    def of(cls, settings: BenchmarkSettings) -> Timing:
        """Take over what the `benchmark` section of a configuration says."""
        return cls(settings.session_pairs, settings.seconds_per_pair, timeout_s=settings.timeout_s)


def time_arms(arms: Sequence[ArmSpec], target: Target, timing: Timing) -> Answer:
    """Have files timed in turns; the answer holds at least two session pairs.

    Raises UserError for a file that onnxruntime refuses, NotMeasuredError for everything else that went wrong.
    """
    subject = " and ".join(dict.fromkeys(str(arm.path) for arm in arms))
    with prepared(arms, target, subject) as specs:
        return run_job(
            time_job(specs, target, timing),
            timeout_s=timing.timeout_s or target.timeout_s,
            subject=subject,
            measure=target.measure,
        )


def time_job(specs: Sequence[Mapping[str, Any]], target: Target, timing: Timing) -> Job:
    """Write down a timing for `runner.py`; more arms get more time."""
    return {
        "task": "time",
        "arms": list(specs),
        "threads": target.threads,
        "pairs": timing.pairs,
        "seconds_per_pair": timing.seconds_per_pair * len(specs) / 2,
        "seed": timing.seed,
        "total_s": timing.total_s,
        "gate": timing.gate,
    }


def inspect_job(spec: Mapping[str, Any], target: Target) -> Job:
    """Write down the inspection of one file for `runner.py`."""
    return {"task": "inspect", "arms": [dict(spec)], "threads": target.threads}


def inspect_file(
    path: str | Path, target: Target, feeds: Feed, *, timeout_s: float | None = None, python: str | None = None
) -> Answer:
    """Run a file once, untimed, in a process of its own: load time, memory, outputs, the nodes that ran.

    `python` is another interpreter, whose onnxruntime is to run it.

    Raises what `time_arms` raises.
    """
    arm = ArmSpec(Path(path), feeds)
    with prepared([arm], target, str(path)) as specs:
        limit = timeout_s or target.timeout_s
        job = inspect_job(specs[0], target)
        return run_job(job, timeout_s=limit, subject=str(path), measure=target.measure, python=python)


@contextmanager
def prepared(arms: Sequence[ArmSpec], target: Target, subject: str) -> Iterator[list[Spec]]:
    """Yield the arms as `runner.py` takes them, their inputs in files that last as long as the context.

    Raises NotMeasuredError where nothing can be timed for the target on this machine.
    """
    why = why_unmeasurable(target)
    if why:
        raise NotMeasuredError(f"{subject}: not measured, {why}")
    with scratch.folder("inputs") as folder:
        yield stored(arms, target, folder, target.for_runner(cache=folder))


def stored(arms: Sequence[ArmSpec], target: Target, folder: Path, place: Mapping[str, Any] | None = None) -> list[Spec]:
    """Write the arms' inputs into a folder, and the arms as `runner.py` takes them.

    Raises UserError for a file whose external data lie elsewhere: a session would read them.
    """
    for arm in arms:
        if arm.torch is None:
            external_files(arm.path, load_proto(arm.path))
    folder.mkdir(parents=True, exist_ok=True)
    return [
        {
            "model": str(arm.path.absolute() if arm.torch is None else arm.path),
            **(arm.torch or {}),
            "inputs": str(_store(arm.feeds, folder / f"{number}.npz")),
            "names": list(arm.feeds),
            **(target.for_runner() if place is None else place),
            "command": list(arm.command) or None,
        }
        for number, arm in enumerate(arms)
    ]


def _store(feeds: Feed, path: Path) -> Path:
    """Write inputs by position: a name may be anything."""
    np.savez(path, *without_objects(feeds).values())
    return path


def without_objects(feed: Feed) -> Feed:
    """Return inputs that numpy saves without pickle: texts become fixed-width, of a long one its start alone."""
    return {name: _fixed_width(value) if value.dtype == object else value for name, value in feed.items()}


def _fixed_width(texts: Array) -> Array:
    # The longest text sets the width of all, at four bytes a character.
    return np.array([str(text)[:_LONGEST_TEXT] for text in texts.ravel()], dtype=str).reshape(texts.shape)
