"""A run that is killed at any moment goes on with the same command, and ends with the same file."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_run import Config, merged, run_quietly, write_yaml

from distill.records import RunResult
from distill.runfolder import file_sha256

# The command line, but for checkpoints after every epoch, and one thread, as tiny models like it.
COMMAND = """
from distill import pipeline, training
training.SAVE_EVERY_S = 0.0
pipeline.usable_threads = lambda: 1
from distill.cli import main
main()
"""


@pytest.fixture
def config(tiny: Config) -> Config:
    return merged(tiny, {"distill": {"control": False}, "teacher": {"epochs": 8}})


def start(config: Path, out: Path, *options: str) -> subprocess.Popen[bytes]:
    words = ["run", str(config), "--out", str(out), "--quiet", *options]
    with (out.parent / "said.txt").open("ab") as said:
        return subprocess.Popen(
            [sys.executable, "-c", COMMAND, *words], stdout=said, stderr=said, cwd=out.parent, start_new_session=True
        )


def kill(process: subprocess.Popen[bytes]) -> None:
    """Kill the run and whatever it has started, as a power cut would."""
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def finish(config: Path, out: Path, *options: str) -> RunResult:
    process = start(config, out, *options)
    assert process.wait(timeout=600) == 0, (out.parent / "said.txt").read_text()
    return RunResult.load(out)


def wait_for(seen: Callable[[], bool], process: subprocess.Popen[bytes], timeout_s: float = 300) -> None:
    end = time.monotonic() + timeout_s
    while not seen():
        assert process.poll() is None, "the run ended before the moment came"
        assert time.monotonic() < end, "the moment never came"
        time.sleep(0.01)


def processor_s(pid: int) -> float:
    """Return the time that a process has had on the processor: a moment that a busy machine does not shift."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return float("inf")
    return sum(int(ticks) for ticks in fields[11:15]) / os.sysconf("SC_CLK_TCK")


# In a training, while a stage is exported, and after a decision before anything came of it.
MOMENTS = (
    "stages/.01-teacher-*/checkpoint.safetensors",
    "stages/.03-student-*/core.onnx",
    "decisions/decision-quantize-*",
)


def test_a_run_that_is_killed_three_times_ends_as_an_undisturbed_one(config: Config, tmp_path: Path) -> None:
    config = merged(config, {"prune": "off"})
    path, out = write_yaml(tmp_path / "config.yaml", config), tmp_path / "run"
    for moment in MOMENTS:
        process = start(path, out)
        wait_for(lambda moment=moment: bool(list(out.glob(moment))), process)  # type: ignore[misc]
        kill(process)
        assert not (out / "deploy").exists()
    result = finish(path, out)
    assert [result.stage(name).reused for name in ("teacher", "student", "quantize")] == [True, True, True]
    undisturbed = run_quietly(config, tmp_path / "undisturbed", decisions=out / "run.json").result
    assert not undisturbed.stage("teacher").reused
    shas = {file_sha256(folder / "deploy/model.onnx") for folder in (out, tmp_path / "undisturbed")}
    assert len(shas) == 1
    for name in ("teacher", "student"):
        assert result.stage(name).detail["curves"] == undisturbed.stage(name).detail["curves"]
    assert not list(out.glob("**/checkpoint*"))
    assert {one.name for one in (out / "stages").iterdir()} == {"01-teacher", "03-student", "05-quantize"}


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
