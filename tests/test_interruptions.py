"""A command that is ended, by whatever signal and whenever: nothing runs on or lies about, and the next one goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from tiny_run import merged, write_custom, write_yaml

pytestmark = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="processes are found by /proc")

MARK = "MARKED_BY_A_TEST"
LIBRARIES = {".ses", "torchinductor_root"}  # what onnxruntime and torch keep for their next process
QUICK = ("--pairs", "2", "--seconds", "0.05")


def start(folder: Path, *words: str, **environment: str) -> subprocess.Popen[str]:
    (folder / "tmp").mkdir(exist_ok=True)
    own = {"TMPDIR": str(folder / "tmp"), MARK: str(folder), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "distill", *words],
        cwd=folder,
        env={**os.environ, **own, **environment},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def running(folder: Path) -> list[str]:
    """List the commands of the processes that a test has started, whoever their parent is by now."""
    found = []
    for environment in Path("/proc").glob("[0-9]*/environ"):
        try:
            if f"{MARK}={folder}".encode() in environment.read_bytes().split(b"\0"):
                found.append((environment.parent / "cmdline").read_text().replace("\0", " "))
        except OSError:
            continue
    return found


def wait_for(process: subprocess.Popen[str], folder: Path, word: str) -> None:
    """Wait until a process whose command holds a word runs."""
    limit = time.monotonic() + 60
    while not any(word in command and " -m distill " not in command for command in running(folder)):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < limit
        time.sleep(0.02)


def finish(process: subprocess.Popen[str]) -> None:
    said = process.communicate(timeout=300)[1]
    assert process.returncode == 0, said


def gone(folder: Path) -> bool:
    """Whether all processes have ended; the last of them is told by the end of a pipe, which takes a moment."""
    limit = time.monotonic() + 10
    while running(folder) and time.monotonic() < limit:
        time.sleep(0.05)
    return not running(folder)


def left(folder: Path) -> set[str]:
    return {path.name for path in (folder / "tmp").iterdir()} - LIBRARIES


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    shape = ["n", 4]
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(np.eye(4, dtype=np.float32), "w")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=7), tmp_path / "m.onnx")
    yield tmp_path
    assert gone(tmp_path)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
@pytest.mark.parametrize(
    ("words", "child"),
    [
        (("bench", "m.onnx", "--seconds", "20"), "runner.py"),
        (("bench", "m.onnx", "--measure", "sh -c 'sleep 300 & sleep 301' x"), "sleep 300"),
    ],
)
def test_a_signal_ends_a_benchmark_with_all_that_it_started(
    place: Path, words: tuple[str, ...], child: str, number: signal.Signals
) -> None:
    process = start(place, *words)
    wait_for(process, place, child)
    process.send_signal(number)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 130
    assert said == f"error: interrupted ({number.name}); the same command begins anew\n"
    assert gone(place)
    assert left(place) == set()


def test_what_a_killed_process_left_ends_with_it_or_with_the_next(place: Path) -> None:
    process = start(place, "bench", "m.onnx", "--seconds", "20")
    wait_for(process, place, "runner.py")
    process.kill()
    process.communicate()
    assert gone(place)
    assert left(place)
    again = start(place, "bench", "m.onnx", *QUICK)
    finish(again)
    assert left(place) == set()


def test_a_signal_that_is_ignored_stays_ignored(place: Path) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        process = start(place, "bench", "m.onnx", *QUICK)
    finally:
        signal.signal(signal.SIGHUP, before)
    wait_for(process, place, "runner.py")
    process.send_signal(signal.SIGHUP)
    finish(process)


@pytest.mark.slow
@pytest.mark.parametrize("trials", [0, 3])
def test_signals_at_ten_moments_of_a_run_or_a_search(place: Path, trials: int) -> None:
    config = merged(write_custom(place / "mine"), {"search": {"trials": trials}} if trials else {})
    path = write_yaml(place / "config.yaml", config)
    interrupted = 0
    for moment in range(10):
        process = start(place, "run", str(path), "--out", "out", "--quiet")
        try:
            process.wait(timeout=2 + moment)
        except subprocess.TimeoutExpired:
            process.send_signal((signal.SIGTERM, signal.SIGHUP)[moment % 2])
        said = process.communicate(timeout=60)[1]
        interrupted += process.returncode == 130
        assert process.returncode in (0, 130), said
        assert gone(place)
        assert left(place) == set()
    assert interrupted >= 5
    process = start(place, "run", str(path), "--out", "out", "--quiet")
    finish(process)
    assert not [path for path in (place / "out").rglob("*.partial")]


@pytest.mark.parametrize("redirect", [">&-", "2>&-", ">&- 2>&- <&-", ">/dev/full 2>/dev/full"])
@pytest.mark.parametrize("form", [(), ("--json",)])
def test_no_stream_turns_a_verdict_into_a_defect(place: Path, redirect: str, form: tuple[str, ...]) -> None:
    words = ["sh", "-c", f'exec "$@" {redirect}', "sh", sys.executable, "-m", "distill"]
    words += ["bench", "m.onnx", "--max-p50-ms", "0.000001", *QUICK, *form]
    own = {"PYTHONIOENCODING": "ascii", "TMPDIR": str(place)}
    code = subprocess.run(words, cwd=place, env={**os.environ, **own}, check=False, timeout=120).returncode
    assert code == (2 if "full" in redirect else 1)
