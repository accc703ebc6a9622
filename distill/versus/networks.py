"""Networks of published shape with random weights, for what only shape decides: latency, kernels, rounding noise."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

_WARM = 8  # batches that set a batch norm's statistics


class Residual(nn.Module):
    """Two 3x3 convolutions around a shortcut (He et al. 2016, arXiv:1512.03385)."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = _conv(channels_in, channels, 3, stride)
        self.conv2, self.norm2 = _conv(channels, channels, 3, 1)
        plain = stride == 1 and channels_in == channels
        self.shortcut = nn.Sequential() if plain else nn.Sequential(*_conv(channels_in, channels, 1, stride))

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, channels_in, H, W] to [N, channels, H/stride, W/stride]."""
        y = torch.relu(self.norm1(self.conv1(x)))
        return torch.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


def resnet18(classes: int = 1000) -> nn.Module:
    """ResNet-18 with ImageNet's stem."""
    layers: list[nn.Module] = [*_conv(3, 64, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    before = 64
    for width in (64, 128, 256, 512):
        layers += [Residual(before, width, 1 if width == 64 else 2), Residual(width, width, 1)]
        before = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, classes))


class Inverted(nn.Module):
    """A wide depthwise convolution between two narrow ones (Sandler et al. 2018, arXiv:1801.04381)."""

    def __init__(self, channels_in: int, channels: int, stride: int, expand: int) -> None:
        super().__init__()
        wide = channels_in * expand
        layers: list[nn.Module] = [] if expand == 1 else [*_conv(channels_in, wide, 1, 1), nn.ReLU6()]
        layers += [*_conv(wide, wide, 3, stride, groups=wide), nn.ReLU6(), *_conv(wide, channels, 1, 1)]
        self.body, self.residual = nn.Sequential(*layers), stride == 1 and channels_in == channels

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, channels_in, H, W] to [N, channels, H/stride, W/stride]."""
        return x + self.body(x) if self.residual else self.body(x)  # type: ignore[no-any-return]


def mobilenet_v2(classes: int = 1000) -> nn.Module:
    """MobileNetV2 of width 1."""
    layers: list[nn.Module] = [*_conv(3, 32, 3, 2), nn.ReLU6()]
    before = 32
    rows = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
    for expand, width, count, stride in rows:
        for number in range(count):
            layers.append(Inverted(before, width, stride if number == 0 else 1, expand))
            before = width
    layers += [*_conv(before, 1280, 1, 1), nn.ReLU6(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(1280, classes))


def _conv(channels_in: int, channels: int, size: int, stride: int, groups: int = 1) -> tuple[nn.Conv2d, nn.BatchNorm2d]:
    conv = nn.Conv2d(channels_in, channels, size, stride, size // 2, groups=groups, bias=False)
    return conv, nn.BatchNorm2d(channels)


class EncoderLayer(nn.Module):
    """Self-attention and a feed-forward part, each with a shortcut and a layer norm behind (Devlin et al. 2019)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, length, width] to the same shape."""
        length, width = x.shape[1:]
        query, key, value = (
            layer(x).view(-1, length, self.heads, width // self.heads).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        weights = torch.softmax(query @ key.transpose(2, 3) / (width // self.heads) ** 0.5, dim=-1)
        x = self.norm1(x + self.out((weights @ value).transpose(1, 2).reshape(-1, length, width)))
        return self.norm2(x + self.down(functional.gelu(self.up(x))))  # type: ignore[no-any-return]


class Encoder(nn.Module):
    """Token and position embeddings, encoder layers, and a classifier of the first position."""

    def __init__(
        self, *, layers: int, width: int, heads: int, length: int = 128, vocabulary: int = 30522, classes: int = 2
    ) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(vocabulary, width), nn.Embedding(length, width)
        self.norm = nn.LayerNorm(width)
        self.layers = nn.Sequential(*(EncoderLayer(width, heads) for _ in range(layers)))
        self.head = nn.Linear(width, classes)

    def forward(self, ids: Tensor) -> Tensor:
        """Map token numbers, int64 [N, length], to logits [N, classes]."""
        x = self.norm(self.tokens(ids) + self.positions.weight[: ids.shape[1]])
        return self.head(self.layers(x)[:, 0])  # type: ignore[no-any-return]


def settled(model: nn.Module, rows: Tensor, seed: int) -> nn.Module:
    """Give batch norms drawn gains and shifts, and the statistics of these rows, so that ranges are a trained net's."""
    generator = torch.Generator().manual_seed(seed)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None  # the plain mean over what comes
        norm.reset_running_stats()
        norm.weight.data.copy_(torch.empty(norm.num_features).uniform_(0.5, 1.5, generator=generator))
        norm.bias.data.copy_(0.2 * torch.randn(norm.num_features, generator=generator))
    model.train()
    with torch.no_grad():
        for batch in rows.chunk(_WARM):
            model(batch)
    return model.eval()
