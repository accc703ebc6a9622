"""Groups that break a model are found among many, and the others are cut all the same."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from distill.errors import UserError
from distill.prune import PruneSettings, prune_channels
from distill.prune.graph import verify
from distill.prune.graph.cutting import BrokenError, cut
from distill.prune.graph.groups import Graph, prepare
from distill.prune.graph.verify import Checks, output_shapes
from distill.prune.modules import at_batch


class Fragile(nn.Module):
    """Eight hidden layers, of which forward knows the width of some by heart."""

    def __init__(self, fixed: tuple[int, ...]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(16, 16) for _ in range(8))
        self.head, self.fixed = nn.Linear(16, 3), fixed

    def forward(self, x: Tensor) -> Tensor:
        for number, layer in enumerate(self.layers):
            x = torch.relu(layer(x))
            if number in self.fixed:
                x = x.reshape(-1, 4, 4).transpose(1, 2).reshape(-1, 16)
        answer: Tensor = self.head(x)
        return answer


EXAMPLE = ((torch.randn(2, 16),), {})


def same(output: Tensor) -> Tensor:
    return output


@pytest.mark.parametrize("fixed", [(), (0,), (7,), (2, 5), (0, 1, 6), tuple(range(8))])
def test_those_to_blame_are_found(fixed: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    model = prepare(Fragile(fixed))
    checks = Checks(at_batch(EXAMPLE, 2), same, output_shapes(model, EXAMPLE, same))
    groups = [group for group in Graph(model, checks.example, same).groups() if not group.is_output]
    chosen = {group.name: group.units[0] + group.units[1] for group in groups}
    told: list[tuple[int, int]] = []
    if not fixed:
        assert cut(model, chosen, checks).layers[0].out_features == 14  # type: ignore[union-attr, index]
        return
    with pytest.raises(BrokenError) as caught:
        cut(model, chosen, checks, lambda what, done, total: told.append((done, total)))
    assert set(caught.value.culprits) == {f"layers.{number}" for number in fixed} & set(chosen)
    assert all(why for why in caught.value.culprits.values())
    assert told[-1][1] == len(chosen)
    assert [done for done, _ in told] == sorted(done for done, _ in told)


def test_a_model_with_them_is_pruned_around_them() -> None:
    torch.manual_seed(0)
    model, record = prune_channels(
        Fragile((2, 5)),
        PruneSettings(ratio=0.5, round_to=4, importance="l2"),
        example=EXAMPLE,
        batches=None,
        loss=None,
        logits=same,
    )
    widths = [record.widths[f"layers.{number}"][1] for number in range(8)]
    assert widths[2] == widths[5] == 16
    assert all(width < 16 for number, width in enumerate(widths) if number not in (2, 5))
    assert any("layers.2, layers.5" in warning or "layers.5, layers.2" in warning for warning in record.warnings)
    assert model(torch.randn(3, 16)).shape == (3, 3)


def test_a_mask_that_is_kept_forbids_cutting() -> None:
    from distill.prune.sparse.sparsify import sparsify
    from distill.prune.sparse.zeros import keep_zeros_

    model, _ = sparsify(Fragile(()), "2:4")
    keep_zeros_(model)
    with pytest.raises(UserError, match="prune first, then make it sparse"):
        prune_channels(model, PruneSettings(), example=EXAMPLE, batches=None, loss=None, logits=same)


class Jealous(Fragile):
    """Answers something else where all of some layers are narrower, and not where only some of them are."""

    def __init__(self, together: tuple[tuple[int, ...], ...]) -> None:
        super().__init__(())
        self.together = together

    def forward(self, x: Tensor) -> Tensor:
        answer = super().forward(x)
        for numbers in self.together:
            if all(self.layers[number].out_features < 16 for number in numbers):  # type: ignore[operator]
                answer = 2 * answer
        return answer


@pytest.mark.parametrize("together", [((0, 7),), ((6, 7),), ((1, 3, 6),), ((0, 4), (3, 5)), ((0, 7), (0, 3))])
def test_those_that_break_a_model_together_only_are_told_and_the_others_are_cut(
    together: tuple[tuple[int, ...], ...],
) -> None:
    torch.manual_seed(0)
    settings = PruneSettings(ratio=0.5, round_to=4, importance="l2")
    model, record = prune_channels(Jealous(together), settings, example=EXAMPLE, batches=None, loss=None, logits=same)
    whole = [number for number in range(8) if record.widths[f"layers.{number}"][1] == 16]
    assert all(set(numbers) & set(whole) for numbers in together)
    assert len(whole) <= len(together)
    said = "; ".join(record.warnings)
    for number in whole:
        assert f"not pruned: layers.{number}: logits does not follow" in said
        others = {other for numbers in together if number in numbers for other in numbers} - {number}
        assert any(f"where layers.{other} is narrowed, too" in said for other in others)
    assert model(torch.randn(3, 16)).shape == (3, 3)


class Noisy(Fragile):
    """Turns the rounding of a sum into a hundredth of the answer; ``table`` is a float32 tensor that nothing converts.

    With it the model cannot run in float64.
    """

    def __init__(self, table: bool, fixed: tuple[int, ...] = ()) -> None:
        super().__init__(fixed)
        self.layers = nn.ModuleList(nn.Linear(16 if number == 0 else 256, 256) for number in range(2))
        self.head = nn.Linear(256, 3)
        self.table = torch.eye(16) if table else None

    def forward(self, x: Tensor) -> Tensor:
        x = x if self.table is None else x @ self.table
        x = torch.relu(self.layers[0](x))
        if 0 in self.fixed:
            x = x.flip(1)
        answer: Tensor = self.head(torch.sin(3e5 * self.layers[1](x)))
        return answer


@pytest.mark.parametrize("table", [False, True])
def test_rounding_is_no_mistake_of_a_cut_and_a_mistake_is_no_rounding(
    table: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for fixed, number in (((), 0), ((0,), 0), ((), 1)):
        torch.manual_seed(0)
        model = prepare(Noisy(table, fixed))
        checks = Checks(at_batch(EXAMPLE, 2), same, output_shapes(model, EXAMPLE, same))
        chosen = {f"layers.{number}": range(0, 256, 2)}
        if fixed:
            with pytest.raises(BrokenError):
                cut(model, chosen, checks)
        else:
            assert cut(model, chosen, checks).layers[number].out_features == 128  # type: ignore[union-attr, index]
    # The control: in float32, and without the model's own noise, the sound cut of the first layer looks broken.
    model = prepare(Noisy(True))
    monkeypatch.setattr(verify, "_NOISES", 0)
    with pytest.raises(BrokenError):
        cut(model, {"layers.0": range(0, 256, 2)}, checks)


class DualPath(nn.Module):
    """Splits what it joined by a slice, adds to the first part and appends to the second, as DPN does."""

    def __init__(self, blocks: int = 4) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 24, 1)
        self.blocks = nn.ModuleList(nn.Conv2d(24 + 8 * number, 16, 1) for number in range(blocks))
        self.more = nn.ModuleList(nn.Conv2d(24 + 8 * number, 8, 1) for number in range(blocks))
        self.head = nn.Linear(24 + 8 * blocks, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for add, append in zip(self.blocks, self.more, strict=True):
            x = torch.cat((x[:, :16] + add(x), x[:, 16:], append(x)), dim=1)
        answer: Tensor = self.head(x.mean((2, 3)))
        return answer


def test_groups_beyond_a_slice_are_cut_together() -> None:
    """One cut must not move the slice that the next one is followed through."""
    torch.manual_seed(0)
    example = ((torch.randn(2, 3, 4, 4),), {})
    model = prepare(DualPath())
    checks = Checks(at_batch(example, 2), same, output_shapes(model, example, same))
    pruned = cut(model, {f"more.{number}": [1, 2, 6] for number in range(4)}, checks)
    assert [layer.out_channels for layer in pruned.more] == [5] * 4  # type: ignore[union-attr]
    assert pruned.head.in_features == model.head.in_features - 12  # type: ignore[union-attr, operator]
