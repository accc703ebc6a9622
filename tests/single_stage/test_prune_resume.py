"""A `prune` that was killed while it learnt goes on with the same command, and ends with the same bytes."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from distill.single_stage.options import PruneOptions
from distill.single_stage.prune_model import run

NET = """
import torch
from torch import nn


def make():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Dropout(0.2), nn.Linear(32, 4))
"""
# The command line, but for a checkpoint after every epoch, and for a power cut after the third.
COMMAND = """
import os, signal, sys
from distill.cli import main
from distill.training import loop

left, save, loop.SAVE_EVERY_S = 3, loop.save, 0.0

def dies(*arguments):
    global left
    save(*arguments)
    left -= 1
    if not left:
        os.kill(os.getpid(), signal.SIGKILL)

loop.save = dies
main()
"""
EPOCHS = 6
MADE = ("model.onnx", "model.safetensors", "model.json", "prune.json")


def prune(out: str, **options: Any) -> list[int]:
    """Prune in this process, and return the numbers of the steps that it learnt in."""
    steps = []

    def progress(title: str, step: int, total: int) -> None:
        if title == "distilling":
            steps.append(step)

    fields: dict[str, Any] = {"model": "net.py:make", "data": "rows.npz", "out": out, "macs": 0.5, "epochs": EPOCHS}
    run(PruneOptions(**fields | {"round_to": 1, "timing": False} | options), progress)
    return steps


@pytest.fixture(scope="module")
def once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("killed")
    (folder / "net.py").write_text(NET)
    np.savez(folder / "rows.npz", x=np.random.default_rng(0).normal(size=(256, 8)).astype(np.float32))
    words = ["--macs", "0.5", "--round-to", "1", "--no-timing", "--quiet", "--epochs", str(EPOCHS)]
    process = subprocess.run(
        [
            sys.executable,
            "-c",
            COMMAND,
            "prune",
            "--model",
            "net.py:make",
            "--data",
            "rows.npz",
            "--out",
            "out",
            *words,
        ],
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())},
        check=False,
    )
    assert process.returncode == -signal.SIGKILL
    assert list((folder / ".out.work").iterdir()) and not (folder / "out").exists()
    return folder


@pytest.fixture
def killed(once: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own_imports: None) -> None:
    """Work in a folder in which the command was killed after three epochs."""
    shutil.copytree(once, tmp_path / "work")
    monkeypatch.chdir(tmp_path / "work")


def test_it_goes_on_to_the_same_bytes(killed: None) -> None:
    every = prune("whole")
    assert prune("out") == every[len(every) // 2 :]
    for name in MADE:
        before, after = Path("whole", name).read_bytes(), Path("out", name).read_bytes()
        assert after == before.replace(b"--out whole", b"--out out"), name
    assert not Path(".out.work").exists() and not Path(".whole.work").exists()


@pytest.mark.parametrize(
    "options", [{"learning_rate": 2e-3}, {"seed": 1}, {"epochs": 7}, {"macs": 0.6}, {"labels": "y"}]
)
def test_another_command_takes_nothing_of_it(killed: None, options: dict[str, Any]) -> None:
    if "labels" in options:
        rows = np.load("rows.npz")["x"]
        np.savez("rows.npz", x=rows, y=(rows[:, 0] > 0).astype(np.int64))
    assert prune("out", **options)[0] == 1


def test_another_model_takes_nothing_of_it(killed: None) -> None:
    Path("net.py").write_text(NET.replace("Dropout(0.2)", "Dropout(0.3)"))
    assert prune("out")[0] == 1


def test_an_error_leaves_no_work_and_what_is_not_ours_stays(killed: None) -> None:
    Path(".out.work", "notes.txt").write_text("mine")
    with pytest.raises(Exception, match="--input"):
        prune("out", input="8")
    assert [path.name for path in Path(".out.work").iterdir()] == ["notes.txt"]
    shutil.rmtree(".out.work")
