"""Groups that break a model are found among many, and the others are cut all the same."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from distill.errors import UserError
from distill.prune import PruneSettings, prune_channels
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
