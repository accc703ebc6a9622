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
from onnx import numpy_helper
from other_processes import LIMIT_S, end_all, gone, running, save_model, spent_s, start, until
from tiny_run import merged, write_custom, write_yaml

from distill import files

pytestmark = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="processes are found by /proc")

LIBRARIES = {".ses", "torchinductor_root"}  # what onnxruntime and torch keep for their next process
QUICK = ("--pairs", "2", "--seconds", "0.05")


def wait_for(process: subprocess.Popen[str], folder: Path, word: str) -> None:
    """Wait until a process whose command holds a word runs."""

    def runs() -> bool:
        assert process.poll() is None, process.communicate()
        return any(word in command and " -m distill " not in command for command in running(folder).values())

    until(runs)


def finish(process: subprocess.Popen[str]) -> None:
    said = process.communicate(timeout=LIMIT_S)[1]
    assert process.returncode == 0, said


def left(folder: Path) -> set[str]:
    return {path.name for path in (folder / "tmp").iterdir()} - LIBRARIES


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    save_model(tmp_path / "m.onnx")
    yield tmp_path
    try:
        assert gone(tmp_path)
    finally:
        end_all(tmp_path)


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
    said = process.communicate(timeout=LIMIT_S)[1]
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
    process = start(place, "bench", "m.onnx", *QUICK, ignored=[signal.SIGHUP])
    wait_for(process, place, "runner.py")
    process.send_signal(signal.SIGHUP)
    finish(process)


COMMANDS = {
    "run": ("run", "config.yaml", "--out", "out", "--quiet"),
    "search": ("run", "search.yaml", "--out", "out", "--quiet"),
    "bench": ("bench", "m.onnx", "--baseline", "main.json", "--out", "b.json", "--pairs", "3", "--seconds", "0.3"),
    "save": ("bench", "other.onnx", "--save-baseline", "main.json", *QUICK),
    "prune": ("prune", "--model", "net.py:make", "--input", "4", "--macs", "0.7", "--out", "pruned", *QUICK),
    "quantize": ("quantize", "m.onnx", "--data", "rows.npz", "--output", "numbers", "--out", "q.onnx", *QUICK),
    "validate": ("validate", "config.yaml"),
}
NET = """
from torch import nn

def make():
    return nn.Sequential(nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 4))
"""


@pytest.fixture
def equipped(place: Path) -> Path:
    """Lay out what every command needs."""
    config = write_custom(place / "mine")
    write_yaml(place / "config.yaml", config)
    write_yaml(place / "search.yaml", merged(config, {"search": {"trials": 3}}))
    (place / "net.py").write_text(NET)
    np.savez(place / "rows.npz", x=np.random.default_rng(0).normal(size=(64, 4)).astype(np.float32))
    other = onnx.load(place / "m.onnx")
    other.graph.initializer[0].CopyFrom(numpy_helper.from_array(2 * np.eye(4, dtype=np.float32), "w"))
    onnx.save(other, place / "other.onnx")
    finish(start(place, "bench", "m.onnx", "--save-baseline", "main.json", *QUICK))
    return place


def life_s(place: Path, words: tuple[str, ...]) -> float:
    """Return the time on the processor that an undisturbed command takes, and remove what it made."""
    before, names = os.times(), set(place.iterdir())
    finish(start(place, *words))
    for path in set(place.iterdir()) - names:
        files.remove(path)
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


def interrupted_at(place: Path, words: tuple[str, ...], moment_s: float, number: signal.Signals) -> bool:
    """Interrupt a command once it has computed for so long; whether it had not ended before. It leaves nothing."""
    process = start(place, *words)
    while process.poll() is None and spent_s(place) < moment_s:
        time.sleep(0.02)
    process.send_signal(number)
    said = process.communicate(timeout=LIMIT_S)[1]
    expected = (130, -signal.SIGKILL) if number == signal.SIGKILL else (130, -number)
    assert process.returncode in (0, *expected), said
    assert "Traceback" not in said
    assert gone(place)
    return bool(process.returncode)


def lying_about(place: Path) -> list[str]:
    """List what nobody needs any more: not whole yet, or in the folder for temporary files."""
    hidden = [path.name for path in place.rglob("*") if path.name.endswith((".partial", ".work"))]
    return hidden + sorted(left(place))


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_signals_at_ten_moments_of_a_command(equipped: Path, name: str) -> None:
    words, place, count = COMMANDS[name], equipped, 10
    life, interrupted = life_s(place, words), 0
    for moment in range(count):
        number = (signal.SIGTERM, signal.SIGHUP)[moment % 2]
        interrupted += interrupted_at(place, words, life * (moment + 0.5) / count, number)
        assert left(place) == set()
        if name not in ("run", "search"):
            assert lying_about(place) == []
    assert interrupted >= count // 2
    finish(start(place, *words))
    assert lying_about(place) == []


@pytest.mark.slow
def test_after_any_of_twenty_kills_of_a_save_the_next_gate_passes(equipped: Path) -> None:
    words, place = COMMANDS["save"], equipped
    gates = [("bench", model, "--baseline", "main.json", *QUICK) for model in ("m.onnx", "other.onnx")]
    life, killed = life_s(place, words), 0
    for moment in range(20):
        finish(start(place, "bench", "m.onnx", "--save-baseline", "main.json", *QUICK))
        killed += interrupted_at(place, words, life * (moment + 0.5) / 20, signal.SIGKILL)
        for gate in gates:
            process = start(place, *gate)
            said = process.communicate(timeout=LIMIT_S)[1]
            assert process.returncode in (0, 1), said  # a verdict, whichever of the two is the baseline
    assert killed >= 10
    assert lying_about(place) == []


@pytest.mark.parametrize("redirect", [">&-", "2>&-", ">&- 2>&- <&-", ">/dev/full 2>/dev/full"])
@pytest.mark.parametrize("form", [(), ("--json",)])
def test_no_stream_turns_a_verdict_into_a_defect(place: Path, redirect: str, form: tuple[str, ...]) -> None:
    words = ["sh", "-c", f'exec "$@" {redirect}', "sh", sys.executable, "-m", "distill"]
    words += ["bench", "m.onnx", "--max-p50-ms", "0.000001", *QUICK, *form]
    own = {"PYTHONIOENCODING": "ascii", "TMPDIR": str(place)}
    code = subprocess.run(words, cwd=place, env={**os.environ, **own}, check=False, timeout=LIMIT_S).returncode
    assert code == (2 if "full" in redirect else 1)
