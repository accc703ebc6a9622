"""Processes that a test has started: which run, for how long they computed, and an end for what is left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

MARK = "MARKED_BY_A_TEST"
ENDINGS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
LIMIT_S = 300.0


def start(folder: Path, *words: str, ignored: Collection[int] = (), **environment: str) -> subprocess.Popen[str]:
    """Start the command line in a folder, its temporary files in ``tmp`` there; these signals are ignored, or none.

    Who started the tests may ignore some, as a shell does for what it puts into the background.
    """
    (folder / "tmp").mkdir(exist_ok=True)
    own = {"TMPDIR": str(folder / "tmp"), MARK: str(folder), "OMP_NUM_THREADS": "1"}
    before = {number: signal.getsignal(number) for number in ENDINGS}
    try:
        for number in ENDINGS:
            signal.signal(number, signal.SIG_IGN if number in ignored else signal.SIG_DFL)
        return subprocess.Popen(
            [sys.executable, "-m", "distill", *words],
            cwd=folder,
            env={**os.environ, **own, **environment},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def running(folder: Path) -> dict[int, str]:
    """Map the processes that a test has started to their commands, whoever their parent is by now."""
    commands = {}
    for environment in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):
            if f"{MARK}={folder}".encode() in environment.read_bytes().split(b"\0"):
                command = (environment.parent / "cmdline").read_text(errors="replace").replace("\0", " ")
                commands[int(environment.parent.name)] = command
    return commands


def processor_s(pid: int) -> float:
    """Return the time that a process, and what it waited for, has had on the processor; infinity once it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return float("inf")
    return sum(int(ticks) for ticks in fields[11:15]) / os.sysconf("SC_CLK_TCK")


def spent_s(folder: Path) -> float:
    """Return the time on the processor of all that a test has started: a moment that a busy machine does not shift."""
    return sum(seconds for pid in running(folder) if (seconds := processor_s(pid)) < float("inf"))


def until(ready: Callable[[], bool]) -> None:
    """Wait for something that another process does."""
    limit = time.monotonic() + LIMIT_S
    while not ready():
        assert time.monotonic() < limit
        time.sleep(0.02)


def gone(folder: Path) -> bool:
    """Whether all processes have ended; the last of them is told by the end of a pipe, which takes a moment."""
    limit = time.monotonic() + 20
    while running(folder) and time.monotonic() < limit:
        time.sleep(0.05)
    return not running(folder)


def end_all(folder: Path) -> None:
    """End what a test has started and its subject has left."""
    for pid in running(folder):
        with suppress(OSError):
            os.kill(pid, signal.SIGKILL)


def save_model(path: Path) -> None:
    """Write a file of one product of [n, 4] with a unit matrix."""
    shape = ["n", 4]
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(np.eye(4, dtype=np.float32), "w")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=7), path)
