"""One wrong reference gets one message, whatever the verb that it is given to: only the field before it differs."""

from __future__ import annotations

import importlib
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import distill
from distill.benchmarks.runner import RunnerError
from distill.benchmarks.timing.torch_process import TorchArm
from distill.cli import main
from distill.errors import UserError

NET = """
from torch import nn

NUMBER = 3

def make():
    return nn.Linear(4, 2)

def needs(width):
    return nn.Linear(width, 2)

def fails():
    raise OSError("no weights here")

def returns_a_list():
    return [make()]
"""
BROKEN = {"mine_raises": "raise ValueError('no licence')", "mine_needs": "import absent_package", "mine_bad": "def f(:"}
X = np.random.default_rng(0).normal(size=(120, 4)).astype(np.float32)


def run(reference: str) -> str:
    with pytest.raises(UserError) as caught:
        distill.run(teacher=reference, data=(X, np.arange(120) % 2), out="run")
    return str(caught.value).removeprefix(f"teacher.model={reference!r}: ")


def prune(reference: str) -> str:
    return typed("prune", "--model", reference, "--ratio", "0.5", "--input", "4", "--out", "out").removeprefix(
        f"--model {reference}: "
    )


def quantize(reference: str) -> str:
    return typed("quantize", reference, "--data", "rows.npz", "--out", "q.onnx").removeprefix(f"{reference}: ")


def bench(reference: str) -> str:
    """Ask the process that times a callable; here it is this one."""
    np.savez("feeds.npz", X)
    spec = {"model": reference, "reference": reference, "form": "eager", "device": "cpu"}
    with pytest.raises(RunnerError) as caught:
        TorchArm({**spec, "inputs": "feeds.npz", "names": ["x"]}, 1).open()
    assert caught.value.kind == "callable"
    return str(caught.value).removeprefix(f"{reference}: ")


VERBS = {"run": run, "prune": prune, "quantize": quantize, "bench": bench}
said: Callable[[], str]


def typed(*words: str) -> str:
    with pytest.raises(SystemExit) as ended:
        main(list(words))
    assert ended.value.code == 2
    lines = [line for line in said().splitlines() if not line.endswith("…")]  # what it is about to do
    return " ".join("\n".join(lines).removeprefix("error: ").split())


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[None]:
    """Give the current folder, which holds models, wrong files and rows, and a timm of one model; torchvision lacks."""
    global said
    said = lambda: capsys.readouterr().err  # noqa: E731
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name, text in {"mine_net": NET, **BROKEN}.items():
        Path(f"{name}.py").write_text(text)
    np.savez("rows.npz", x=X)
    timm = types.ModuleType("timm")
    timm.list_models = lambda: ["resnet18"]  # type: ignore[attr-defined]
    real = importlib.import_module

    def load(name: str, *rest: str) -> Any:
        if name == "torchvision":
            raise ModuleNotFoundError("No module named 'torchvision'", name=name)
        return timm if name == "timm" else real(name, *rest)

    monkeypatch.setattr("distill.references.libraries.importlib.import_module", load)
    yield
    for name in [name for name in sys.modules if "mine_" in name and "test" not in name]:
        del sys.modules[name]


@pytest.mark.parametrize(
    ("reference", "says"),
    [
        ("./absent.py:make", "no file {here}/absent.py; there is: mine_bad.py, mine_needs.py"),
        ("./mine_nett.py:make", "no file {here}/mine_nett.py; did you mean 'mine_net.py'?"),
        ("nowhere.net:make", "no module 'nowhere' in {here} or among the installed packages; start from the folder"),
        ("./mine_net.py:mak", "{here}/mine_net.py has no 'mak'; did you mean 'make'?"),
        ("mine_net:mak", "{here}/mine_net.py has no 'mak'; did you mean 'make'?"),
        ("./mine_net.py:NUMBER", "'NUMBER' is a int; expected a function"),
        ("./mine_raises.py:make", "importing it raised ValueError: no licence ({here}/mine_raises.py:1)"),
        ("./mine_needs.py:make", "importing it raised ModuleNotFoundError: No module named 'absent_package'"),
        ("./mine_bad.py:make", "importing it raised SyntaxError: invalid syntax ({here}/mine_bad.py:1)"),
        ("./mine_net.py:fails", "called with no arguments it raised OSError: no weights here ({here}/mine_net.py:13)"),
        ("./mine_net.py:needs", "called with no arguments it raised TypeError: needs() missing 1 required positional"),
        ("./mine_net.py:returns_a_list", "returns list; it must return a torch.nn.Module"),
        ("timm:resnet180", "timm has no such model; near: resnet18"),
        ("torchvision:resnet18", "torchvision is not installed; pip install timm torchvision"),
    ],
)
def test_a_wrong_reference_gets_one_message(reference: str, says: str, tmp_path: Path) -> None:
    messages = {verb: ask(reference) for verb, ask in VERBS.items()}
    assert messages["run"].startswith(says.format(here=tmp_path))
    assert messages == dict.fromkeys(VERBS, messages["run"])
