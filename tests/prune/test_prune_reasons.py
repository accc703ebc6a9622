"""Gates do not keep what they gate from being cut, and layers that stay are named with what really keeps them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
import torch.nn.utils.prune as masks
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

from distill.prune import PruneRecord, PruneSettings, prune_channels
from distill.prune.graph.statistics import Recorded, Repeated

WIDE = 32


class Map(nn.Module):
    """Does to maps what a function says, with layers of its own."""

    def __init__(self, function: Callable[..., Tensor], *layers: nn.Module) -> None:
        super().__init__()
        self.function, self.layers = function, nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, *self.layers)


def block(before: int, after: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU())


def between(middle: nn.Module) -> nn.Module:
    """Return a network with a module between its blocks, behind 32 channels and before as many."""
    torch.manual_seed(0)
    model = nn.Sequential(
        block(3, WIDE), middle, block(WIDE, WIDE), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(WIDE, 4)
    )
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 2.0)
            nn.init.normal_(module.bias)
    return model.eval()


def pruned(model: nn.Module, example: Tensor | None = None, round_to: int = 4) -> tuple[nn.Module, PruneRecord]:
    example = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1)) if example is None else example
    settings = PruneSettings(macs=0.5, importance="group_norm", round_to=round_to)
    return prune_channels(model, settings, example=((example,), {}), batches=None, loss=None, logits=lambda out: out)


def convolved(x: Tensor, gate: nn.Module) -> Tensor:
    return x * torch.sigmoid(gate(x))


def cbam(x: Tensor, gate: nn.Module) -> Tensor:
    return x * torch.sigmoid(gate(torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)))


def context(x: Tensor, attention: nn.Module, down: nn.Module, up: nn.Module) -> Tensor:
    pooled = torch.einsum("ncp,np->nc", x.flatten(2), attention(x).flatten(1).softmax(-1))
    return x + up(torch.relu(down(pooled)))[:, :, None, None]


def attended(x: Tensor, weigh: nn.Module) -> Tensor:
    places = x.flatten(2).mT
    return x + (places * weigh(places).softmax(1)).sum(1)[:, :, None, None]


def simam(x: Tensor) -> Tensor:
    spread = (x - x.mean((2, 3), keepdim=True)).square()
    return x * torch.sigmoid(spread / (4 * spread.mean((2, 3), keepdim=True) + 1e-4) + 0.5)


def coordinates(x: Tensor, squeeze: nn.Module, rows: nn.Module, columns: nn.Module) -> Tensor:
    pooled = torch.cat([x.mean(3, keepdim=True), x.mean(2, keepdim=True).transpose(2, 3)], 2)
    first, second = torch.split(torch.relu(squeeze(pooled)), [x.shape[2], x.shape[3]], 2)
    return x * torch.sigmoid(rows(first)) * torch.sigmoid(columns(second.transpose(2, 3)))


def excited(x: Tensor, down: nn.Module, up: nn.Module, pool: Callable[[Tensor], Tensor]) -> Tensor:
    return x * torch.sigmoid(up(torch.relu(down(pool(x)))))[:, :, None, None]


class Gate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return x * x.mean(1, keepdim=True).sigmoid()

    @staticmethod
    def backward(ctx: object, *gradients: Tensor) -> Tensor:
        return gradients[0]


def squeezed(pool: Callable[[Tensor], Tensor]) -> nn.Module:
    return Map(partial(excited, pool=pool), nn.Linear(WIDE, 8), nn.Linear(8, WIDE))


def depthwise() -> nn.Module:
    return nn.Conv2d(WIDE, WIDE, 3, padding=1, groups=WIDE)


GATES: dict[str, Callable[[], nn.Module]] = {
    "one map": lambda: Map(convolved, nn.Conv2d(WIDE, 1, 3, padding=1)),
    "cbam": lambda: Map(cbam, nn.Conv2d(2, 1, 7, padding=3)),
    "mean of channels": lambda: Map(lambda x: x * x.mean(1, keepdim=True).sigmoid()),
    "without an axis": lambda: Map(lambda x: x * x.mean(1).sigmoid()[:, None]),
    "detached mean": lambda: Map(lambda x: x * x.mean(1, keepdim=True).detach().sigmoid()),
    "maximum": lambda: Map(lambda x: x * x.max(1, keepdim=True).values.sigmoid()),
    "best four": lambda: Map(lambda x: x * x.topk(4, 1).values.mean(1, keepdim=True).sigmoid()),
    "standardised": lambda: Map(lambda x: (x - x.mean(1, keepdim=True)) / (x.std(1, keepdim=True) + 1)),
    "where": lambda: Map(lambda x: torch.where(x > x.mean(1, keepdim=True), x, 0 * x)),
    "softmax": lambda: Map(lambda x: 9 * x.softmax(1)),
    "unit length": lambda: Map(lambda x: F.normalize(x, dim=1)),
    "log of sum": lambda: Map(lambda x: x - x.logsumexp(1, keepdim=True)),
    "functional norm": lambda: Map(lambda x: F.layer_norm(x.movedim(1, -1), (x.shape[1],)).movedim(-1, 1)),
    "se by mean": lambda: squeezed(lambda x: x.mean((2, 3))),
    "se by pool": lambda: squeezed(lambda x: F.adaptive_avg_pool2d(x, 1).flatten(1)),
    "se by einsum": lambda: squeezed(lambda x: torch.einsum("nchw->nc", x)),
    "global context": lambda: Map(context, nn.Conv2d(WIDE, 1, 1), nn.Linear(WIDE, 8), nn.Linear(8, WIDE)),
    "pooled by attention": lambda: Map(attended, nn.Linear(WIDE, 1)),
    "simam": lambda: Map(simam),
    "coordinate attention": lambda: Map(
        coordinates, nn.Conv2d(WIDE, 8, 1), nn.Conv2d(8, WIDE, 1), nn.Conv2d(8, WIDE, 1)
    ),
    "own function": lambda: Map(Gate.apply),
    "vmap": lambda: Map(torch.vmap(lambda x: x * x.mean(0, keepdim=True).sigmoid())),
    "recomputed": lambda: Map(lambda x, conv: checkpoint(conv, x, use_reentrant=True), depthwise()),
    "recomputed later": lambda: Map(lambda x, conv: checkpoint(conv, x, use_reentrant=False), depthwise()),
}


@pytest.mark.parametrize("name", GATES)
def test_what_stands_behind_a_gate_is_cut_and_keeps_its_rows(name: str) -> None:
    model = between(GATES[name]())
    narrow, record = pruned(model)
    assert record.left == {}
    assert record.widths["0.0"][1] < WIDE
    assert record.widths["2.0"][1] < WIDE
    before, after = ([net.get_parameter(f"{at}.0.weight") for at in (0, 2)] for net in (model, narrow))
    stayed = [int(torch.nonzero((before[0] == row).all((1, 2, 3)))[0]) for row in after[0]]
    mine = before[1][:, stayed]
    assert all(bool((mine == row).flatten(1).all(1).any()) for row in after[1])


def hooked() -> nn.Module:
    layer = nn.Identity()
    layer.register_forward_hook(lambda module, inputs, output: output.flip(1))
    return layer


class Owned(nn.Module):
    """A convolution of the user's own making."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(WIDE, WIDE, 3, 3) / 9)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight, padding=1)


