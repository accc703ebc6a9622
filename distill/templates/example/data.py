"""The data: vibration of a motor, healthy, out of balance, or with a worn bearing, at a known load.

Replace ``Signals`` by your own data set; the rest shows every hook that a task may have. All but ``train`` may be left
out: without ``inputs`` and ``target`` a batch is read as (inputs, target), without ``test`` one is cut off, and so on.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.data import Dataset

LABELS = ("healthy", "unbalanced", "worn bearing")
LENGTH = 128


class Signals(Dataset):
    """Items are a dict; anything that ``collate`` below can make a batch of will do."""

    def __init__(self, count: int, seed: int, *, augment: bool) -> None:
        random = np.random.default_rng(seed)
        self.labels = random.choice(3, size=count, p=[0.5, 0.3, 0.2])
        self.loads = random.uniform(0.2, 1.0, size=count).astype(np.float32)
        self.signals = np.stack([_vibration(random, *one) for one in zip(self.labels, self.loads, strict=True)])
        self.augment = augment

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, number: int) -> dict[str, torch.Tensor]:
        signal = torch.from_numpy(self.signals[number])
        if self.augment:
            # torch, numpy and random are seeded for each item and view, so an augmentation replays, and the
            # teacher's answers to it are computed once.
            signal = torch.roll(signal, int(torch.randint(LENGTH, ())), dims=-1) * (0.9 + 0.2 * torch.rand(()))
        return {
            "signal": signal,
            "load": torch.tensor([self.loads[number]]),
            "label": torch.tensor(int(self.labels[number])),
        }


def collate(items: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Make a batch of items. Leave it out for torch's own."""
    return {name: torch.stack([item[name] for item in items]) for name in items[0]}


def inputs(batch: dict[str, torch.Tensor]) -> tuple[tuple[torch.Tensor, ...], dict[str, torch.Tensor]]:
    """Return what the model is called with: positional tensors, and keyword tensors."""
    return (batch["signal"],), {"load": batch["load"]}


def target(batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return the class numbers, [batch]."""
    return batch["label"]


def logits(output: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return the logits, [batch, classes], out of what the model returned."""
    return output["scores"]


def loss(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Return the loss on the labels: here a rare class weighs more."""
    return F.cross_entropy(logits, target, weight=torch.tensor([0.7, 1.0, 1.5], device=logits.device))


def metrics(logits: np.ndarray, target: np.ndarray) -> dict[str, float]:
    """Return fractions, higher is better. ``data.metric`` names the one that decides."""
    right = logits.argmax(1) == target
    recalls = [float(right[target == number].mean()) for number in np.unique(target)]
    return {"accuracy": float(right.mean()), "balanced_accuracy": float(np.mean(recalls))}


def make_data(train: int = 1400, test: int = 600) -> dict:
    """Return data and hooks. The arguments are ``data.args`` of config.yaml."""
    return {
        "train": Signals(train, seed=1, augment=True),
        "test": Signals(test, seed=2, augment=False),  # no "validation": it is cut off train
        "labels": LABELS,
        "collate": collate,
        "inputs": inputs,
        "target": target,
        "logits": logits,
        "loss": loss,
        "metrics": metrics,
        # "preprocess": a torch.nn.Module called on the inputs; it is exported with the model.
        # "facts": {...} for parameters of make_teacher and make_student; `classes` is known already.
    }


def _vibration(random: np.random.Generator, label: int, load: float) -> np.ndarray:
    """Draw one signal, float32 [1, LENGTH]."""
    time = np.arange(LENGTH) / LENGTH
    turns, phase = random.uniform(4, 7), random.uniform(0, 2 * math.pi)
    signal = 0.5 * np.sin(2 * math.pi * turns * time + phase) + random.normal(0, 0.35, LENGTH)
    if label == 1:
        signal += (0.6 + load) * np.sin(4 * math.pi * turns * time + phase)
    if label == 2:
        bursts = np.maximum(0, np.sin(2 * math.pi * turns * time + phase)) ** 8
        signal += (0.8 + load) * bursts * np.sin(2 * math.pi * 30 * time)
    return signal[None].astype(np.float32)
