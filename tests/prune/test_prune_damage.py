"""What a block is worth: how much worse the model is without it, and in which order blocks go."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill.errors import UserError
from distill.prune.depth.blocks import removable_blocks
from distill.prune.depth.damage import block_importance, divergence, rank_blocks
from distill.prune.depth.skipped import Skipped, skip_blocks


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


def test_damage_is_the_divergence_of_the_answers() -> None:
    model = deep((0.0, 2.0, 0.5))
    blocks = removable_blocks(model, ROWS[0], lambda output: output)
    damage = block_importance(model, blocks, iter(ROWS), logits=lambda output: output)
    assert damage["1"] == 0
    assert damage["2"] > damage["3"] > 0
    with torch.no_grad():
        x = torch.cat([args[0] for args, _ in ROWS])
        log_p = model(x).double().log_softmax(1)
        log_q = skip_blocks(model, [blocks[1]])(x).double().log_softmax(1)
    assert damage["2"] == pytest.approx(float((log_p.exp() * (log_p - log_q)).sum(1).mean()), rel=1e-6)
    assert damage == block_importance(model, blocks, ROWS, logits=lambda output: output)


def test_damage_by_the_rise_of_a_loss() -> None:
    model = deep((0.0, 2.0))
    blocks = removable_blocks(model, ROWS[0], lambda output: output)
    batches = [(args[0], torch.arange(16) % 3) for args, _ in ROWS]

    def loss(model: nn.Module, batch: Any) -> Tensor:
        assert not model.training
        return F.cross_entropy(model(batch[0]), batch[1])

    seen: list[tuple[str, int, int]] = []
    damage = block_importance(model, blocks, batches, loss=loss, limit=2, progress=lambda *event: seen.append(event))
    with torch.no_grad():
        rise = [loss(skip_blocks(model, [blocks[1]]), batch) - loss(model, batch) for batch in batches[:2]]
    assert damage == {"1": 0, "2": pytest.approx(float(sum(rise) / 2), abs=1e-6)}
    assert seen == [("block importance", 1, 2), ("block importance", 2, 2)]


def test_a_model_that_breaks_without_a_block_is_damaged_beyond_measure() -> None:
    model = deep((1.0, 1.0))
    blocks = removable_blocks(model, ROWS[0], lambda output: output)

    def loss(model: nn.Module, batch: Any) -> Tensor:
        return model(batch).mean() / (0 if isinstance(model[1], Skipped) else 1)

    assert block_importance(model, blocks, [ROWS[0][0][0]], loss=loss)["1"] == float("inf")


def test_blocks_are_ranked_with_the_earlier_ones_gone() -> None:
    model = deep((0.0, 2.0, 0.5, 0.1))
    blocks = removable_blocks(model, ROWS[0], lambda output: output)
    ranked = rank_blocks(model, blocks, ROWS, remove=3, logits=lambda output: output)
    assert [removal.block.name for removal in ranked] == ["1", "4", "3"]
    for number, removal in enumerate(ranked):
        gone = skip_blocks(model, [one.block for one in ranked[: number + 1]])
        with torch.no_grad():
            pairs = [(model(*args), gone(*args)) for args, _ in ROWS]
        expected = torch.cat([divergence(p.double(), q.double()) for p, q in pairs]).mean()
        assert removal.damage == pytest.approx(float(expected), rel=1e-6)


def test_a_bound_on_the_evaluations_is_kept() -> None:
    model = deep((0.0, 2.0, 0.5, 0.1, 0.3))
    blocks = removable_blocks(model, ROWS[0], lambda output: output)
    for bound, spent in ((7, 7), (9, 9), (200, 12)):
        seen: list[tuple[int, int]] = []
        ranked = rank_blocks(
            model, blocks, ROWS, remove=3, logits=lambda output: output, max_evaluations=bound,
            progress=lambda _what, done, total, seen=seen: seen.append((done, total)),
        )  # fmt: skip
        assert seen[-1] == (spent, spent)
        assert ranked[0].block.name == "1"
        assert len({removal.block.name for removal in ranked}) == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"remove": 3}, "remove=3"),
        ({"remove": 2, "max_evaluations": 2}, "need at least 3"),
        ({"remove": 1, "logits": None}, "needs the logits"),
        ({"remove": 1, "batches": []}, "no batch"),
        ({"remove": 1, "batches": [((torch.ones(2, 9),), {})]}, "does not run"),
        ({"remove": 1, "batches": [((torch.full((2, 6), float("nan")),), {})]}, "not finite"),
        ({"remove": 1, "loss": lambda model, batch: model(*batch[0])}, "scalar"),
    ],
)
def test_what_cannot_be_ranked_is_refused(options: dict[str, Any], message: str) -> None:
    model = deep((1.0, 0.5))
    blocks = removable_blocks(model, ROWS[0], lambda output: output)
    given = {"batches": ROWS, "logits": lambda output: output, **options}
    with pytest.raises(UserError, match=message):
        rank_blocks(model, blocks, given.pop("batches"), **given)


def test_divergence_of_dense_and_of_single_logits() -> None:
    generator = torch.Generator().manual_seed(0)
    p, q = torch.randn(2, 4, 3, generator=generator), torch.randn(2, 4, 3, generator=generator)
    tokens = divergence(p, q)
    assert tokens.shape == (2, 4)
    pixels = divergence(p.movedim(2, 1)[..., None], q.movedim(2, 1)[..., None])
    torch.testing.assert_close(pixels[..., 0], tokens)
    both = [torch.stack([one, torch.zeros_like(one)], 1) for one in (p[:, 0, 0], q[:, 0, 0])]
    torch.testing.assert_close(divergence(p[:, 0, :1], q[:, 0, :1]), divergence(*both))
