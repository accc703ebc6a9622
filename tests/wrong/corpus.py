"""What a wrong input is, and the tiny run that each one is laid over."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

TINY = """
import torch
from torch import nn


def samples(count=90, features=4):
    drawn = torch.Generator().manual_seed(1)
    x = torch.randn(count, features, generator=drawn)
    return x, (x[:, 0] > 0).long()


def data():
    return {"train": samples()}


def model(classes=2, features=4):
    return nn.Sequential(nn.Linear(features, 16), nn.ReLU(), nn.Linear(16, classes))
"""

CONFIG: dict[str, Any] = {
    "task": "tiny",
    "teacher": {"model": "./tiny.py:model", "epochs": 1, "batch_size": 16, "learning_rate": 0.05},
    "data": {"source": "./tiny.py:data"},
    "distill": "off",
    "prune": "off",
    "quantize": "off",
    "benchmark": "off",
}

Prepare = Callable[[Path, pytest.MonkeyPatch], None]


@dataclass(frozen=True, kw_only=True)
class Wrong:
    """One wrong input: what differs from the tiny run, and what the user has to be told.

    ``settings`` are laid over ``CONFIG``, a section at a time; ``files`` are written beside the config, which one of
    them may replace; ``prepare`` does what neither can. ``says`` are words that the message must hold: the field or
    file, the value, the mend.
    """

    name: str
    says: tuple[str, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, str | bytes] = field(default_factory=dict)
    words: tuple[str, ...] = ("run", "config.yaml", "--smoke", "--out", "run")
    more: tuple[str, ...] = ()
    prepare: Prepare | None = None
    code: int = 2

    def lay_out(self, folder: Path, patch: pytest.MonkeyPatch) -> list[str]:
        """Write the case into the folder and return the command line."""
        write_config(folder, self.settings)
        for name, held in self.files.items():
            place = folder / name
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(held.encode() if isinstance(held, str) else held)
        if self.prepare is not None:
            self.prepare(folder, patch)
        return [*self.words, *self.more]


def write_config(folder: Path, settings: Mapping[str, Any]) -> None:
    """Write the tiny run's own module, and its configuration with ``settings`` laid over it."""
    config = dict(CONFIG)
    for key, value in settings.items():
        before = config.get(key)
        config[key] = {**before, **value} if isinstance(before, dict) and isinstance(value, dict) else value
    (folder / "tiny.py").write_text(TINY)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))


def contents(folder: Path) -> dict[str, bytes]:
    """Return every file that a run has finished, by its path; hidden ones are unfinished, and progress.json changes."""
    files = {one.relative_to(folder): one for one in sorted(folder.rglob("*")) if one.is_file()}
    return {
        str(name): path.read_bytes()
        for name, path in files.items()
        if path.name != "progress.json" and not any(part.startswith(".") for part in name.parts)
    }
