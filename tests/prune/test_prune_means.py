"""What a constant can stand in for: means of what layers read move into biases, and cost nothing by themselves."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill.prune import PruneRecord, PruneSettings, prune_channels
from distill.prune.graph.groups import ChannelGroup, Graph, prepare
from distill.prune.scores.evidence import Evidence
from distill.prune.scores.input_means import Means, with_constants


def groups_of(model: nn.Module, rows: Tensor) -> list[ChannelGroup]:
    return [group for group in Graph(prepare(model), ((rows[:2],), {}), lambda z: z).groups() if not group.is_output]


def far(model: nn.Module, rows: Tensor) -> Tensor:
    """A loss that is least where all answers are 0."""
    return model(rows).square().sum()  # type: ignore[no-any-return]


def means_of(model: nn.Module, batches: Sequence[Tensor]) -> Means:
    evidence = Evidence(batches, far, lambda z: z, PruneSettings(), None)
    return evidence.means(model, groups_of(model, batches[0]))


def evened(model: nn.Module, rows: Tensor, gone: dict[str, list[int]]) -> nn.Module:
    result = with_constants(model, groups_of(model, rows), gone, means_of(model, [rows]))
    assert result is not None
    return result


def pruned(
    model: nn.Module,
    batches: Sequence[Any],
    loss: Callable[[nn.Module, Any], Tensor],
    *,
    ignore: Sequence[str] = (),
    **settings: Any,
) -> tuple[nn.Module, PruneRecord]:
    return prune_channels(
        model,
        PruneSettings(round_to=1, **settings),
        example=((batches[0][:2],), {}),
        batches=batches,
        loss=loss,
        logits=lambda z: z,
        ignore=ignore,
    )


def like(taught: Tensor) -> Callable[[nn.Module, Tensor], Tensor]:
    return lambda model, rows: F.mse_loss(model(rows), taught.detach())


def plain_means(model: nn.Module, batches: Sequence[Tensor]) -> dict[str, Tensor]:
    """Return what each linear layer reads, averaged with equal weights."""
    found: dict[str, Tensor] = {}
    hooks = [
        layer.register_forward_pre_hook(lambda _, args, name=name: found.__setitem__(name, args[0].detach().mean(0)))
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear)
    ]
    model(torch.cat(list(batches)))
    for hook in hooks:
        hook.remove()
    return found


def test_the_mean_of_what_the_last_layer_reads_is_that_over_the_rows() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    batches = [torch.randn(500, 6) + 1, torch.randn(500, 6)]
    mean = means_of(model, batches)["2"][0]
    torch.testing.assert_close(mean, plain_means(model, batches)["2"], rtol=0.1, atol=0.05)


def test_rows_weigh_as_much_as_the_answers_depend_on_them() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.wide, self.last = nn.Linear(6, 8), nn.Linear(8, 3)

        def forward(self, rows: Tensor) -> Tensor:
            return self.last(self.wide(rows).relu()) * rows[:, :1]  # type: ignore[no-any-return]

    torch.manual_seed(0)
    model = Scaled().double().eval()
    rows = torch.randn(2, 6, dtype=torch.float64)
    rows[:, 0] = torch.tensor([1.0, 3.0])
    first, second = model.wide(rows).relu()
    torch.testing.assert_close(means_of(model, [rows])["last"][0].double(), (first + 9 * second) / 10)


def test_a_linear_layer_is_given_its_loss_exactly() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).double().eval()
    rows = torch.randn(64, 6, dtype=torch.float64)
    mean = means_of(model, [rows])["2"][0].double()
    even = evened(model, rows, {"0": [1, 5]})
    expected = model[2].bias + model[2].weight[:, [1, 5]] @ mean[[1, 5]]
    torch.testing.assert_close(even[2].bias, expected, rtol=1e-6, atol=1e-9)  # type: ignore[index]
    assert torch.equal(even[0].bias, model[0].bias)  # type: ignore[index]


@pytest.mark.parametrize(
    "reader",
    [
        nn.Conv2d(8, 5, 3, padding=1),
        nn.Conv2d(8, 5, 3, stride=2, padding=2, dilation=2),
        nn.Conv2d(8, 6, 3, padding=1, groups=2),
        nn.Conv2d(8, 5, 3, padding=1, padding_mode="circular"),
        nn.ConvTranspose2d(8, 5, 3, stride=2),
    ],
    ids=["padded", "dilated", "grouped", "circular", "transposed"],
)
def test_a_convolution_keeps_the_mean_of_its_outputs(reader: nn.Module) -> None:
    """Borders count as they are. The rows are one and the same, so that they weigh alike."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 8, 3), nn.ReLU(), reader).double().eval()
    rows = torch.randn(1, 2, 9, 9, dtype=torch.float64).expand(4, -1, -1, -1)
    gone = [1, 5]
    even = evened(model, rows, {"0": gone})
    held = model[1](model[0](rows)).index_fill(1, torch.tensor(gone), 0)
    now = even[2](held)  # type: ignore[index]
    torch.testing.assert_close(now.mean((2, 3)), model(rows).mean((2, 3)), rtol=1e-5, atol=1e-7)


