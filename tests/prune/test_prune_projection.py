"""What the logits lose: the parts of importance='gauss_newton' that the contract suite does not reach."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from attention_zoo import Model, Own, features, groups_of
from torch import Tensor, nn

from distill.errors import UserError
from distill.prune import PruneRecord, PruneSettings, count, prune_channels
from distill.prune.scores.evidence import Evidence, class_axis, signed_sum
from distill.prune.scores.importance import IMPORTANCES
from distill.prune.scores.weights import Weights
from distill.prune.widths.sizes import Sizes

LABELS = torch.randint(4, (6, 5, 5), generator=torch.Generator().manual_seed(0))
LOSSES: dict[str, tuple[tuple[int, ...], Callable[[Tensor], Tensor], int | None]] = {
    "classes": ((6, 4), lambda z: F.cross_entropy(z, LABELS[:, 0, 0]), 1),
    "images of classes": ((6, 4, 5, 5), lambda z: F.cross_entropy(z, LABELS), 1),
    "tokens": ((6, 5, 4), lambda z: F.cross_entropy(z.flatten(0, 1), LABELS[:, 0].flatten()), 2),
    "soft": ((6, 4), lambda z: F.kl_div(z.log_softmax(1), torch.eye(6, 4) * 0.6 + 0.1, reduction="batchmean"), 1),
    "yes or no": ((6, 4), lambda z: F.binary_cross_entropy_with_logits(z, torch.eye(6, 4)), None),
    "distances": ((6, 4), lambda z: F.mse_loss(z, torch.eye(6, 4)), None),
    "one logit": ((6, 1), lambda z: F.binary_cross_entropy_with_logits(z, torch.eye(6, 1)), None),
    "nothing to learn": ((6, 4), lambda z: (z - z.detach()).square().sum(), None),
    "something else": ((6, 4), lambda z: torch.ones((), requires_grad=True) * 2, None),
}


@pytest.mark.parametrize("name", LOSSES)
def test_the_loss_tells_along_which_axis_a_constant_changes_nothing(name: str) -> None:
    shape, loss, axis = LOSSES[name]
    logits = torch.randn(shape, generator=torch.Generator().manual_seed(1)).requires_grad_()
    assert class_axis(loss(logits), logits) == axis


@pytest.mark.parametrize("axis", [None, 1])
def test_the_square_of_its_gradient_is_how_far_the_logits_of_a_row_move(axis: int | None) -> None:
    start = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    direction = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    start[0, 2] = -torch.inf  # masked: it moves nowhere
    generator = torch.Generator().manual_seed(1)
    found = 0.0
    for _ in range(4000):
        step = torch.zeros((), dtype=torch.float64, requires_grad=True)
        logits = torch.where(start.isfinite(), start + step * direction, start)
        (gradient,) = torch.autograd.grad(signed_sum(logits, [], axis, generator), step)
        found += float(gradient) ** 2 / 4000
    told = start.isfinite()
    moved = direction * told
    if axis is not None:
        moved = told * (moved - moved.sum(1, keepdim=True) / told.sum(1, keepdim=True))
    assert found == pytest.approx(float(moved.square().sum(1).mean()), rel=0.1)


def rows(count: int, *shape: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(5)
    return [torch.randn(8, *shape, generator=generator) for _ in range(count)]


def pruned(model: nn.Module, batches: list[Tensor], **changes: Any) -> tuple[nn.Module, PruneRecord]:
    words: dict[str, Any] = {"loss": lambda model, batch: _first(model(batch)).square().mean(), "logits": _first}
    words |= {key: changes.pop(key) for key in ("loss", "logits") if key in changes}
    settings = PruneSettings(**{"round_to": 2, "max_ratio": 0.8} | changes)
    return prune_channels(model, settings, example=((batches[0][:2],), {}), batches=batches, **words)


def _first(output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple) else output


class Residual(nn.Module):
    """Three blocks around a shortcut, of which two end on a batch norm whose factors are 0."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16)
            )
            for _ in range(3)
        )
        self.head = nn.Linear(16, 4)
        for block in list(self.blocks)[1:]:
            nn.init.zeros_(block[3].weight)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = torch.relu(x + block(x))
        return self.head(x.mean((2, 3)))


def test_layers_that_nothing_depends_on_go_first() -> None:
    torch.manual_seed(0)
    model = Residual().eval()
    batches = rows(4, 3, 8, 8)
    narrow, record = pruned(model, batches, macs=0.6)
    assert record.widths["blocks.1.0"][1] <= 8 >= record.widths["blocks.2.0"][1]
    assert record.widths["blocks.0.0"] == record.widths["stem"] == (16, 16)
    assert not record.warnings
    torch.testing.assert_close(narrow(batches[0]), model(batches[0]))


