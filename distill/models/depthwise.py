"""A depthwise-separable convolutional network in the manner of MobileNetV1 (Howard et al. 2017)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Separable(nn.Module):
    """A 3×3 depthwise convolution, then a 1×1 convolution, each with batch norm and ReLU."""

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels_in, channels_in, 3, stride, 1, groups=channels_in, bias=False)
        self.norm1 = nn.BatchNorm2d(channels_in)
        self.pointwise = nn.Conv2d(channels_in, channels_out, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels_out)

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, channels_in, H, W] to [N, channels_out, H/stride, W/stride]."""
        x = torch.relu(self.norm1(self.depthwise(x)))
        return torch.relu(self.norm2(self.pointwise(x)))


class DepthwiseCNN(nn.Module):
    """A strided stem, separable blocks, global average pooling and a linear classifier.

    Args:
        classes: number of logits.
        channels: channels of the input image.
        stem: output channels of the first, dense convolution.
        widths: output channels of each separable block.
        strides: stride of each separable block; as long as ``widths``.
        stem_stride: stride of the first convolution.

    Raises:
        ValueError: ``widths`` and ``strides`` differ in length.
    """

    def __init__(
        self,
        *,
        classes: int = 10,
        channels: int = 3,
        stem: int = 32,
        widths: Sequence[int] = (64, 128, 128, 256),
        strides: Sequence[int] = (1, 2, 1, 2),
        stem_stride: int = 1,
    ) -> None:
        super().__init__()
        if len(widths) != len(strides):
            raise ValueError(f"widths={tuple(widths)} and strides={tuple(strides)} must have one entry a block each")
        self.stem = nn.Conv2d(channels, stem, 3, stem_stride, 1, bias=False)
        self.norm = nn.BatchNorm2d(stem)
        before = (stem, *widths)
        self.blocks = nn.Sequential(*(Separable(a, b, s) for a, b, s in zip(before[:-1], widths, strides, strict=True)))
        self.head = nn.Linear(before[-1], classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map images [N, channels, H, W] to logits [N, classes]."""
        x = self.blocks(torch.relu(self.norm(self.stem(x))))
        return self.head(x.mean((2, 3)))  # type: ignore[no-any-return]
