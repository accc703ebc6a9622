"""The axis of the channels is followed through any chain of operations; where it is not known, that is said."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from distill.prune.graph.axes import Axes
from distill.prune.graph.dependency import Dependency

CHANNELS = 7  # no other axis is as long

Step = Callable[[Tensor], Tensor]
STEPS: dict[str, Step] = {
    "relu": torch.relu,
    "reverse": lambda x: x.permute(*reversed(range(x.ndim))),
    "rotate": lambda x: x.permute(*range(1, x.ndim), 0),
    "swap first": lambda x: x.transpose(0, 1),
    "swap last": lambda x: x.transpose(-2, -1),
    "unsqueeze front": lambda x: x.unsqueeze(0),
    "unsqueeze end": lambda x: x.unsqueeze(-1),
    "squeeze": lambda x: x.squeeze(),
    "mean of ones": lambda x: x.mean(next((i for i, size in enumerate(x.shape) if size != CHANNELS), 0), keepdim=True),
    "sum away": lambda x: x.sum(next(i for i, size in enumerate(x.shape) if size != CHANNELS)) if x.ndim > 2 else x,
    "select": lambda x: x.select(next(i for i, size in enumerate(x.shape) if size != CHANNELS), 0) if x.ndim > 2 else x,
    # No other axis becomes as long as there are channels: the steps here tell them by their length.
    "pad": lambda x: nn.functional.pad(x, (0, 1)) if x.shape[-1] not in (CHANNELS - 1, CHANNELS) else x,
    "roll": lambda x: torch.roll(x, 1, 0),
    "merge others": lambda x: x.flatten(0, 1) if x.ndim > 2 and CHANNELS not in x.shape[:2] else x,
    "split another": lambda x: x.unflatten(0, (1, -1)) if x.shape[0] != CHANNELS else x,
    "add a row": lambda x: x + torch.ones(x.shape[-1]),
    "every second": lambda x: x[..., ::2] if x.shape[-1] not in (1, CHANNELS) else x,
    "softmax": lambda x: x.softmax(-1),
}


class Chain(nn.Module):
    """A layer, and a chain of operations behind it."""

    def __init__(self, layer: nn.Module, names: list[str]) -> None:
        super().__init__()
        self.layer, self.names = layer, names

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer(x)
        for name in self.names:
            x = STEPS[name](x) if x.ndim > 1 or "unsqueeze" in name else x
        return x


def axis_behind(model: nn.Module, example: Tensor) -> tuple[int | None, Tensor]:
    """Return the axis that is found at the end of a model, and its output."""
    outputs: list[Tensor] = []

    def kept(output: Any) -> list[Tensor]:
        outputs.append(output * 1)
        return outputs

    graph = Dependency()
    graph.build_dependency(model, (), forward_fn=lambda model, _: model(example), output_transform=kept, verbose=False)
    node = next(node for node in graph.module2node.values() if node.grad_fn is outputs[0].grad_fn)
    return Axes().at(node), outputs[0]


@given(st.lists(st.sampled_from(sorted(STEPS)), max_size=8), st.booleans())
@settings(max_examples=200)
def test_it_is_the_axis_that_is_as_long_as_there_are_channels(names: list[str], convolution: bool) -> None:
    layer, example = (
        (nn.Conv2d(2, CHANNELS, 1), torch.randn(3, 2, 4, 5))
        if convolution
        else (nn.Linear(2, CHANNELS), torch.randn(3, 4, 2))
    )
    axis, output = axis_behind(Chain(layer, names), example)
    assert axis is not None
    assert output.shape[axis] == CHANNELS


@pytest.mark.parametrize(
    "lost",
    [
        lambda x: x @ x.transpose(-2, -1),
        lambda x: x.sum(-1),
        lambda x: x.unflatten(-1, (2, 4)),
        lambda x: x.flatten(1),
    ],
    ids=["product", "sum", "heads", "flattened"],
)
def test_where_channels_are_no_axis_of_their_own_none_is_named(lost: Step) -> None:
    class Lost(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(2, 8)

        def forward(self, x: Tensor) -> Tensor:
            return lost(self.layer(x))

    assert axis_behind(Lost(), torch.randn(3, 5, 2))[0] is None


class LayerNorm2d(nn.LayerNorm):
    """Normalises the channels of images, as ConvNeXt's does."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


@pytest.mark.parametrize("side", [1, 4, 7], ids=["pooled", "maps", "as wide as deep"])
def test_a_layer_norm_may_be_one_for_images(side: int) -> None:
    model = nn.Sequential(nn.Conv2d(2, CHANNELS, 1), LayerNorm2d(CHANNELS), nn.ReLU())
    assert axis_behind(model, torch.randn(3, 2, side, side))[0] == 1
