"""What a block is worth: how much worse the model is without it, and in which order blocks go."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill.errors import UserError
from distill.prune.depth.blocks import removable_blocks
from distill.prune.depth.shallow import rank_blocks
from distill.prune.depth.skipped import Block, Skipped, skip_blocks


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(torch.relu(self.up(x)))


def deep(scales: tuple[float, ...]) -> nn.Module:
    """Blocks whose branches weigh as much as told."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), *(Residual() for _ in scales), nn.Linear(8, 3))
    for block, scale in zip([*model][1:-1], scales, strict=True):
        block.down.weight.data.mul_(scale)  # type: ignore[union-attr]
        block.down.bias.data.mul_(scale)  # type: ignore[union-attr]
    return model.eval()


ROWS = [((torch.randn(16, 6, generator=torch.Generator().manual_seed(seed)),), {}) for seed in range(3)]


def loss(model: nn.Module, batch: Any) -> Tensor:
    """Cross-entropy with the classes in turn."""
    assert not model.training
    return F.cross_entropy(model(*batch[0]), torch.arange(len(batch[0][0])) % 3)


def rise(model: nn.Module, gone: list[Block]) -> float:
    with torch.no_grad():
        shallow = skip_blocks(model, gone)
        return float(sum(loss(shallow, batch) - loss(model, batch) for batch in ROWS) / len(ROWS))


def test_damage_is_the_rise_of_the_loss() -> None:
    model = deep((0.0, 2.0)).train()
    blocks = removable_blocks(model, ROWS[0], lambda output: output)
    seen: list[tuple[str, int, int]] = []
    ranked = rank_blocks(model, blocks, ROWS, loss, remove=2, progress=lambda *event: seen.append(event))
    assert {removal.block.name for removal in ranked} == {"1", "2"}
    model.eval()
    assert ranked[0].damage == pytest.approx(min(rise(model, [block]) for block in blocks), abs=1e-6)
    assert ranked[1].damage == pytest.approx(rise(model, blocks), abs=1e-6)
    assert seen == [("ranking blocks", number, 3) for number in (1, 2, 3)]
    assert ranked == rank_blocks(model, blocks, ROWS, loss, remove=2)


def test_a_model_that_breaks_without_a_block_is_damaged_beyond_measure() -> None:
    model = deep((1.0, 1.0))
    blocks = removable_blocks(model, ROWS[0], lambda output: output)

    def broken(model: nn.Module, batch: Any) -> Tensor:
        return model(*batch[0]).mean() / (0 if isinstance(model[1], Skipped) else 1)

    ranked = rank_blocks(model, blocks, ROWS[:1], broken, remove=2)
    assert ranked[0].block.name == "2"
    assert ranked[1].damage == float("inf")


def test_blocks_are_ranked_with_the_earlier_ones_gone() -> None:
    model = deep((0.0, 2.0, 0.5, 0.1))
    blocks = removable_blocks(model, ROWS[0], lambda output: output)
    ranked = rank_blocks(model, blocks, ROWS, loss, remove=3)
    for number, removal in enumerate(ranked):
        before = [earlier.block for earlier in ranked[:number]]
        rises = {block.name: rise(model, [*before, block]) for block in blocks if block not in before}
        assert removal.block.name == min(rises, key=lambda name: rises[name])
        assert removal.damage == pytest.approx(rises[removal.block.name], abs=1e-6)


def test_a_bound_on_the_evaluations_is_kept() -> None:
    model = deep((0.0, 2.0, 0.5, 0.1, 0.3))
    blocks = removable_blocks(model, ROWS[0], lambda output: output)
    for bound, spent in ((7, 7), (9, 9), (200, 12)):
        seen: list[tuple[int, int]] = []
        ranked = rank_blocks(
            model, blocks, ROWS, loss, remove=3, max_evaluations=bound,
            progress=lambda _what, done, total, seen=seen: seen.append((done, total)),
        )  # fmt: skip
        assert seen[-1] == (spent, spent)
        assert ranked[0].damage == pytest.approx(min(rise(model, [block]) for block in blocks), abs=1e-6)
        assert len({removal.block.name for removal in ranked}) == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"remove": 3}, "remove=3"),
        ({"remove": 2, "max_evaluations": 2}, "need at least 3"),
        ({"remove": 1, "batches": []}, "no batch"),
        ({"remove": 1, "batches": [((torch.ones(2, 9),), {})]}, "does not run"),
        ({"remove": 1, "batches": [((torch.full((2, 6), float("nan")),), {})]}, "not finite"),
        ({"remove": 1, "loss": lambda model, batch: model(*batch[0])}, "scalar"),
    ],
)
def test_what_cannot_be_ranked_is_refused(options: dict[str, Any], message: str) -> None:
    model = deep((1.0, 0.5))
    blocks = removable_blocks(model, ROWS[0], lambda output: output)
    arguments = {"batches": ROWS, "loss": loss, **options}
    with pytest.raises(UserError, match=message):
        rank_blocks(model, blocks, **arguments)
