"""The user's repository may hold modules of the same names as ours: theirs stay theirs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

# Another interpreter in which the product is installed, say plainly from its wheel.
PYTHON = os.environ.get("DISTILL_TEST_PYTHON", sys.executable)
NAMES = ("export.py", "benchmarks.py", "quantize.py", "prune/__init__.py", "tests/__init__.py")
MODELS = """
from pathlib import Path

import torch
from torch import nn

import benchmarks
import export
import prune
import quantize
import tests

HERE = Path(__file__).parent
for module in (benchmarks, export, prune, quantize, tests):
    assert HERE in Path(module.__file__).parents, module
(HERE / "imported").write_text(" ".join(m.MINE for m in (benchmarks, export, prune, quantize, tests)))


def make_data():
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(3, (150,), generator=generator)
    x = torch.randn(150, 6, generator=generator)
    x[torch.arange(150), y] += 3
    return {"train": (x, y), "labels": ["a", "b", "c"]}


def make_teacher():
    return nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 3))


def make_student():
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))
"""
CONFIG = """
task: mine
data: ./zoo.py:make_data
teacher: {model: zoo:make_teacher, epochs: 2, batch_size: 16}
student: ./zoo.py:make_student
distill: {epochs: 2, batch_size: 16, views: 1, control: false}
prune: {ratio: 0.25, round_to: 4, epochs: 1, batches: 2}
benchmark: {session_pairs: 2, seconds_per_pair: 0.05, batch_sizes: [1]}
max_drop: 0.9
"""


@pytest.fixture
def _on_one_core() -> Iterator[None]:
    """Let child processes see one core: a model this small is slower on two, whose threads only wait for each other."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    yield
    os.sched_setaffinity(0, before)


@pytest.mark.usefixtures("_on_one_core")
def test_a_run_beside_modules_of_the_same_names(tmp_path: Path) -> None:
    for name in NAMES:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"MINE = {name!r}\n", encoding="utf-8")
    (tmp_path / "zoo.py").write_text(MODELS, encoding="utf-8")
    (tmp_path / "mine.yaml").write_text(CONFIG, encoding="utf-8")
    command = [PYTHON, "-m", "distill", "run", "mine.yaml", "--out", "run"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "imported").read_text().split() == sorted(NAMES)
    stages = json.loads((tmp_path / "run/run.json").read_text())["stages"]
    made = [stage["name"] for stage in stages if stage["status"] in ("done", "reverted")]
    assert made == ["teacher", "student", "prune", "quantize", "export"]
    assert (tmp_path / "run/deploy/model.onnx").is_file()
