"""The tiny tasks and runs that tests share."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import yaml

from distill.intervals import Estimate
from distill.runtime.budget import Figures, Standing, limited, standing

if TYPE_CHECKING:
    from distill.runtime.records import RunResult

Config = dict[str, Any]

STAGES = ["teacher", "control", "student", "prune", "quantize", "export"]
TRAIN = {"epochs": 3, "batch_size": 16, "learning_rate": 0.05}

CUSTOM = '''
import torch
from torch import nn


class Pairs(torch.utils.data.Dataset):
    """Six numbers and two more a sample; the class shows in both."""

    def __init__(self, count, first):
        generator = torch.Generator().manual_seed(first)
        self.y = torch.randint(3, (count,), generator=generator)
        self.left = torch.randn(count, 6, generator=generator)
        self.left[torch.arange(count), self.y] += 2.5
        self.right = torch.randn(count, 2, generator=generator) + self.y[:, None]

    def __len__(self):
        return len(self.y)

    def __getitem__(self, i):
        return {"left": self.left[i], "right": self.right[i], "y": self.y[i]}


def collate(items):
    CALLS.append(len(items))
    return {name: torch.stack([item[name] for item in items]) for name in ("left", "right", "y")}


CALLS = []
WEIGHTS = (1.0, 2.0, 1.0)


def make_data(count=160):
    return {
        "train": Pairs(count, 1), "validation": Pairs(60, 2), "test": Pairs(60, 3),
        "collate": collate,
        "labels": ["low", "middle", "high"],
        "inputs": lambda batch: ((batch["left"],), {"right": batch["right"]}),
        "target": lambda batch: batch["y"],
        "logits": lambda output: output["scores"],
        "loss": lambda logits, target: nn.functional.cross_entropy(
            logits, target, weight=torch.tensor(WEIGHTS, device=logits.device)),
    }


class Two(nn.Module):
    def __init__(self, width, depth):
        super().__init__()
        self.left, self.right = nn.Linear(6, width), nn.Linear(2, width)
        self.body = nn.Sequential(*(layer for _ in range(depth) for layer in (nn.Linear(width, width), nn.ReLU())))
        self.head = nn.Linear(width, 3)

    def forward(self, left, right):
        hidden = self.body(torch.relu(self.left(left) + self.right(right)))
        return {"hidden": hidden, "scores": self.head(hidden)}


def make_teacher(width=32):
    return Two(width, 2)


def make_student(width=16):
    return Two(width, 1)
'''


def stripes(label: int, rng: np.random.Generator, side: int = 8) -> np.ndarray[Any, Any]:
    """Draw noise over stripes: level, upright or slanting, by class."""
    y, x = np.mgrid[:side, :side]
    wave = np.sin((y, x, x + y)[label] * 1.6 + rng.uniform(0, 6))
    return np.clip(128 + 45 * wave + rng.normal(0, 30, (side, side)), 0, 255).astype(np.uint8)


def write_stripes(folder: Path, count: int = 70) -> Path:
    from PIL import Image

    rng = np.random.default_rng(0)
    for label, name in enumerate(("level", "slanting", "upright")):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            Image.fromarray(stripes(label, rng)).save(folder / name / f"{number:03}.png")
    return folder


def merged(config: Mapping[str, Any], changes: Mapping[str, Any]) -> Config:
    """Lay changes over a configuration, section by section."""
    result = copy.deepcopy(dict(config))
    for key, value in changes.items():
        inner = result.get(key)
        result[key] = merged(inner, value) if isinstance(inner, dict) and isinstance(value, Mapping) else value
    return result


def write_custom(folder: Path) -> Config:
    """Write ``mine.py`` with data, a teacher and a student, and return a configuration that uses them."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "mine.py").write_text(CUSTOM, encoding="utf-8")
    place = folder / "mine.py"
    return {
        "task": "mine",
        "data": f"{place}:make_data",
        "teacher": {"model": f"{place}:make_teacher", **TRAIN},
        "student": f"{place}:make_student",
        "distill": {**TRAIN, "views": 1},
        "prune": {"ratio": 0.25, "round_to": 4, "batches": 2, "epochs": 1},
        "benchmark": {"session_pairs": 2, "seconds_per_pair": 0.05, "batch_sizes": [1, 4]},
        "device": "cpu",
        "max_drop": 0.5,
    }


def write_table(folder: Path, count: int = 240) -> Config:
    """Write ``table.csv`` with gaps, numbers and words, and return a configuration of a short run on it."""
    rng = np.random.default_rng(0)
    lines = ["age,job,height,class"]
    for number in range(count):
        ill = number % 3 == 0
        age = "" if number % 11 == 0 else f"{rng.normal(60 if ill else 35, 8):.1f}"
        job = (
            "" if number % 13 == 0 else str(rng.choice(["baker", "smith", "clerk"], p=[0.2, 0.2, 0.6] if ill else None))
        )
        lines.append(f"{age},{job},{rng.normal(170, 9):.1f},{'ill' if ill else 'well'}")
    (folder / "table.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return {
        "task": "table",
        "data": {"source": "csv", "path": str(folder / "table.csv"), "target": "class"},
        "teacher": {"model": "mlp", "args": {"hidden": [32, 32]}, **TRAIN},
        "student": {"model": "mlp", "args": {"hidden": [16]}},
        "distill": {**TRAIN, "views": 1, "control": False},
        "prune": "off",
        "benchmark": "off",
        "device": "cpu",
        "max_drop": 0.5,
    }


@dataclass(frozen=True)
class Finished:
    """A run that is done."""

    folder: Path
    config: Config
    result: RunResult


def run_quietly(config: Config, folder: Path, **options: Any) -> Finished:
    """Run the pipeline on one thread, as a tiny model likes it."""
    import distill
    from distill import pipeline

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "usable_threads", lambda: 1)
        return Finished(folder, config, distill.run(config, out=folder, **options))


def raw_run(done: Finished) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((done.folder / "run.json").read_text(encoding="utf-8"))
    return found


def statuses(done: Finished) -> dict[str, str]:
    return {stage.name: stage.status for stage in done.result.stages}


def check_vectors(deploy: Path) -> None:
    import onnxruntime as ort

    vectors = np.load(deploy / "vectors.npz")
    session = ort.InferenceSession(deploy / "model.onnx", providers=["CPUExecutionProvider"])
    feed = {one.name: vectors[one.name] for one in session.get_inputs()}
    (logits,) = session.run(["logits"], feed)
    allowed = vectors["atol"] + vectors["rtol"] * np.abs(vectors["logits"]).max()
    assert np.abs(logits - vectors["logits"]).max() <= allowed
    assert len(logits) == 16


def leaks(done: Finished) -> bool:
    return any(text.startswith("leakage:") for text in done.result.warnings)


Variant = Callable[..., Finished]


def write_yaml(path: Path, config: Config) -> Path:
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return path


def budget_figures(
    drop: Estimate | None, p50_s: float | None = None, file_bytes: int | None = None, memory_bytes: int | None = None
) -> Figures:
    """Return the figures of a file that a budget may limit."""
    return {
        "drop": lambda: drop,
        "latency": lambda: p50_s,
        "size": lambda: file_bytes,
        "memory": lambda: memory_bytes,
    }


def budget_standing(
    drop: float, max_drop: float, p50_s: float | None = None, max_latency_s: float | None = None
) -> Standing:
    """Return how a file of this drop and latency stands to a budget of these limits."""
    budget = limited({"drop": max_drop, "latency": max_latency_s})
    return standing(budget, budget_figures(Estimate(drop, drop, drop), p50_s))
