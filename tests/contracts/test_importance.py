"""The checks that every importance kind must pass."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any, get_args

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill.errors import UserError
from distill.prune import IMPORTANCES, PruneRecord, PruneSettings, count, prune_channels
from distill.prune.graph.groups import ChannelGroup, Graph
from distill.prune.scores.evidence import Evidence
from distill.prune.scores.importance import ImportanceName
from distill.prune.scores.weights import Weights

KINDS = list(IMPORTANCES)
Batch = tuple[Tensor, Tensor]


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def network() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 16, 3, padding=1, groups=16), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 24, 1), nn.BatchNorm2d(24), nn.ReLU(), nn.Dropout(0.3),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 4),
    )  # fmt: skip


def data(count: int = 4) -> list[Batch]:
    generator = torch.Generator().manual_seed(5)
    return [
        (torch.randn(8, 1, 6, 6, generator=generator), torch.randint(4, (8,), generator=generator))
        for _ in range(count)
    ]


def loss(model: nn.Module, batch: Batch) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def prune(kind: str, model: nn.Module | None = None, **changes: Any) -> tuple[nn.Module, PruneRecord]:
    arguments = {"batches": data(), "loss": loss, "seed": 0} | {
        key: changes.pop(key) for key in ("batches", "loss", "seed") if key in changes
    }
    return prune_channels(
        network() if model is None else model,
        PruneSettings(**{"importance": kind, "round_to": 4, "ratio": 0.5, **changes}),
        example=((torch.zeros(2, 1, 6, 6).normal_(generator=torch.Generator().manual_seed(1)),), {}),
        logits=lambda output: output,
        **arguments,
    )


def test_the_settings_offer_exactly_the_kinds_there_are() -> None:
    assert set(get_args(ImportanceName)) == set(KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_it_cuts_what_was_asked_and_leaves_the_model_alone(kind: str) -> None:
    model = network().train()
    before = copy.deepcopy(model.state_dict())
    result, record = prune(kind, model)
    assert record.importance == kind
    assert record.ratio_achieved == pytest.approx(0.5, abs=0.11)
    assert record.macs_after < record.macs_before
    assert record.widths["12"] == (4, 4)
    assert result[0].out_channels == result[3].groups == result[1].num_features
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in [*model.parameters(), *result.parameters()])


@pytest.mark.parametrize("kind", KINDS)
def test_equal_seed_equal_result(kind: str) -> None:
    one, first = prune(kind, seed=4)
    torch.manual_seed(99)
    other, second = prune(kind, seed=4)
    assert first == second
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_batch_norm_statistics_are_those_of_the_kept_channels(kind: str) -> None:
    model = network()
    for batch, _ in data():
        model.train()(batch)
    result, _ = prune(kind, model)
    for old, new in zip(model, result, strict=True):
        if isinstance(old, nn.BatchNorm2d):
            kept = [index for index, mean in enumerate(old.running_mean) if mean in new.running_mean]
            assert torch.equal(old.running_mean[kept], new.running_mean)
            assert torch.equal(old.running_var[kept], new.running_var)
            assert torch.equal(old.num_batches_tracked, new.num_batches_tracked)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "random"])
def test_dead_channels_go_first(kind: str) -> None:
    model = network().eval()
    dead = [1, 4, 6, 7, 9, 13, 14, 15]
    with torch.no_grad():
        for layer in (0, 1, 3, 4):
            model[layer].weight[dead] = 0
            model[layer].bias[dead] = 0
        model[6].weight[:, dead] = 0
    expected = model(data()[0][0])
    result, record = prune(kind, model, global_=False)
    assert record.widths["0"] == (16, 8)
    alive = [index for index in range(16) if index not in dead]
    assert torch.equal(result[0].weight, model[0].weight[alive])
    half = nn.Sequential(*list(result)[:6])
    whole = nn.Sequential(*list(model)[:6])
    torch.testing.assert_close(half.eval()(data()[0][0]), whole(data()[0][0])[:, alive])
    assert expected.shape == result(data()[0][0]).shape


@pytest.mark.parametrize("kind", KINDS)
def test_steps_and_batches_from_an_iterator(kind: str) -> None:
    def stream() -> Iterator[Batch]:
        yield from data(6)

    _, record = prune(kind, steps=3, batches=stream())
    assert record.ratio_achieved == pytest.approx(0.5, abs=0.11)


def test_random_follows_its_seed() -> None:
    masks = {tuple(prune("random", seed=seed)[0][0].weight.flatten().tolist()) for seed in range(4)}
    assert len(masks) > 1


def test_taylor_is_the_squared_first_order_change_of_each_batch_added_up() -> None:
    model = network().eval()
    reference = copy.deepcopy(model).double()

    def change(parameter: Tensor, axis: int) -> Tensor:
        return (parameter * parameter.grad).transpose(0, axis).flatten(1).sum(1)

    score = torch.zeros(reference[6].weight.shape[0], dtype=torch.float64)
    for image, label in data():
        reference.zero_grad()
        F.cross_entropy(reference(image.double()), label).backward()
        norm = reference[7].weight * reference[7].weight.grad
        score += (change(reference[6].weight, 0) + norm + change(reference[12].weight, 1)).detach().square()
    kept = sorted(score.argsort(descending=True)[:12].tolist())
    result, _ = prune("taylor", model, global_=False)
    assert torch.equal(result[6].bias, model[6].bias[kept])


def scored(model: nn.Module, sample: Tensor, batches: list[Batch]) -> dict[str, Tensor]:
    """Return what gauss_newton says about each group, averaged over the batches."""
    settings = PruneSettings(batches=len(batches))
    graph = Graph(model, ((sample,), {}), lambda output: output)
    groups = [group for group in graph.groups() if not group.is_output]
    found = Evidence(batches, loss, lambda output: output, settings, None).gathered(
        model, groups, IMPORTANCES["gauss_newton"]
    )
    return {name: value / len(batches) for name, value in found.items()}


def test_gauss_newton_is_what_the_logits_lose_with_the_channel() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 4)).eval()
    rows = torch.randn(32, 5)
    found = scored(model, rows[:2], [(rows, torch.zeros(32, dtype=torch.long))] * 4000)
    # The logits are linear in the channels of the last hidden layer, so the first order is all there is.
    activations = model[1](model[0](rows)).double()
    change = activations.T[:, :, None] * model[2].weight.double().T[:, None, :]  # [channels, rows, classes]
    change -= change.mean(2, keepdim=True)  # what all logits gain alike changes no answer
    exact = change.square().sum(2).mean(1).detach()
    torch.testing.assert_close(found["0"], exact, rtol=0.1, atol=1e-3 * float(exact.max()))


def test_gauss_newton_squares_what_goes_together_as_one() -> None:
    group = ChannelGroup("0", members=(), units=((0, 1), (2, 3)), is_output=False, pattern="", unprunable=None)
    change = torch.tensor([1.0, -1.0, 1.0, 1.0], dtype=torch.float64)
    assert Weights(group).squared_by_unit(change).tolist() == [0.0, 0.0, 2.0, 2.0]


def test_gauss_newton_takes_from_any_layer_what_no_answer_needs() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4),
    ).eval()  # fmt: skip
    with torch.no_grad():
        model[2].weight[:, ::2] = 0  # nothing reads every second channel of the first layer
        model[2].bias.fill_(1)  # all others speak
        model[6].weight.abs_()
    dead = count(nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 16, 3, padding=1), *model[3:]),
                 (torch.zeros(2, 1, 6, 6),), {}).macs  # fmt: skip
    share = dead / count(model, (torch.zeros(2, 1, 6, 6),), {}).macs
    images = data()[0][0]
    result, record = prune("gauss_newton", model, ratio=None, macs=share, round_to=2)
    assert record.widths == {"0": (16, 8), "2": (16, 16), "6": (32, 32), "8": (4, 4)}
    torch.testing.assert_close(result(images), model(images))


def test_gauss_newton_needs_the_model_in_the_loss() -> None:
    with pytest.raises(UserError, match=r"did not call the model.*taylor"):
        prune("gauss_newton", loss=lambda model, batch: next(model.parameters()).sum())


def test_a_mask_of_minus_infinity_among_the_logits_is_no_obstacle() -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = network()

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x).masked_fill(torch.tensor([False, False, True, False]), -torch.inf)

    free = [(image, label.clamp(max=1)) for image, label in data()]
    _, record = prune("gauss_newton", Masked(), batches=free)
    assert record.ratio_achieved == pytest.approx(0.5, abs=0.11)


def test_taylor_reads_no_more_batches_than_it_may() -> None:
    read = []

    def stream() -> Iterator[Batch]:
        for batch in data(10):
            read.append(batch)
            yield batch

    prune("taylor", batches=stream())
    assert len(read) == 10
    read.clear()
    prune_channels(
        network(),
        PruneSettings(batches=3),
        example=((torch.randn(2, 1, 6, 6),), {}),
        batches=stream(),
        loss=loss,
        logits=lambda output: output,
    )
    assert len(read) == 3


def test_taylor_without_data_is_refused_unless_the_user_allowed_a_stand_in() -> None:
    for missing in ({"batches": None}, {"loss": None}):
        with pytest.raises(UserError, match=r"prune\.without_batches"):
            prune("taylor", **missing)
        _, record = prune("taylor", without_batches="group_norm", **missing)
        assert record.importance == "group_norm"
        assert any("group_norm" in warning for warning in record.warnings)
    with pytest.raises(UserError, match="no batch"):
        prune("taylor", batches=[])


def test_a_loss_that_is_no_number_is_refused() -> None:
    with pytest.raises(UserError, match="loss of batch 0 is nan"):
        prune("taylor", loss=lambda model, batch: loss(model, batch) * float("nan"))
    with pytest.raises(UserError, match="scalar"):
        prune("taylor", loss=lambda model, batch: model(batch[0]))


def test_layers_that_a_kind_says_nothing_about_stay_with_a_warning() -> None:
    model = nn.Sequential(nn.Linear(36, 32), nn.ReLU(), nn.Linear(32, 32), nn.BatchNorm1d(32), nn.Linear(32, 4))
    _, record = prune_channels(
        model,
        PruneSettings(importance="bn_scale"),
        example=((torch.randn(2, 36),), {}),
        batches=None,
        loss=None,
        logits=lambda output: output,
    )
    assert record.widths["0"] == (32, 32)
    assert record.widths["2"][1] < 32
    assert any("not pruned: 0: importance 'bn_scale'" in warning for warning in record.warnings)