def test_what_no_output_depends_on_does_not_move_a_mean() -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.wide, self.narrow, self.head = nn.Linear(6, 8), nn.Linear(8, 6), nn.Linear(6, 3)

        def forward(self, tokens: Tensor) -> Tensor:
            told = tokens[..., :1] > 0  # the rest is padding
            return self.head(torch.where(told, self.narrow(self.wide(tokens).relu()), 0).sum(1))  # type: ignore[no-any-return]

    torch.manual_seed(0)
    model = Masked().eval()
    tokens = torch.randn(16, 5, 6)
    other = torch.where(tokens[..., :1] > 0, tokens, tokens - 100 * torch.rand_like(tokens))
    means = [means_of(model, [given])["narrow"] for given in (tokens, other)]
    torch.testing.assert_close(*means)
    unknown = torch.cat([tokens[..., :1], torch.full((16, 5, 5), torch.nan)], 2)
    broken = torch.where(tokens[..., :1] > 0, tokens, unknown)
    assert "narrow" not in means_of(model, [broken])


def test_a_layer_without_a_bias_is_left_out() -> None:
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, bias=False), nn.BatchNorm2d(8),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3),
    ).eval()  # fmt: skip
    rows = torch.randn(4, 1, 12, 12)
    means = means_of(model, [rows])
    assert set(means) == {"6"}
    assert with_constants(model, groups_of(model, rows), {"0": [1]}, means) is None


def test_a_bias_that_several_layers_share_stays() -> None:
    model = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6))
    model[4].bias = model[2].bias
    assert means_of(model.eval(), [torch.randn(4, 6)]) == {}


def test_layers_that_are_called_in_other_ways_are_left_alone() -> None:
    class Keyword(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(6, 8), nn.Linear(8, 8)
            self.third, self.last = Doubled(8, 8), nn.Linear(8, 3)

        def forward(self, rows: Tensor) -> Tensor:
            hidden = self.third(self.second(input=self.first(rows).relu()).relu()).relu()
            return torch.stack([self.last(row) for row in hidden])

    class Doubled(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input) * 2

    rows = torch.randn(8, 6)
    model = Keyword().eval()
    assert means_of(model, [rows]) == {}
    narrow, _ = pruned(model, [rows], like(model(rows)), ratio=0.25)
    assert narrow(rows).shape == (8, 3)


def test_images_of_several_sizes_have_no_mean() -> None:
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)
    ).eval()
    batches = [torch.randn(4, 1, 9, 9), torch.randn(4, 1, 12, 12)]
    assert set(means_of(model, batches)) == {"5"}


