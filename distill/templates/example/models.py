"""The models: any ``torch.nn.Module``. A function that makes one is named in config.yaml.

A parameter that the task knows (``classes``, and ``facts`` of make_data) is filled in; the others come from ``args``.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn


class SignalNet(nn.Module):
    """Two inputs, a signal [batch, 1, length] and a load [batch, 1]; a dict as output."""

    def __init__(self, classes: int, widths: Sequence[int], strides: Sequence[int]) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = 1
        for width, stride in zip(widths, strides, strict=True):
            layers += [nn.Conv1d(before, width, 5, stride, padding=2, bias=False), nn.BatchNorm1d(width), nn.ReLU()]
            before = width
        self.features = nn.Sequential(*layers)
        self.hidden = nn.Sequential(nn.Linear(before + 1, before), nn.ReLU())
        self.head = nn.Linear(before, classes)

    def forward(self, signal: torch.Tensor, load: torch.Tensor) -> dict[str, torch.Tensor]:
        found = self.features(signal).mean(dim=2)
        return {"scores": self.head(self.hidden(torch.cat([found, load], dim=1)))}


def make_teacher(classes: int, width: int = 64) -> nn.Module:
    """Return the model to be compressed; the run trains it, unless it is told that it is trained already."""
    return SignalNet(classes, [width // 2, width, width, 2 * width], [2, 1, 2, 1])


def make_student(classes: int, width: int = 32) -> nn.Module:
    """Return a smaller model; its architecture is your choice."""
    return SignalNet(classes, [width, width, 2 * width], [2, 2, 2])
