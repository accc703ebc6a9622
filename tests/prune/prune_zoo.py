"""Small models of many shapes that the pruning tests share, each with an example input and its logits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from distill.models.resnet import ResNet


@dataclass(frozen=True)
class Case:
    build: Callable[[], nn.Module]
    example: Callable[[], tuple[tuple[Any, ...], dict[str, Any]]]
    logits: Callable[[Any], Tensor] = lambda output: output


def mlp() -> nn.Module:
    return nn.Sequential(
        nn.Linear(12, 32), nn.ReLU(), nn.BatchNorm1d(32), nn.Linear(32, 48), nn.GELU(), nn.Linear(48, 3)
    )


def sequential() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(inplace=True), nn.MaxPool2d(2),
        nn.Conv2d(16, 24, 3, padding=1), nn.ReLU(inplace=True), nn.Flatten(), nn.Dropout(0.1),
        nn.Linear(24 * 16, 40), nn.Tanh(), nn.Linear(40, 4),
    )  # fmt: skip


def separable() -> nn.Module:
    def block(before: int, after: int) -> list[nn.Module]:
        return [
            nn.Conv2d(before, before, 3, padding=1, groups=before, bias=False), nn.BatchNorm2d(before), nn.ReLU(),
            nn.Conv2d(before, after, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU(),
        ]  # fmt: skip

    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
        *block(16, 32), *block(32, 32), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 5),
    )  # fmt: skip


class TwoInputs(nn.Module):
    """An image and a row of numbers in, a dict out."""

    def __init__(self) -> None:
        super().__init__()
        self.image = nn.Sequential(nn.Conv2d(1, 24, 3), nn.BatchNorm2d(24), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
        self.numbers = nn.Sequential(nn.Linear(6, 16), nn.ReLU())
        self.trunk = nn.Linear(40, 32)
        self.head = nn.Linear(32, 3)
        self.risk = nn.Linear(32, 1)
        self.label_names = ["a", "b", "c"]

    def forward(self, image: Tensor, *, numbers: Tensor) -> dict[str, Any]:
        both = torch.cat([self.image(image).flatten(1), self.numbers(numbers)], dim=1)
        hidden = torch.relu(self.trunk(both))
        return {"logits": self.head(hidden), "risk": self.risk(hidden).squeeze(1), "names": self.label_names}


class Attention(nn.Module):
    """A pre-norm transformer block whose attention is written out, as timm does."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(8, 32)
        self.position = nn.Parameter(torch.randn(1, 5, 32))
        self.norm1, self.norm2, self.norm3 = nn.LayerNorm(32), nn.LayerNorm(32), nn.LayerNorm(32)
        self.qkv, self.projection = nn.Linear(32, 96), nn.Linear(32, 32)
        self.up, self.down = nn.Linear(32, 64), nn.Linear(64, 32)
        self.head = nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x) + self.position
        q, k, v = self.qkv(self.norm1(x)).reshape(x.shape[0], 5, 3, 4, 8).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape[0], 5, 32)
        x = x + self.projection(mixed)
        x = x + self.down(F.gelu(self.up(self.norm2(x))))
        return self.head(self.norm3(x).mean(1))


class Encoder(nn.Module):
    """torch's own encoder layer, with nn.MultiheadAttention inside."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 32)
        self.layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
        self.head = nn.Linear(32, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.layer(self.embed(tokens)).mean(1))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.before, self.lstm, self.head = nn.Linear(6, 32), nn.LSTM(32, 16, batch_first=True), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(torch.relu(self.before(x)))[0][:, -1])


class Sequences(nn.Module):
    """Convolutions before a recurrent layer of two directions and two layers, which keeps its own widths."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv1d(6, 32, 3, padding=1), nn.Conv1d(32, 32, 1)
        self.gru = nn.GRU(32, 16, 2, batch_first=True, bidirectional=True)
        self.after, self.head = nn.Linear(32, 32), nn.Linear(32, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.second(torch.relu(self.first(x.mT)))).mT
        return self.head(torch.relu(self.after(self.gru(x)[0])).mean(1))


