"""Architectures of a few layers for the campaign's tests: its processes import them from here."""

import os
import time
from types import SimpleNamespace

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


class Zoo:
    """Stands in for timm: what it makes takes images of one size, of one that it is made for, or of any."""

    def __init__(self) -> None:
        self.makers = {
            "any": lambda: Sized(None),
            "given": lambda img_size=224: Sized(img_size),
            "fixed": lambda: Sized(160),
            "picky": lambda: Sized(7),  # not even the one that it says it was made for
            "features": lambda: Sized(None, answers=16),
            "large": lambda: nn.Linear(8000, 8000),
            "slow": lambda: Sized(None, width=64),
        }

    def list_models(self) -> list[str]:
        return list(self.makers)

    def create_model(self, name: str, *, pretrained: bool, num_classes: int, **settings: int) -> nn.Module:
        assert not pretrained
        assert num_classes == 1000
        return self.makers[name](**settings)

    def get_pretrained_cfg(self, name: str) -> SimpleNamespace:
        return SimpleNamespace(input_size=(3, 160, 160))


class Sized(nn.Module):
    def __init__(self, size: int | None, *, answers: int = 1000, width: int = 4) -> None:
        super().__init__()
        self.size, self.stem, self.head = size, nn.Conv2d(3, width, 3), nn.Linear(width, answers)

    def forward(self, x: Tensor) -> Tensor:
        if self.size not in (None, x.shape[-1]):
            raise ValueError(f"made for {self.size}")
        return self.head(self.stem(x).mean((2, 3)))


def hang() -> dict[str, object]:
    time.sleep(60)
    return {}


def greedy() -> dict[str, object]:
    return {"bytes": torch.zeros(2**30).nbytes}


WIDE, FIXED, DEADLY = (
    Case("fake", kind.__name__.lower(), kind, shape=(3, 8, 8), classes=5) for kind in (Wide, Fixed, Deadly)
)
