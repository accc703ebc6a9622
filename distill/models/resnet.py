"""CIFAR-style residual networks (He et al. 2015, section 4.2), with widths, depths and strides to choose."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class BasicBlock(nn.Module):
    """Two 3×3 convolutions with a shortcut; a strided or widening block projects it by a 1×1 convolution."""

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels_out)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels_in != channels_out:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels_in, channels_out, 1, stride, bias=False), nn.BatchNorm2d(channels_out)
            )

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, channels_in, H, W] to [N, channels_out, H/stride, W/stride]."""
        out = torch.relu(self.norm1(self.conv1(x)))
        return torch.relu(self.norm2(self.conv2(out)) + self.shortcut(x))


class ResNet(nn.Module):
    """A stem, one stage a width, global average pooling and a linear classifier.

    Args:
        classes: number of logits.
        channels: channels of the input image.
        widths: output channels of each stage.
        blocks: residual blocks in each stage; as long as ``widths``.
        stem: output channels of the first convolution; the first width when not given.
        stem_stride: stride of the first convolution. 2 quarters the work of all that follows.

    Raises:
        ValueError: ``widths`` and ``blocks`` differ in length.
    """

    def __init__(
        self,
        *,
        classes: int = 10,
        channels: int = 3,
        widths: Sequence[int] = (16, 32, 64),
        blocks: Sequence[int] = (3, 3, 3),
        stem: int | None = None,
        stem_stride: int = 1,
    ) -> None:
        super().__init__()
        if len(widths) != len(blocks):
            raise ValueError(f"widths={tuple(widths)} and blocks={tuple(blocks)} must have one entry a stage each")
        stem = stem or widths[0]
        self.stem = nn.Sequential(nn.Conv2d(channels, stem, 3, stem_stride, 1, bias=False), nn.BatchNorm2d(stem))
        stages: list[nn.Module] = []
        before = stem
        for index, (width, count) in enumerate(zip(widths, blocks, strict=True)):
            for block in range(count):
                stride = 2 if block == 0 and index > 0 else 1
                stages.append(BasicBlock(before, width, stride))
                before = width
        self.stages = nn.Sequential(*stages)
        self.head = nn.Linear(before, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Map images [N, channels, H, W] to logits [N, classes]."""
        x = self.stages(torch.relu(self.stem(x)))
        return self.head(x.mean((2, 3)))  # type: ignore[no-any-return]