class GatedUnits(nn.Module):
    """A stream between RMS norms, one of them of the user's own, with gated linear units beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm, self.head = nn.Linear(6, 32), nn.RMSNorm(32), nn.Linear(32, 3)
        self.up, self.down = nn.Linear(32, 96), nn.Linear(48, 32)
        self.scale = nn.Parameter(torch.rand(32) + 0.5)
        self.both, self.back = nn.Linear(32, 64), nn.Linear(32, 32)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        x = x + self.down(F.glu(self.up(self.norm(x)), -1))
        left, right = self.both(x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * self.scale).chunk(2, -1)
        x = x + self.back(F.silu(left) * right)
        return self.head(x.mean(1))


class Coordinates(nn.Module):
    """Constants lie before, behind and around channels in concatenations."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Conv2d(3, 16, 1), nn.Conv2d(18, 24, 3, padding=1), nn.Conv2d(27, 24, 1)
        self.head = nn.Linear(24, 3)

    def forward(self, x: Tensor) -> Tensor:
        rows = torch.linspace(0, 1, 6).view(1, 1, 6, 1).expand(len(x), 1, 6, 6)
        x = torch.relu(self.second(torch.cat([rows, torch.relu(self.first(x)), rows.mT], 1)))
        x = torch.relu(self.third(torch.cat([rows, rows.mT, x, rows * rows.mT], 1)))
        return self.head(x.mean((2, 3)))


class InputConcat(nn.Module):
    """Dense connections, with the input itself among what is concatenated and added."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.same = nn.Conv2d(16, 16, 3, padding=1), nn.Conv2d(16, 16, 1)
        self.second, self.third = nn.Conv2d(32, 24, 3, padding=1), nn.Conv2d(40, 24, 1)
        self.head = nn.Linear(24, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.same(x)
        y = torch.relu(self.first(x))
        z = torch.relu(self.second(torch.cat([x, y], 1)))
        return self.head(torch.relu(self.third(torch.cat([y, z], 1))).mean((2, 3)))


class RawConcat(nn.Module):
    """The raw input lies before a layer's channels in the concatenation: a graph that misses it cuts the wrong ones."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(8, 16), nn.Linear(24, 32), nn.Linear(32, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.cat([x, torch.relu(self.first(x))], 1)
        return self.head(torch.relu(self.second(y)))


