"""A baseline that is saved is the old one or the new one, at whatever moment the process is killed."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest

from distill.benchmarks.onnx_file.facts import read_facts
from distill.benchmarks.records import Report
from distill.benchmarks.verdict import bench as bench_module
from distill.benchmarks.verdict import gate
from distill.benchmarks.verdict.baseline import save_baseline

Conv = Callable[..., Path]

# Saves a baseline, and dies as in a power cut just before the nth time that it touches a file, which it counts from 1
# on until it gets through. Prints how often it died; each time the check says what baseline there is.
DRIVER = """
import os, shutil, signal, sys
from pathlib import Path
from distill.benchmarks.records import Report
from distill.benchmarks.verdict.baseline import save_baseline
from distill.benchmarks.verdict.gate import baseline_file
from distill.benchmarks.onnx_file.facts import read_facts

home, old, new = (Path(word) for word in sys.argv[1:4])
events = ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "shutil.rmtree", "shutil.copyfile", "ctypes.dlsym")
reports = {path: Report.load(path.parent / (path.stem + "-report.json")) for path in (old, new)}
hashes = {path: read_facts(path).sha256 for path in (old, new)}
kills, seen = 0, set()
while True:
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir()
    save_baseline(home / "main.json", reports[old], old)
    child = os.fork()
    if not child:
        left = kills + 1
        def die(event, values):
            global left
            left -= event in events
            if event in events and left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
        sys.addaudithook(die)
        save_baseline(home / "main.json", reports[new], new)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    stored = Report.load(home / "main.json").models[-1].facts.sha256
    assert stored in hashes.values()
    assert read_facts(baseline_file(home / "main.json")).sha256 == stored, kills
    # What a user copies is a pair, too.
    shown = {path.name for path in home.iterdir() if not path.name.startswith(".")}
    assert shown in ({"main.json", "main.onnx"}, {"main.json", "main.model"}), shown
    seen.add(stored)
    save_baseline(home / "main.json", reports[new], new)
    assert read_facts(baseline_file(home / "main.json")).sha256 == hashes[new]
    if status == 0:
        break
    kills += 1
assert seen == set(hashes.values())
print(kills)
"""


@pytest.fixture
def two(conv: Conv, here: Any, tmp_path: Path) -> Callable[[bool, bool], tuple[Path, Path]]:
    """Write two files, each with external data or without, and a report of each beside it."""

    def make(*external: bool) -> tuple[Path, Path]:
        paths = []
        for number, apart in enumerate(external):
            path = tmp_path / f"m{number}.onnx"
            proto = onnx.load(conv(number + 1))
            onnx.save(proto, path, save_as_external_data=apart, location=f"w{number}.bin", size_threshold=0)
            timing = bench_module.Timing(pairs=2, seconds_per_pair=0.02)
            report = bench_module.bench([path], bench_module.Options(target=here, threads=(1,), timing=timing))
            (tmp_path / f"m{number}-report.json").write_text(report.to_json())
            paths.append(path)
        return paths[0], paths[1]

    return make


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the process that is killed is a copy of another")
@pytest.mark.parametrize("external", [(False, False), (False, True), (True, False), (True, True)])
def test_a_kill_at_any_step_leaves_the_old_baseline_or_the_new(
    two: Callable[..., tuple[Path, Path]], external: tuple[bool, bool], tmp_path: Path
) -> None:
    old, new = two(*external)
    words = [sys.executable, "-c", DRIVER, str(tmp_path / "home"), str(old), str(new)]
    driven = subprocess.run(words, capture_output=True, text=True, check=False, timeout=300)
    assert driven.returncode == 0, driven.stderr
    assert int(driven.stdout) >= 5


def test_where_nothing_may_be_written_a_save_that_was_cut_off_is_read_as_it_is(
    two: Callable[..., tuple[Path, Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = two(False, False)
    main = tmp_path / "main.json"
    save_baseline(main, Report.load(tmp_path / "m0-report.json"), old)
    hidden = tmp_path / ".main.next.onnx"
    hidden.write_bytes(new.read_bytes())
    main.write_bytes((tmp_path / "m1-report.json").read_bytes())

    def refuse(path: Path, sha256: str) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("distill.benchmarks.verdict.baseline_files.settle", refuse)
    assert gate.baseline_file(main) == hidden
    assert read_facts(main.with_suffix(".onnx")).sha256 == read_facts(old).sha256
    report = Report.load(main)
    assert dataclasses.replace(report.models[-1].facts).sha256 == read_facts(hidden).sha256
