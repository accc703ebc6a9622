"""Architectures of a few layers for the campaign's tests: its processes import them from here."""

import os
import time

import torch
from torch import Tensor, nn

from distill.versus.architectures_models import Case


class Wide(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 96, 3), nn.BatchNorm2d(96), nn.ReLU(), nn.Conv2d(96, 96, 3, stride=2), nn.ReLU()
        )
        self.head = nn.Linear(96, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).mean((2, 3)))


class Fixed(Wide):
    """Expects as many channels as it was built with, whatever is left of them."""

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).mean((2, 3)).reshape(-1, 96))


class Deadly(Wide):
    """Takes the whole process with it."""

    def forward(self, x: Tensor) -> Tensor:
        os._exit(3)


def hang() -> dict[str, object]:
    time.sleep(60)
    return {}


def greedy() -> dict[str, object]:
    return {"bytes": torch.zeros(2**30).nbytes}


WIDE, FIXED, DEADLY = (
    Case("fake", kind.__name__.lower(), kind, shape=(3, 8, 8), classes=5) for kind in (Wide, Fixed, Deadly)
)