def test_nothing_is_lost_with_channels_that_are_constant() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    with torch.no_grad():
        model[0].weight[:2] = 0
        model[0].bias[:2] = 50.0
        model[2].weight[:, :2] *= 0.001  # which leaves them worth least
    rows = torch.randn(64, 6)
    narrow, record = pruned(model, [rows], like(model(rows)), ratio=0.25)
    assert record.widths["0"] == (8, 6)
    torch.testing.assert_close(narrow(rows), model(rows), rtol=1e-4, atol=1e-4)
    assert not torch.equal(narrow[2].bias, model[2].bias)  # type: ignore[index]


def test_biases_move_only_where_the_loss_is_lower_then() -> None:
    """A loss may want what a mean brings not to be there."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    with torch.no_grad():
        model[2].weight.abs_()
        model[2].bias.zero_()
    rows = torch.randn(64, 6)
    for loss, moves in ((like(model(rows)), True), (far, False)):  # as it was; as small as can be
        narrow, _ = pruned(model, [rows], loss, ratio=0.5)
        assert bool((narrow[2].bias > 0).all()) == moves  # type: ignore[index]


def test_a_batch_of_one_row_has_no_statistics_and_is_no_obstacle() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)).eval()
    narrow, record = pruned(model, [torch.randn(4, 6), torch.randn(1, 6)], far, ratio=0.5)
    assert record.widths["0"] == (8, 4)
    assert narrow(torch.randn(2, 6)).shape == (2, 3)


def test_the_model_that_came_in_keeps_its_biases() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    before = copy.deepcopy(model.state_dict())
    pruned(model, [torch.randn(8, 6)], far, ratio=0.5)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_constant_before_a_batch_norm_changes_nothing_and_stays_out() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3, bias=False),
    ).eval()  # fmt: skip
    rows = torch.randn(64, 1, 6, 6)
    narrow, record = pruned(model, [rows], like(model(rows)), ratio=0.25, ignore=["2"])
    assert record.widths["0"] == (8, 6)
    assert torch.equal(narrow[2].bias, model[2].bias)  # type: ignore[index]


def test_the_loss_may_need_gradients_for_itself() -> None:
    def smooth(model: nn.Module, rows: Tensor) -> Tensor:
        rows = rows.clone().requires_grad_()
        answers = model(rows)
        (slope,) = torch.autograd.grad(answers.sum(), rows, create_graph=True)
        return answers.square().mean() + slope.square().mean()

    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    _, record = pruned(model, [torch.randn(8, 6)], smooth, ratio=0.5)
    assert record.widths["0"] == (8, 4)


def test_batches_are_read_once_for_each_step() -> None:
    class Shuffled:
        times = 0

        def __iter__(self) -> Iterator[Tensor]:
            self.times += 1
            for _ in range(3):
                yield torch.randn(8, 6)

    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3)).eval()
    source = Shuffled()
    prune_channels(
        model,
        PruneSettings(round_to=1, ratio=0.5, steps=2),
        example=((torch.randn(2, 6),), {}),
        batches=source,
        loss=far,
        logits=lambda z: z,
    )
    assert source.times == 2


def test_other_kinds_ask_no_data_and_move_no_bias() -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    for batches in ([], [torch.full((4, 6), torch.nan)], [torch.randn(4, 6)]):
        narrow, _ = prune_channels(
            model,
            PruneSettings(round_to=1, ratio=0.5, importance="group_norm"),
            example=((torch.randn(2, 6),), {}),
            batches=batches,
            loss=far,
            logits=lambda z: z,
        )
        assert torch.equal(narrow[2].bias, model[2].bias)  # type: ignore[index]


def test_nothing_keeps_watching() -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    narrow, _ = pruned(model, [torch.randn(8, 6)], far, ratio=0.5)
    assert not any(one._forward_hooks or one._forward_pre_hooks for one in (*model.modules(), *narrow.modules()))
