"""A run that is killed at any moment goes on with the same command, and ends with the same file."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from other_processes import processor_s
from tiny_run import Config, merged, run_quietly, write_yaml

from distill.runtime.folder import file_sha256
from distill.runtime.records import RunResult

# The command line, but for checkpoints after every epoch, and one thread, as tiny models like it. Asked to, it dies
# with all that it has started, as in a power cut, just before the nth time that a path of this form would get its name.
COMMAND = """
import os, signal, sys
from fnmatch import fnmatch
from distill import pipeline
from distill.cli import main
from distill.training import loop

loop.SAVE_EVERY_S = 0.0
pipeline.usable_threads = lambda: 1
pattern, left = os.environ.get("DIES_AT", ""), int(os.environ.get("DIES_AT_THE_NTH", "1"))

def die(event, values):
    global left
    if pattern and event == "os.rename" and fnmatch(os.fspath(values[1]), pattern):
        left -= 1
        if left == 0:
            os.killpg(0, signal.SIGKILL)

sys.addaudithook(die)
main()
"""


@pytest.fixture
def config(tiny: Config) -> Config:
    return merged(tiny, {"distill": {"control": False}, "teacher": {"epochs": 8}})


def start(config: Path, out: Path, *options: str, **environment: str) -> subprocess.Popen[bytes]:
    words = ["run", str(config), "--out", str(out), "--quiet", *options]
    with (out.parent / "said.txt").open("ab") as said:
        return subprocess.Popen(
            [sys.executable, "-c", COMMAND, *words],
            stdout=said,
            stderr=said,
            cwd=out.parent,
            env=os.environ | environment,
            start_new_session=True,
        )


def kill(process: subprocess.Popen[bytes]) -> None:
    """Kill the run and whatever it has started, as a power cut would."""
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def finish(config: Path, out: Path, *options: str) -> RunResult:
    process = start(config, out, *options)
    assert process.wait(timeout=600) == 0, (out.parent / "said.txt").read_text()
    return RunResult.load(out)


# In a training, when a stage is whole but not yet named, and after the last decision before anything came of it.
MOMENTS = (
    ("*/.01-teacher-*/checkpoint.safetensors", 3),
    ("*/stages/03-student", 1),
    ("*/deploy", 1),
)


def test_a_run_that_is_killed_three_times_ends_as_an_undisturbed_one(config: Config, tmp_path: Path) -> None:
    config = merged(config, {"prune": "off"})
    path, out = write_yaml(tmp_path / "config.yaml", config), tmp_path / "run"
    for pattern, nth in MOMENTS:
        process = start(path, out, DIES_AT=pattern, DIES_AT_THE_NTH=str(nth))
        assert process.wait(timeout=300) == -signal.SIGKILL, pattern
        assert not (out / "deploy").exists()
    result = finish(path, out)
    assert [result.stage(name).reused for name in ("teacher", "student", "quantize")] == [True, True, True]
    undisturbed = run_quietly(config, tmp_path / "undisturbed", decisions=out / "run.json").result
    assert not undisturbed.stage("teacher").reused
    shas = {file_sha256(folder / "deploy/model.onnx") for folder in (out, tmp_path / "undisturbed")}
    assert len(shas) == 1
    for name in ("teacher", "student"):
        assert result.stage(name).detail.curves == undisturbed.stage(name).detail.curves
    assert not list(out.glob("**/checkpoint*"))
    assert {one.name for one in (out / "stages").iterdir()} == {"01-teacher", "03-student", "05-quantize"}


def timers(pid: int) -> list[int]:
    """List the children of a process that time something."""
    pids = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            parent = (folder / "stat").read_text().rpartition(")")[2].split()[1]
            if int(parent) == pid and b"runner.py" in (folder / "cmdline").read_bytes():
                pids.append(int(folder.name))
    return pids


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="moments are counted by /proc")
def test_a_run_that_is_killed_twice_while_it_is_timing_ends_as_an_undisturbed_one(
    config: Config, tmp_path: Path
) -> None:
    path, out = write_yaml(tmp_path / "config.yaml", config), tmp_path / "run"
    for nth in (1, 3):
        process, seen = start(path, out), set[int]()
        while len(seen) < nth:
            assert process.poll() is None, (tmp_path / "said.txt").read_text()
            seen |= set(timers(process.pid))
            time.sleep(0.005)
        kill(process)
        assert not (out / "deploy").exists()
        for _ in range(1000):  # it ends by itself, a moment later
            if not any(Path(f"/proc/{pid}").exists() for pid in seen):
                break
            time.sleep(0.02)
        assert not any(Path(f"/proc/{pid}").exists() for pid in seen)
    finish(path, out)
    undisturbed = run_quietly(config, tmp_path / "undisturbed", decisions=out / "run.json")
    shas = {file_sha256(folder / "deploy/model.onnx") for folder in (out, undisturbed.folder)}
    assert len(shas) == 1


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="moments are counted by /proc")
def test_a_run_that_is_killed_at_any_of_twenty_moments_ends_as_an_undisturbed_one(
    config: Config, tmp_path: Path
) -> None:
    path, first = write_yaml(tmp_path / "config.yaml", config), tmp_path / "undisturbed"
    before = os.times()
    finish(path, first)
    after = os.times()
    whole_s = after.children_user + after.children_system - before.children_user - before.children_system
    expected = file_sha256(first / "deploy/model.onnx")
    killed = 0
    for moment in range(20):
        out = tmp_path / f"killed-{moment:02}"
        process = start(path, out, "--decisions", str(first / "run.json"))
        while process.poll() is None and processor_s(process.pid) < whole_s * (moment + 0.5) / 20:
            time.sleep(0.01)
        killed += process.poll() is None
        if process.poll() is None:
            kill(process)
        finish(path, out, "--decisions", str(first / "run.json"))
        assert file_sha256(out / "deploy/model.onnx") == expected, moment
    assert killed >= 18