class Gated(nn.Module):
    """Two halves of one layer multiply each other."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.head = nn.Conv2d(3, 32, 3), nn.Conv2d(16, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.gate(x).chunk(2, 1)
        return self.head(a * torch.sigmoid(b)).mean((2, 3))


class Halves(nn.Module):
    """Two halves of one layer are read by different layers; chunk() always cuts in the middle."""

    def __init__(self) -> None:
        super().__init__()
        self.both, self.left, self.right = nn.Linear(6, 32), nn.Linear(16, 16), nn.Linear(16, 16)
        self.head = nn.Linear(16, 2)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.both(x).chunk(2, 1)
        return self.head(torch.relu(self.left(a) + self.right(b)))


class Shuffle(nn.Module):
    """Channels are shuffled by reshaping, which no dependency graph follows."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Conv2d(3, 16, 1), nn.Conv2d(16, 24, 1), nn.Conv2d(24, 24, 1)
        self.head = nn.Linear(24, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        n, c, h, w = x.shape
        x = x.reshape(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        return self.head(torch.relu(self.third(torch.relu(self.second(x)))).mean((2, 3)))


class ShuffleUnit(nn.Module):
    """A unit of ShuffleNet: one half passes by, the other goes through layers, and both are shuffled."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.inner = nn.Conv2d(3, 16, 1), nn.Conv2d(8, 24, 1)
        self.depthwise, self.outer = nn.Conv2d(24, 24, 3, padding=1, groups=24), nn.Conv2d(24, 8, 1)
        self.last, self.head = nn.Conv2d(16, 32, 1), nn.Linear(32, 3)

    def forward(self, x: Tensor) -> Tensor:
        by, through = self.first(x).chunk(2, 1)
        through = self.outer(self.depthwise(torch.relu(self.inner(through))))
        x = torch.cat([by, through], 1)
        n, c, h, w = x.shape
        x = x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        return self.head(torch.relu(self.last(x)).mean((2, 3)))


class SelectiveKernel(nn.Module):
    """Paths that are weighed for each channel by what one layer says of all of them."""

    def __init__(self) -> None:
        super().__init__()
        self.paths = nn.ModuleList(nn.Conv2d(3, 16, 2 * n + 1, padding=n) for n in range(2))
        self.squeeze, self.select = nn.Conv2d(16, 8, 1), nn.Conv2d(8, 32, 1)
        self.after, self.head = nn.Conv2d(16, 24, 1), nn.Linear(24, 3)

    def forward(self, x: Tensor) -> Tensor:
        paths = torch.stack([torch.relu(path(x)) for path in self.paths], 1)
        weights = self.select(torch.relu(self.squeeze(paths.sum(1).mean((2, 3), keepdim=True))))
        n, c, h, w = weights.shape
        x = (paths * weights.view(n, 2, c // 2, h, w).softmax(1)).sum(1)
        return self.head(torch.relu(self.after(x)).mean((2, 3)))


class FlatMaps(nn.Module):
    """Maps are flattened: each channel becomes the features of its positions."""

    def __init__(self) -> None:
        super().__init__()
        self.maps, self.hidden, self.head = nn.Conv2d(3, 16, 3), nn.Linear(16 * 16, 24), nn.Linear(24, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.hidden(torch.relu(self.maps(x)).flatten(1))))


class FlatTokens(nn.Module):
    """Tokens are flattened: each channel becomes one feature of every token."""

    def __init__(self) -> None:
        super().__init__()
        self.token, self.hidden, self.head = nn.Linear(6, 16), nn.Linear(5 * 16, 24), nn.Linear(24, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.hidden(torch.relu(self.token(x)).flatten(1))))


class Unflattened(nn.Module):
    """Features become maps, as in a generator."""

    def __init__(self) -> None:
        super().__init__()
        self.features, self.maps, self.head = nn.Linear(6, 16 * 9), nn.Conv2d(16, 24, 1), nn.Linear(24, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.features(x)).unflatten(1, (-1, 3, 3))
        return self.head(torch.relu(self.maps(x)).mean((2, 3)))


class MergedPatches(nn.Module):
    """Every second row and column of channels-last maps, side by side, as windowed attention merges its patches."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Linear(3, 16), nn.LayerNorm(64)
        self.reduce, self.head = nn.Linear(64, 24), nn.Linear(24, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        x = torch.cat([x[:, i::2, j::2, :] for j in (0, 1) for i in (0, 1)], -1)
        return self.head(torch.relu(self.reduce(self.norm(x))).mean((1, 2)))


class Functional(nn.Module):
    """A layer's weight is applied by the module around it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(6, 16), nn.Linear(16, 24), nn.Linear(24, 24)
        self.head = nn.Linear(24, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.linear(torch.relu(self.first(x)), self.second.weight, self.second.bias)
        return self.head(torch.relu(self.third(torch.relu(x))))


class SqueezeExcite(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 32, 3), nn.BatchNorm2d(32)
        self.down, self.up, self.head = nn.Linear(32, 16), nn.Linear(16, 32), nn.Linear(32, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.norm(self.conv(x)))
        scale = torch.sigmoid(self.up(torch.relu(self.down(x.mean((2, 3))))))
        return self.head((x * scale[:, :, None, None]).mean((2, 3)))


class Fixed(nn.Module):
    """One layer's width is written into forward."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(6, 32), nn.Linear(32, 32), nn.Linear(32, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.second(torch.relu(self.first(x)).view(-1, 32))))


class Tied(nn.Module):
    """The embedding's weight is the output layer's too."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.up, self.down = nn.Embedding(11, 16), nn.Linear(16, 32), nn.Linear(32, 16)
        self.head = nn.Linear(16, 11, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.down(torch.relu(self.up(self.embed(tokens)))))


def grouped() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 32, 1), nn.GroupNorm(4, 32), nn.ReLU(), nn.Conv2d(32, 32, 3, groups=4), nn.BatchNorm2d(32),
        nn.PReLU(32), nn.Conv2d(32, 16, 1), nn.InstanceNorm2d(16, affine=True), nn.ConvTranspose2d(16, 24, 2),
        nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 3),
    )  # fmt: skip


def weight_normed() -> nn.Module:
    return nn.Sequential(
        parametrizations.weight_norm(nn.Linear(8, 32)), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 2)
    )


def segmentation() -> nn.Module:
    """A fully convolutional head: logits [N, classes, H, W]."""
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 1), nn.ReLU(), nn.Conv2d(32, 5, 1)
    )


def _images(*shape: int) -> Callable[[], tuple[tuple[Any, ...], dict[str, Any]]]:
    return lambda: ((torch.randn(3, *shape, generator=torch.Generator().manual_seed(7)),), {})


def _tokens(length: int, vocabulary: int) -> Callable[[], tuple[tuple[Any, ...], dict[str, Any]]]:
    return lambda: ((torch.arange(3 * length).reshape(3, length) % vocabulary,), {})


def _image_and_numbers() -> tuple[tuple[Any, ...], dict[str, Any]]:
    generator = torch.Generator().manual_seed(7)
    return (torch.randn(3, 1, 8, 8, generator=generator),), {"numbers": torch.randn(3, 6, generator=generator)}


# The five that every property is shown on.
MAIN: dict[str, Case] = {
    "resnet": Case(lambda: ResNet(channels=1, blocks=(1, 1, 1), widths=(16, 32, 48)), _images(1, 12, 12)),
    "mlp": Case(mlp, _images(12)),
    "separable": Case(separable, _images(3, 8, 8)),
    "two inputs": Case(TwoInputs, _image_and_numbers, lambda output: output["logits"]),
    "sequential": Case(sequential, _images(3, 8, 8)),
}

# Shapes that a dependency graph gets wrong, or that are only partly prunable.
HARD: dict[str, Case] = {
    "attention": Case(Attention, _images(5, 8)),
    "encoder": Case(Encoder, _tokens(6, 20)),
    "recurrent": Case(Recurrent, _images(5, 6)),
    "sequences": Case(Sequences, _images(5, 6)),
    "gated units": Case(GatedUnits, _images(5, 6)),
    "coordinates": Case(Coordinates, _images(3, 6, 6)),
    "input concat": Case(InputConcat, _images(16, 6, 6)),
    "raw concat": Case(RawConcat, _images(8)),
    "gated": Case(Gated, _images(3, 6, 6)),
    "halves": Case(Halves, _images(6)),
    "shuffle": Case(Shuffle, _images(3, 6, 6)),
    "shuffle unit": Case(ShuffleUnit, _images(3, 6, 6)),
    "selective kernel": Case(SelectiveKernel, _images(3, 6, 6)),
    "flat maps": Case(FlatMaps, _images(3, 6, 6)),
    "flat tokens": Case(FlatTokens, _images(5, 6)),
    "unflattened": Case(Unflattened, _images(6)),
    "merged patches": Case(MergedPatches, _images(4, 4, 3)),
    "functional": Case(Functional, _images(6)),
    "squeeze-excite": Case(SqueezeExcite, _images(3, 8, 8)),
    "fixed": Case(Fixed, _images(6)),
    "tied": Case(Tied, _tokens(6, 11)),
    "grouped": Case(grouped, _images(3, 8, 8)),
    "weight norm": Case(weight_normed, _images(8)),
    "segmentation": Case(segmentation, _images(3, 6, 6)),
}


def randomised(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give batch norms and biases values that no two channels share, as after training."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.normal_(generator=generator)
            module.running_var.uniform_(0.5, 2.0, generator=generator)
            module.weight.data.uniform_(0.5, 2.0, generator=generator)
            module.bias.data.normal_(generator=generator)
    return model


def make(case: Case, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return randomised(case.build(), seed)
