"""Measuring elsewhere: bundles by hand, and a command that takes one there."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from distill.benchmarks import BenchmarkSettings, Target, compare, make_inputs, profile, resolve_target
from distill.benchmarks.timing import jobs
from distill.benchmarks.verdict import bench as bench_module
from distill.benchmarks.verdict import gate
from distill.benchmarks.verdict import remote_boards as boards
from distill.benchmarks.verdict.rule import Rule
from distill.errors import NotMeasuredError, UserError

Conv = Callable[..., Path]

# What a board does: run the bundle's own runner in the bundle's folder, with nothing of this package at hand.
BOARD = """
import subprocess, sys
subprocess.run([sys.executable, "-I", "runner.py"], cwd=sys.argv[1], check=True)
"""


@pytest.fixture
def board(tmp_path: Path) -> str:
    (tmp_path / "board.py").write_text(BOARD)
    return f"{sys.executable} {tmp_path / 'board.py'}"


@pytest.fixture
def options(here: Target) -> Any:
    return bench_module.Options(target=here, timing=jobs.Timing(pairs=2, seconds_per_pair=0.05))


def foreign(here: Target, measure: str) -> Target:
    return resolve_target("arm" if here.name == "x86" else "x86", measure=measure)


def test_a_target_with_a_command_is_measured_by_it(
    conv: Conv, here: Target, board: str, quick: BenchmarkSettings
) -> None:
    """The target is no kind of this machine, but the command says where it can be measured."""
    target = foreign(here, board)
    found = compare(conv(layers=60, name="a.onnx"), conv(layers=1, name="b.onnx"), target, 2, settings=quick)
    assert found.speedup.value > 1.5
    assert found.candidate.target == target.name
    assert found.candidate.board is not None
    assert found.candidate.board["versions"]["onnxruntime"]
    assert profile(conv(layers=3), target, make_inputs(conv(layers=3), 1)).float_ == 3


def test_a_report_of_a_board_shows_the_boards_machine(
    conv: Conv, here: Target, board: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench_module, "machine", None)
    target = foreign(here, board)
    options = bench_module.Options(target=target, timing=jobs.Timing(pairs=2, seconds_per_pair=0.05))
    found = bench_module.bench([conv()], options)
    assert found.machine["versions"]["onnxruntime"]
    assert found.machine["threads"]["usable"] >= 1
    assert found.target["measure"] == board


@pytest.mark.parametrize(
    ("script", "says"),
    [
        ("import sys; sys.exit(7)", "ended with exit code 7"),
        ("import sys; sys.exit('no route to host')", "no route to host"),
        ("import time; time.sleep(60)", "did not end within 0.4 s"),
        ('print(\'{"status": "ok", "pai\')', "is not a whole result of runner.py"),
        ("pass", "is not a whole result of runner.py"),
        ("print('[1, 2]')", "but not a result of runner.py"),
        ('print(\'{"status": "error", "kind": "run", "message": "bus error"}\')', "bus error"),
    ],
)
def test_a_command_that_fails_hangs_or_returns_half_a_file(
    conv: Conv, here: Target, tmp_path: Path, script: str, says: str
) -> None:
    (tmp_path / "bad.py").write_text(script)
    target = foreign(here, f"{sys.executable} {tmp_path / 'bad.py'}")
    settings = BenchmarkSettings(timeout_s=0.4 if "sleep" in script else 60)
    with pytest.raises(NotMeasuredError, match=says):
        compare(conv(), conv(), target, 1, settings=settings)


@pytest.mark.parametrize("gated", [False, True])
def test_a_bundle_goes_out_and_its_result_is_judged_like_a_local_one(
    conv: Conv, options: Any, tmp_path: Path, gated: bool
) -> None:
    slow, fast = conv(layers=120, name="slow.onnx"), conv(layers=1, name="fast.onnx")
    bundle = tmp_path / "bundle"
    ask = gate.Limits(rule=Rule(tolerance=0.5))
    models = [str(slow)] if gated else [str(fast), str(slow)]
    boards.export(bundle, models, options, ask, fast if gated else None)
    job = json.loads((bundle / "job.json").read_text())
    assert str(tmp_path) not in json.dumps([job["jobs"]])
    moved = tmp_path / "elsewhere"
    bundle.rename(moved)
    subprocess.run([sys.executable, "-I", "runner.py"], cwd=moved, check=True, timeout=120)
    found = boards.import_result(moved / "result.json")
    assert [model.facts.name for model in found.models] == ["fast", "slow"]
    ratio = found.cases[0].rows[1].ratio
    assert ratio is not None
    assert ratio.value > 1.5
    assert [gate.verdict for gate in found.gates] == (["fail"] if gated else [])


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="processes are found by /proc")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_a_board_that_is_interrupted_leaves_no_process_and_the_next_one_goes_through(
    conv: Conv, here: Target, tmp_path: Path, number: signal.Signals
) -> None:
    slow = bench_module.Options(target=here, timing=jobs.Timing(pairs=20, seconds_per_pair=2))
    boards.export(tmp_path / "bundle", [str(conv())], slow, gate.Limits(), None)
    before = {path.relative_to(tmp_path) for path in tmp_path.rglob("*")}
    process = subprocess.Popen([sys.executable, "-I", "runner.py"], cwd=tmp_path / "bundle", stdout=subprocess.DEVNULL)

    def inner() -> list[int]:
        return [pid for pid in pids_of(str(tmp_path / "bundle/runner.py")) if pid != process.pid]

    until(lambda: bool(inner()))
    process.send_signal(number)
    assert process.wait(timeout=60) in (128 + number, -number)
    until(lambda: not inner())
    if number != signal.SIGKILL:
        assert {path.relative_to(tmp_path) for path in tmp_path.rglob("*")} == before
    job = json.loads((tmp_path / "bundle/job.json").read_text())
    for one in job["jobs"]:
        one |= {"pairs": 2, "seconds_per_pair": 0.02} if one["task"] == "time" else {}
    (tmp_path / "bundle/job.json").write_text(json.dumps(job))
    subprocess.run([sys.executable, "-I", "runner.py"], cwd=tmp_path / "bundle", check=True, timeout=120)
    after = {path.relative_to(tmp_path) for path in tmp_path.rglob("*")}
    assert after == {*before, Path("bundle/result.json")}
    answers = json.loads((tmp_path / "bundle/result.json").read_text())["answers"]
    assert [answer["status"] for answer in answers] == ["ok"] * len(job["jobs"])


def pids_of(word: str) -> list[int]:
    """List the processes with this word on their command line."""
    pids = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            if word.encode() in path.read_bytes().split(b"\0"):
                pids.append(int(path.parent.name))
    return pids


def until(ready: Callable[[], bool]) -> None:
    """Wait for something that another process does."""
    limit = time.monotonic() + 60
    while not ready():
        assert time.monotonic() < limit
        time.sleep(0.02)


def test_a_bundle_needs_a_new_folder(conv: Conv, options: Any, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").touch()
    with pytest.raises(UserError, match="is not empty"):
        boards.export(tmp_path / "full", [str(conv())], options, gate.Limits(), None)