class Bare(nn.Module):
    def __init__(self, product: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.product, self.mix = product, nn.Parameter(torch.randn(WIDE, WIDE) / 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.product(x.movedim(1, -1), self.mix).movedim(-1, 1)


class Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, x: Tensor, weight: Tensor) -> Tensor:
        return x @ weight

    @staticmethod
    def backward(ctx: object, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


class Unseen(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.frozen = nn.Conv2d(WIDE, WIDE, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            gate = self.frozen(x)
        return x * gate.sigmoid()


NEIGHBOURS: dict[str, Callable[[Tensor, nn.Module], Tensor]] = {
    "before": lambda x, conv: x * torch.sigmoid(conv(x.mean((2, 3))[:, None]))[:, 0, :, None, None],
    "behind": lambda x, conv: x * torch.sigmoid(conv(x.mean((2, 3))[:, :, None].mT)).mT[..., None],
}
SHUFFLES: dict[str, Callable[[Tensor], Tensor]] = {
    "native": lambda x: F.channel_shuffle(x, 4),
    "by shape": lambda x: x.unflatten(1, (4, -1)).transpose(1, 2).flatten(1, 2),
    "flip": lambda x: x.flip(1),
    "roll": lambda x: x.roll(1, 1),
    "index": lambda x: x[:, torch.arange(x.shape[1] - 1, -1, -1)],
    "sort": lambda x: x.sort(1).values,
    "cumsum": lambda x: x.cumsum(1) / 9,
    "argmax": lambda x: x + F.one_hot(x.argmax(1), x.shape[1]).movedim(-1, 1),
}
STAY: dict[str, tuple[Callable[[], nn.Module], str, str]] = {
    **{
        f"eca {name}": (lambda gate=gate: Map(gate, nn.Conv1d(1, 1, 3, padding=1)), "0.0", "1.layers.0 is a Conv1d")
        for name, gate in NEIGHBOURS.items()
    },
    **{name: (lambda shuffle=shuffle: Map(shuffle), "0.0", "") for name, shuffle in SHUFFLES.items()},
    "numpy": (lambda: Map(lambda x: x * torch.from_numpy(x.detach().numpy().mean(1, keepdims=True))), "0.0", "reads"),
    "hook": (hooked, "0.0", "reads the removed ones in another way"),
    "own convolution": (Owned, "1.weight", "a parameter that forward multiplies with itself"),
    "own convolution's input": (Owned, "0.0", "its channels meet 1.weight"),
    "bare @": (lambda: Bare(torch.matmul), "1.mix", "a parameter that forward multiplies with itself"),
    "bare linear": (lambda: Bare(F.linear), "0.0", "its channels meet 1.mix"),
    "bare einsum": (lambda: Bare(partial(torch.einsum, "nhwc,cd->nhwd")), "0.0", "its channels meet 1.mix"),
    "bare in a function": (lambda: Bare(Product.apply), "0.0", "its channels meet 1.mix"),
    "no_grad": (Unseen, "1.frozen", "autograd does not see it"),
    "mask": (lambda: masks.l1_unstructured(nn.Conv2d(WIDE, WIDE, 1), "weight", 0.5), "1", "is computed (by a mask"),
    "old norm": (
        lambda: nn.utils.weight_norm(nn.Conv2d(WIDE, WIDE, 1)),
        "1",
        "is computed",
    ),
    "norm": (lambda: parametrizations.weight_norm(nn.Conv2d(WIDE, WIDE, 1)), "1", "is computed"),
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize("name", STAY)
def test_what_stays_is_named_with_what_keeps_it(name: str) -> None:
    build, layer, why = STAY[name]
    _, record = pruned(between(build()))
    assert why in record.left[layer]
    assert record.widths.get(layer, (0, 0))[0] == record.widths.get(layer, (0, 0))[1]
    assert any(warning.startswith("not pruned: ") and layer in warning for warning in record.warnings)


def test_a_shortfall_names_the_most_costly_layers_that_stay_and_why() -> None:
    model = nn.Sequential(block(3, 8), Map(lambda x: x.flip(1)), block(8, WIDE), Map(lambda x: x.flip(1)), Owned())
    model.append(nn.Sequential(nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(WIDE, 4)))
    _, record = pruned(model.eval())
    assert record.shortfall is not None
    assert [*record.left][:2] == ["4.weight", "2.0"]
    assert record.shortfall.index("4.weight: a parameter") < record.shortfall.index("2.0: ")
    assert "round_to" not in record.shortfall.partition("left whole")[2]


def test_nothing_but_bare_parameters_is_said_and_round_to_is_not_blamed() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = (nn.Parameter(torch.randn(WIDE, wide, 3, 3) / 9) for wide in (3, WIDE))
            self.head = nn.Linear(WIDE, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(F.conv2d(F.conv2d(x, self.first).relu(), self.second).relu().mean((2, 3)))

    _, record = pruned(Net())
    assert record.shortfall is not None
    assert record.shortfall.startswith("macs=0.5: nothing was removed: ")
    assert "first" in record.shortfall
    assert "second" in record.shortfall
    assert "round_to" not in " ".join([record.shortfall, *record.warnings])


def test_a_forward_that_writes_into_its_input_is_pruned_and_the_rows_stay_as_they_are() -> None:
    class Written(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = between(nn.Identity())

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x.sub_(0.5).div_(0.25))

    model = Written().eval()
    example = torch.randn(2, 3, 8, 8)
    rows = [example.clone() for _ in range(2)]

    def loss(model: nn.Module, batch: Tensor) -> Tensor:
        return model(batch).square().mean()

    settings = PruneSettings(macs=0.5, round_to=4, steps=2)
    before = example.clone()
    _, record = prune_channels(
        model, settings, example=((example,), {}), batches=rows, loss=loss, logits=lambda output: output
    )
    assert record.macs_after < 0.6 * record.macs_before
    assert all(torch.equal(tensor, before) for tensor in (example, *rows))


@pytest.mark.parametrize(
    "change",
    [
        lambda narrow, scale: (narrow, scale.flip(0)),
        lambda narrow, scale: (narrow.flip(1), scale),
        lambda narrow, scale: (narrow + 0.1, scale),
    ],
    ids=["scale in another order", "channels in another order", "other values"],
)
def test_a_statistic_of_other_channels_is_no_excuse(change: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]) -> None:
    torch.manual_seed(0)
    wide, scale, stay = torch.randn(3, 8), torch.rand(8), [0, 2, 3, 7]

    def norm(x: Tensor, weight: Tensor) -> Tensor:
        return F.layer_norm(x, (x.shape[1],), weight)

    def repeated(narrow: Tensor, narrow_scale: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            with Recorded() as recorded:
                less = norm(narrow, narrow_scale)
            with Repeated(recorded.calls):
                return less, norm(wide, scale)[:, stay]

    assert torch.allclose(*repeated(wide[:, stay], scale[stay]))
    assert not torch.allclose(*repeated(*change(wide[:, stay], scale[stay])), atol=1e-3)
