"""A user's project: a plain PyTorch script that compiled its model and saved a checkpoint; then each verb by it."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import task_samples as samples
import torch
from torch import nn

from distill.cli import main

NET = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, classes=2):
        super().__init__()
        self.features = nn.Sequential(nn.Linear(4, 32), nn.BatchNorm1d(32), nn.ReLU())
        self.head = nn.Linear(32, classes)

    def forward(self, x):
        return self.head(self.features(x))

def make(classes=2):
    return Net(classes)

def make_compiled():
    return torch.compile(Net())

def data():
    drawn = torch.Generator().manual_seed(1)
    x = torch.randn(300, 4, generator=drawn)
    return {"train": (x, (x[:, 0] > 0).long())}
"""


def call(*words: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert isinstance(ended.value.code, int)
    return ended.value.code


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[nn.Module]:
    """Train as a user does and save what that leaves; gives the trained model."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    Path("mymodel.py").write_text(NET)
    import mymodel  # type: ignore[import-not-found]

    torch.manual_seed(3)
    net = mymodel.make()
    x, y = mymodel.data()["train"]
    model = torch.compile(net, backend="eager")
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    for _ in range(60):
        loss = nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    torch.save({"net": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 60}, "ckpt.pt")
    np.savez("rows.npz", x=x.numpy(), labels=y.numpy())
    yield net.eval()
    samples.forget(tmp_path)


def test_a_checkpoint_of_a_compiled_model_goes_through_every_verb(
    project: nn.Module, capfd: pytest.CaptureFixture[str]
) -> None:
    x = torch.from_numpy(np.load("rows.npz")["x"])
    accuracy = float((project(x).argmax(1).numpy() == np.load("rows.npz")["labels"]).mean())
    told = "read under 'net', names without '_orig_mod.'"
    run = ("--set", "teacher.model=./mymodel.py:make", "--set", "teacher.weights=ckpt.pt")
    run += ("--set", "data.source=./mymodel.py:data", "--set", "benchmark=off", "--set", "prune=off")
    Path("config.yaml").write_text("task: mine\n")
    assert call("validate", "config.yaml", *run) == 0
    assert told in " ".join(capfd.readouterr().out.split())
    assert call("run", "config.yaml", "--smoke", "--json", "--out", "run", *run) == 0
    record = json.loads(capfd.readouterr().out)
    teacher = record["stages"][0]
    assert any(told in warning for warning in teacher["warnings"])
    assert teacher["test"]["metrics"]["accuracy"]["value"] > 0.9 and accuracy > 0.9

    rows = ("--data", "rows.npz")
    weights = ("--weights", "ckpt.pt")
    prune = ("prune", "--ratio", "0.5", "--no-timing", *rows, *weights)
    assert call(*prune, "--model", "mymodel.py:make", "--out", "small") == 0
    assert told in " ".join(capfd.readouterr().out.split())
    assert call(*prune, "--model", "mymodel.py:make_compiled", "--out", "compiled") == 0
    assert Path("compiled/model.onnx").read_bytes() == Path("small/model.onnx").read_bytes()
    capfd.readouterr()

    timing = ("--pairs", "2", "--seconds", "0.01")
    quantize = ("quantize", "mymodel.py:make", *rows, *timing, "--max-drop", "1", "--precision", "int8")
    assert call(*quantize, *weights, "--arg", "classes=2", "--out", "small.onnx") in (0, 1)
    assert told in " ".join(capfd.readouterr().out.split())
    assert call("quantize", "small/model.onnx", *rows, *weights, "--out", "q.onnx") == 2
    assert "--weights ckpt.pt: small/model.onnx has its own" in capfd.readouterr().err
    assert call("bench", "small/model.onnx", "mymodel.py:make_compiled", *timing) == 0
