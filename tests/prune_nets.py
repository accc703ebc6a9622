"""The verb `prune` as it is typed, and a user's own file of models for it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper
from torch import nn

from distill.benchmarks import Comparison, Latency
from distill.cli import main
from distill.intervals import Estimate
from distill.prune import Device, count
from distill.single_stage.pruning.shipping import Shipping

USERS = ("net", "moved")
SHAPE = ("--input", "3,8,8")
NETS = """
import random

import torch
from torch import nn


def make(width=32, classes=4):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1),
        nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes),
    )


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.image = nn.Sequential(nn.Conv2d(1, 24, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.numbers = nn.Linear(6, 24)
        self.head = nn.Linear(48, 3)

    def forward(self, image, numbers):
        return {"logits": self.head(torch.cat([self.image(image), self.numbers(numbers).relu()], 1))}


class Blocks(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 32, 3, padding=1)
        self.blocks = nn.ModuleList(nn.Conv2d(32, 32, 3, padding=1) for _ in range(3))
        self.head = nn.Linear(32, 4)

    def forward(self, x):
        x = self.stem(x).relu()
        for block in self.blocks:
            x = x + block(x).relu()
        return self.head(x.mean((2, 3)))


class Blind(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = make()

    def forward(self, x):
        with torch.no_grad():
            return self.inner(x)


class Restless(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.factor = make(), random.random()

    def forward(self, x):
        return self.inner(x) * self.factor


class Boxes(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = make()

    def forward(self, x):
        return self.inner(x), [1]


class Thin(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = make(4)

    def forward(self, x):
        return self.inner(x)


def one():
    return nn.Sequential(nn.Flatten(), nn.Linear(192, 32), nn.ReLU(), nn.Linear(32, 1))


def no_module():
    return [make()]


def needs(classes):
    return make()


def fails():
    raise OSError("no weights here")


def scripted():
    return torch.jit.script(make())


def broken():
    model = make()
    nn.init.constant_(model[0].weight, float("nan"))
    return model


NUMBER = 3
"""


def typed(*words: object) -> int:
    """Run the verb in this process and return its exit code."""
    with pytest.raises(SystemExit) as ended:
        main(["prune", "--quiet", "--device", "cpu", *map(str, words)])
    assert isinstance(ended.value.code, int)
    return ended.value.code


def rows(count: int = 40, seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).normal(size=(count, 3, 8, 8)).astype(np.float32)


def labels_of(model: nn.Module, values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    with torch.no_grad():
        found: np.ndarray[Any, Any] = model(torch.from_numpy(values)).argmax(1).numpy()
    return found


def settle(folder: Path, patch: pytest.MonkeyPatch) -> None:
    """Make a folder the current one, with models and rows in it."""
    patch.chdir(folder)
    patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    patch.setattr(sys, "path", list(sys.path))
    write_nets(folder)


def forget() -> None:
    """Leave no module of the user's behind."""
    for name in [name for name in sys.modules if name.rpartition("_")[2] in USERS]:
        del sys.modules[name]


def write_nets(folder: Path) -> None:
    (folder / "net.py").write_text(NETS)
    np.savez(folder / "rows.npz", x=rows())


def skip_exports(patch: pytest.MonkeyPatch) -> None:
    """Let graphs be one linear layer: an export takes seconds."""
    nodes = [helper.make_node("Gemm", ["x", "w"], ["logits"])]
    output = helper.make_tensor_value_info("logits", TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "g", [], [output])
    patch.setattr(Shipping, "exported", lambda self, model: helper.make_model(graph))


def use_a_clock(
    patch: pytest.MonkeyPatch, *, seconds: Callable[[int], float] = lambda macs: macs * 1e-9, ratio: float = 2.0
) -> None:
    """Let time be what multiply-accumulates say, and the last comparison find a ratio."""

    def took(self: Shipping, model: nn.Module) -> float:
        return seconds(count(model, *self.example).macs)

    class Clock:
        def __init__(self, shipping: Shipping) -> None:
            self.shipping = shipping

        def device(self, cache: object) -> Device:
            return Device(lambda model: took(self.shipping, model))

        def close(self) -> None:
            pass

    def latency(p50_s: float) -> Latency:
        return Latency("x86", "CPUExecutionProvider", {}, 1, 1, p50_s, p50_s, 100)

    def compared(self: Shipping, before: Any, after: Any, folder: Path) -> Comparison:
        found = Estimate(ratio, ratio * 0.98, ratio * 1.02)
        return Comparison(latency(1e-3), latency(1e-3 / ratio), found, ratio, 6, 0.0)

    patch.setattr(Shipping, "timer", lambda self: Clock(self))
    patch.setattr(Shipping, "compared", compared)


def follows(pattern: str, weight: torch.Tensor) -> bool:
    """Tell whether of every M consecutive inputs of a weight [out, in, …] at most N are not zero."""
    keep, size = map(int, pattern.split(":"))
    if weight.shape[1] % size:
        return False
    return bool(((weight.detach() != 0).reshape(len(weight), -1, size, *weight.shape[2:]).sum(2) <= keep).all())
