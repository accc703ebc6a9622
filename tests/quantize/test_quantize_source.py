"""A model that is given as a function: what is exported, under which names, and what is refused."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from quantize_zoo import normal
from small_graphs import typed

from distill.export import run_onnx

NET = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, wide=16):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(6, wide), nn.Linear(wide, 3)

    def forward(self, features, scale=None):
        hidden = torch.relu(self.first(features))
        return self.second(hidden if scale is None else hidden * scale)

class Named(Net):
    def forward(self, features):
        return {"logits": super().forward(features), "other": features}

class Pair(Net):
    def forward(self, features):
        return features, features

class Branch(Net):
    def forward(self, features):
        return super().forward(features if features.sum() > 0 else -features)

def make():
    return Net()

def wide(count):
    return Net(count)

def number():
    return 3

def broken():
    return Net().none

net = Net()
"""


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own_imports: None) -> Path:
    """Give the current folder, which holds a module and rows."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("distill.single_stage.quantize_model.why_unmeasurable", lambda _: "not here")
    Path("net.py").write_text(NET)
    x = normal(120, 6)
    np.savez("rows.npz", features=x)
    np.savez("both.npz", scale=np.abs(x[:, :1]) + 1, features=x, labels=np.arange(120) % 3)
    np.savez("image.npz", image=x)
    np.savez("wide.npz", features=normal(120, 7))
    np.savez("double.npz", features=x.astype(np.float64))
    np.savez("unknown.npz", features=x, mask=x)
    return tmp_path


def quantized(model: str, data: str) -> int:
    return typed(model, "--data", data, "--out", "q.onnx", "--max-drop", "1", "--precision", "int8")


@pytest.mark.parametrize("model", ["net.py:make", "./net.py:Net", "net:make", "net.py:Named", "json.py:make"])
def test_a_function_or_class_that_makes_a_module_is_quantised(model: str) -> None:
    Path("json.py").write_text(NET)  # whose name Python has taken
    assert quantized(model, "rows.npz") == 0
    from net import Net

    torch = sys.modules["torch"]
    x = normal(5, 6, seed=9)
    with torch.no_grad():
        expected = Net()(torch.from_numpy(x)).numpy()
    assert np.abs(run_onnx("q.onnx", [{"features": x}]) - expected).max() < 0.2


@pytest.mark.parametrize(
    ("data", "names"), [("both.npz", ["features", "scale"]), ("image.npz", ["image"]), ("rows.npz", ["features"])]
)
def test_inputs_are_called_what_the_arrays_are(data: str, names: list[str]) -> None:
    assert quantized("net.py:make", data) == 0
    made = onnx.load("q.onnx")
    assert sorted(one.name for one in made.graph.input) == names
    # Whichever order they are in, each array goes to the parameter of its name.
    stored = np.load(data)
    rows = {name: stored[name][:7] for name in names}
    assert run_onnx(made, [rows]).shape == (7, 3)


@pytest.mark.parametrize(
    ("model", "data", "says"),
    [
        ("none.py:make", "rows.npz", "none.py:make: no file"),
        ("net.py:none", "rows.npz", "net.py has no 'none'; there is: "),
        ("none.net:make", "rows.npz", "no module 'none' in"),
        ("net.py", "rows.npz", "name the function in it that makes the module, as net.py:make"),
        ("net.py:wide", "rows.npz", "net.py:wide: called with no arguments it raised TypeError"),
        ("net.py:number", "rows.npz", "returns int; it must return a torch.nn.Module"),
        ("net.py:broken", "rows.npz", "AttributeError: 'Net' object has no attribute 'none'"),
        ("net.py:net", "rows.npz", "TypeError"),
        ("net.py:Pair", "rows.npz", "forward returns a tuple of 2; wrap it in a module that returns the logits alone"),
        ("net.py:Branch", "rows.npz", "forward branches on the values of a tensor"),
        ("net.py:make", "wide.npz", "fails on the CPU in eval mode: Net was called with features=float32 [2, 7]"),
        ("net.py:make", "double.npz", "features is float64, the model takes float32"),
        ("net.py:make", "unknown.npz", "forward(features, scale=None) does not take features, mask"),
        ("net.py:make", "none.npz", "--data none.npz: cannot be read"),
        ("compiled:net.py:make", "rows.npz", "an export has no compiled form; give net.py:make"),
        ("syntax.py:make", "rows.npz", "SyntaxError"),
        ("leaves.py:make", "rows.npz", "SystemExit: 3"),
        ("wants.py:make", "rows.npz", "install 'not_installed'"),
    ],
)
def test_what_cannot_be_exported_is_told(model: str, data: str, says: str, place: Path, capsys: Any) -> None:
    Path("syntax.py").write_text("def make(:\n")
    Path("leaves.py").write_text("raise SystemExit(3)\n")
    Path("wants.py").write_text("import not_installed\n")
    assert quantized(model, data) == 2
    said = capsys.readouterr().err
    assert says in said
    assert "Traceback" not in said
    assert not Path("q.onnx").exists()


def test_the_module_s_own_file_is_not_written_over(capsys: Any) -> None:
    assert typed("net.py:make", "--data", "rows.npz", "--out", "net.py") == 2
    assert "--out net.py: is the model itself" in capsys.readouterr().err
    assert Path("net.py").read_text() == NET


def test_ctrl_c_ends_the_process_and_leaves_nothing(place: Path) -> None:
    Path("slow.py").write_text(
        "import pathlib, time\ndef make():\n    pathlib.Path('waits').touch()\n    time.sleep(60)\n"
    )
    before = {one.name for one in place.iterdir()}
    words = ("slow.py:make", "--data", "rows.npz", "--out", "q.onnx", "--record", "q.json")
    # Whoever starts the tests in the background has them ignore SIGINT, and children inherit that.
    held = subprocess.Popen(
        [sys.executable, "-B", "-m", "distill", "quantize", *words],
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        until = time.monotonic() + 60
        while not Path("waits").exists() and held.poll() is None and time.monotonic() < until:
            time.sleep(0.02)
        held.send_signal(signal.SIGINT)
        _, err = held.communicate(timeout=30)
    finally:
        held.kill()
        held.wait()
    assert held.returncode == 130, err
    assert "the same command begins anew" in err
    assert "Traceback" not in err
    assert {one.name for one in place.iterdir()} == before | {"waits"}