class Detector(nn.Module):
    """Logits and boxes, from a layer of their own each."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Linear(6, 16)
        self.left, self.right = nn.Linear(16, 32), nn.Linear(16, 32)
        self.classes, self.boxes = nn.Linear(32, 4), nn.Linear(32, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = torch.relu(self.trunk(x))
        return self.classes(torch.relu(self.left(x))), 100 * self.boxes(torch.relu(self.right(x)))


def test_other_outputs_than_the_logits_count_as_much() -> None:
    torch.manual_seed(0)
    model = Detector().eval()
    batches = rows(8, 6)
    narrow, record = pruned(model, batches, macs=0.7)
    assert abs(record.widths["left"][1] - record.widths["right"][1]) <= 8
    with torch.no_grad():
        answers = zip(narrow(batches[0]), model(batches[0]), strict=True)
    for mine, whole in answers:
        assert float((mine - whole).norm() / whole.norm()) < 0.5


def test_a_loss_may_call_the_model_more_than_once_and_learn_from_some() -> None:
    def consistency(model: nn.Module, batch: Tensor) -> Tensor:
        answer = model(batch)
        with torch.no_grad():
            other = model(batch + 0.01)
        return F.mse_loss(answer, other)

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 4)).eval()
    _, record = pruned(model, rows(2, 6), loss=consistency, ratio=0.5)
    assert record.ratio_achieved == pytest.approx(0.5)


def test_logits_that_are_not_there_are_named_with_what_else_there_is() -> None:
    class Answering(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 4))

        def forward(self, x: Tensor, labels: Tensor | None = None) -> tuple[Tensor, ...]:
            z = self.layers(x)
            return (z,) if labels is None else (F.cross_entropy(z, labels),)

    model = Answering().eval()
    options = {"logits": lambda output: output[0].reshape(len(output[0]), 4), "ratio": 0.5}
    for loss, said in (
        (lambda m, x: m(x, torch.zeros(8, dtype=torch.long))[0], "no logits.*taylor"),
        (lambda m, x: m.forward(x)[0].square().mean(), "did not call the model.*taylor"),
    ):
        with pytest.raises(UserError, match=f"(?s){said}"):
            pruned(model, rows(2, 6), loss=loss, **options)


def test_few_batches_are_asked_often_enough() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 4)).eval()
    scores = []
    for seed in range(2):
        evidence = Evidence(rows(1, 6), lambda m, x: m(x).square().mean(), _first, PruneSettings(), None, seed)
        scores.append(evidence.gathered(model, _free(model), IMPORTANCES["gauss_newton"])["0"])
    assert torch.corrcoef(torch.stack(scores))[0, 1] > 0.85


def _free(model: nn.Module) -> list[Any]:
    from distill.prune.graph.groups import Graph

    return [group for group in Graph(model, ((rows(1, 6)[0],), {}), _first).groups() if not group.is_output]


@pytest.mark.parametrize("heads", [2, 4])
def test_a_unit_of_attention_is_worth_what_goes_with_it(heads: int) -> None:
    """Two heads lose dimensions, of scores and of values; four lose whole heads. A mask's gradient is the oracle."""
    torch.manual_seed(0)
    model = Model(Own(heads=heads, head_dim=32 // heads)).double().eval()
    attention = model.attention
    for layer in (attention.to_q, attention.to_k, attention.to_v):
        nn.init.zeros_(layer.bias)
    x = features()[0][0].double()
    group = groups_of(model)[0]
    mask = torch.ones(len(group.units), dtype=torch.float64, requires_grad=True)
    channels = torch.zeros(32, dtype=torch.long)
    for index, unit in enumerate(group.units):
        channels[list(unit)] = index
    hooks = [attention.to_v.register_forward_hook(lambda module, args, output: output * mask[channels])]
    if group.kind == "head_dim":
        hooks.append(attention.to_q.register_forward_hook(lambda module, args, output: output * mask[channels]))
    model(x).sin().sum().backward()
    for hook in hooks:
        hook.remove()
    found = Weights(group).change_of_readers()
    assert found is not None
    whole = torch.stack([found[list(unit)].sum() for unit in group.units])
    torch.testing.assert_close(whole, mask.grad)


def test_products_of_attention_shrink_with_its_heads() -> None:
    model = Model(Own(heads=4)).eval()
    long = (torch.randn(2, 200, 24),), {}
    half = {"attention": 2}
    group = groups_of(model)[0]
    told = Sizes(model, [group], long).left({group.name: half["attention"]})["macs"]
    narrow = Model(Own(heads=2)).eval()
    assert told == pytest.approx(count(narrow, *long).macs / count(model, *long).macs, abs=0.01)
