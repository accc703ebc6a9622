from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import settings as limits
from hypothesis import strategies as st
from prune_nets import follows
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from distill.errors import UserError
from distill.export import export_onnx
from distill.prune.sparse.saliency import SALIENCIES
from distill.prune.sparse.sparsify import NO_FASTER, drop_smallest, first_and_last, keep_largest, sparsify, stored_bytes
from distill.prune.sparse.zeros import keep_zeros_, keeps_zeros, masks_of, release_
from distill.tasks.base import Task
from distill.training.loop import fit
from distill.training.settings import TrainSettings

CPU = torch.device("cpu")


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1, groups=8),
        nn.Conv2d(8, 12, 1), nn.ReLU(), nn.Flatten(), nn.Linear(9 * 12, 3),
    )  # fmt: skip


def image(rows: int = 4, seed: int = 0) -> Tensor:
    return torch.randn(rows, 1, 8, 8, generator=torch.Generator().manual_seed(seed))


def batches(count: int = 3) -> list[tuple[tuple[Tensor], dict[str, Any]]]:
    return [((image(seed=seed),), {}) for seed in range(count)]


def loss(model: nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(model(*batch[0]), torch.arange(4) % 3)


def zeros_in(model: nn.Module) -> dict[str, Tensor]:
    return {name: mask.logical_not() for name, mask in masks_of(model).items()}


# ------------------------------------------------------------------------------------------------------- choosing


@st.composite
def weights(draw: st.DrawFn, size: int) -> Tensor:
    shape = (draw(st.integers(1, 4)), size * draw(st.integers(1, 3)), *draw(st.sampled_from([(), (1, 1), (2, 3)])))
    values = st.sampled_from([-1.0, 0.0, 0.5, 1.0]) | st.floats(-10, 10, width=32)
    number = int(np.prod(shape))
    return torch.tensor(draw(st.lists(values, min_size=number, max_size=number))).reshape(shape)


@limits(max_examples=40, deadline=None)
@given(st.data(), st.sampled_from([(2, 4), (1, 4), (4, 8), (1, 2)]))
def test_every_group_keeps_its_largest(data: st.DataObject, pattern: tuple[int, int]) -> None:
    keep, size = pattern
    weight = data.draw(weights(size))
    mask = keep_largest(weight.abs(), keep, size)
    assert mask.shape == weight.shape
    assert torch.equal(mask, keep_largest(weight.abs(), keep, size))
    assert follows(f"{keep}:{size}", weight * mask)
    for row in range(weight.shape[0]):
        for start in range(0, weight.shape[1], size):
            kept = mask[row, start : start + size].reshape(size, -1)
            values = weight[row, start : start + size].abs().reshape(size, -1)
            for place in range(kept.shape[1]):
                inside, outside = values[kept[:, place], place], values[~kept[:, place], place]
                assert len(inside) == keep
                assert inside.min() >= outside.max()


@limits(max_examples=40, deadline=None)
@given(st.data(), st.integers(1, 3), st.floats(0.01, 0.99))
def test_a_share_is_met_to_the_weight_and_the_smallest_go(data: st.DataObject, number: int, share: float) -> None:
    scores = [data.draw(weights(2)).abs() for _ in range(number)]
    masks = drop_smallest(scores, share)
    flat, kept = (torch.cat([one.flatten() for one in many]) for many in (scores, masks))
    assert [mask.shape for mask in masks] == [score.shape for score in scores]
    assert int((~kept).sum()) == round(share * len(flat))
    if kept.any() and not kept.all():
        assert flat[~kept].max() <= flat[kept].min()


def test_of_equal_weights_the_same_go_each_time() -> None:
    assert keep_largest(torch.ones(1, 8), 2, 4).tolist() == [[True, True, False, False] * 2]
    assert drop_smallest([torch.ones(2, 2), torch.ones(2)], 0.5)[0].tolist() == [[False, False], [False, True]]


def test_2_to_4_lies_along_the_inputs_and_layers_that_cannot_are_named() -> None:
    model, record = sparsify(network(), "2:4")
    assert set(record.layers) == {"4.weight", "7.weight"}
    assert record.layers["4.weight"] == 0.5
    assert record.left == {
        "0.weight": "its 1 inputs are no multiple of 4",
        "3.weight": "its 1 inputs are no multiple of 4",
    }
    assert any("0.weight, 3.weight" in warning for warning in record.warnings)
    for name in record.layers:
        assert follows("2:4", model.get_parameter(name))
    assert not follows("2:4", model.get_parameter("0.weight"))
    assert (record.zeros, record.weights) == (210, 420)
    assert record.share_achieved == 0.5


@pytest.mark.parametrize("scope", ["global", "layer"])
def test_a_share_is_taken_of_all_weights_or_of_each(scope: Any) -> None:
    model, record = sparsify(network(), 0.6, scope=scope, ignore=["0"])
    assert record.zeros == pytest.approx(0.6 * record.weights, abs=3)
    shares = list(record.layers.values())
    assert (max(shares) - min(shares) < 0.02) == (scope == "layer")
    zeros = {name: float((weight == 0).float().mean()) for name, weight in model.named_parameters()}
    assert zeros["0.weight"] == 0
    assert {name: zeros[name] for name in record.layers} == pytest.approx(record.layers)


def test_the_model_that_came_in_is_unchanged() -> None:
    model = network().train()
    model[1].eval()
    model[4].weight.requires_grad_(False)
    before = copy.deepcopy(model)
    for importance in SALIENCIES:
        result, _ = sparsify(model, "2:4", importance=importance, batches=batches(), loss=loss)  # type: ignore[arg-type]
        assert [m.training for m in result.modules()] == [m.training for m in before.modules()]
        assert [p.requires_grad for p in result.parameters()] == [p.requires_grad for p in before.parameters()]
    pairs = zip(model.state_dict().values(), before.state_dict().values(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)
    assert not model._forward_pre_hooks
    assert all(parameter.grad is None for parameter in model.parameters())


def test_wanda_weighs_a_weight_by_the_input_that_it_reads() -> None:
    linear = nn.Linear(4, 2, bias=False)
    linear.weight.data = torch.tensor([[1.0, 2.0, 3.0, 4.0], [4.0, 3.0, 2.0, 1.0]])
    x = torch.tensor([[100.0, 100.0, 1.0, 0.1]])
    model, _ = sparsify(nn.Sequential(linear), "2:4", importance="wanda", batches=[((x,), {})])
    assert model[0].weight.tolist() == [[1, 2, 0, 0], [4, 3, 0, 0]]
    grouped = nn.Conv2d(8, 2, 1, groups=2, bias=False)
    nn.init.ones_(grouped.weight)
    channels = torch.tensor([1.0, 5, 5, 1, 5, 1, 1, 5]).reshape(1, 8, 1, 1)
    model, _ = sparsify(nn.Sequential(grouped), "2:4", importance="wanda", batches=[((channels,), {})])
    assert model[0].weight.flatten(1).tolist() == [[0, 1, 1, 0], [1, 0, 0, 1]]


def test_taylor_follows_the_loss() -> None:
    linear = nn.Linear(4, 1, bias=False)
    linear.weight.data = torch.tensor([[5.0, 0.5, 1.0, 4.0]])
    x = torch.tensor([[0.0, 3.0, 3.0, 0.0]])  # nothing depends on the large ones
    model, record = sparsify(
        nn.Sequential(linear), "2:4", importance="taylor", batches=[x, -x], loss=lambda model, batch: model(batch).sum()
    )
    assert model[0].weight.tolist() == [[0, 0.5, 1, 0]]
    assert record.importance == "taylor"


def test_attention_has_sparse_projections() -> None:
    torch.manual_seed(0)
    model, record = sparsify(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), "2:4")
    assert set(record.layers) == {
        "self_attn.in_proj_weight", "self_attn.out_proj.weight", "linear1.weight", "linear2.weight",
    }  # fmt: skip
    assert follows("2:4", model.self_attn.in_proj_weight)


def test_first_and_last_layer_can_be_named() -> None:
    model = network()
    names = first_and_last(model.train(), ((image(),), {}))
    assert names == ("0", "7")
    assert model.training
    assert sparsify(model, 0.5, ignore=names)[1].left == {"0.weight": "ignored", "7.weight": "ignored"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pattern": "4:2"}, "pattern='4:2'"),
        ({"pattern": 1.5}, "share of zeros"),
        ({"pattern": "3"}, "pattern='3'"),
        ({"ignore": ["head"]}, "no module 'head'"),
        ({"importance": "wanda"}, "needs batches"),
        ({"importance": "taylor", "batches": [1]}, "needs a loss"),
        ({"importance": "wanda", "pattern": 0.5}, "scope='layer'"),
        ({"importance": "best"}, "must be one of"),
        ({"importance": "wanda", "batches": [((torch.ones(2, 9),), {})]}, "does not run"),
        ({"pattern": "7:16"}, "no multiple of 16"),
    ],
)
def test_what_cannot_be_used_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        sparsify(network(), **options)


def test_shared_and_computed_weights_and_numbers_that_are_none_are_left() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8))
    model[1].weight = model[0].weight
    nn.utils.parametrizations.weight_norm(model[2])
    _, record = sparsify(model, "2:4")
    assert set(record.layers) == {"3.weight"}
    assert "shared" in record.left["0.weight"]
    assert "parametrization" in record.left["2.weight"]
    broken = nn.Sequential(nn.Linear(4, 4))
    broken[0].weight.data[0, 0] = float("nan")
    with pytest.raises(UserError, match="finite"):
        sparsify(broken, 0.5)


# -------------------------------------------------------------------------------------------------------- keeping


def optimizers(model: nn.Module, kind: str) -> torch.optim.Optimizer:
    if kind == "sgd":
        return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01, nesterov=True)
    return torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1)


def step(model: nn.Module, optimizer: torch.optim.Optimizer, seed: int = 0) -> None:
    optimizer.zero_grad()
    loss(model, ((image(seed=seed),), {})).backward()
    optimizer.step()


@pytest.mark.parametrize("copied", [False, True])
@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_zeros_survive_training_to_the_last_step(kind: str, copied: bool) -> None:
    model, _ = sparsify(network(), "2:4")
    expected = zeros_in(model)
    start = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    model = copy.deepcopy(model).train() if copied else model.train()
    optimizer = optimizers(model, kind)
    for number in range(20):
        step(model, optimizer, number)
        assert all(bool((model.get_parameter(name)[zero] == 0).all()) for name, zero in expected.items())
    assert all(torch.equal(zero, zeros_in(model)[name]) for name, zero in expected.items())
    assert all(not torch.equal(start[name], parameter) for name, parameter in model.named_parameters())


def test_a_mask_that_comes_in_the_middle_of_training_holds_against_momentum() -> None:
    model = network().train()
    optimizer = optimizers(model, "sgd")
    step(model, optimizer)
    keep_zeros_(model, masks_of(sparsify(model, "2:4")[0]))
    zeros = zeros_in(model)
    step(model, optimizer)
    state = model.state_dict()
    assert all(bool((state[name][zero] == 0).all()) for name, zero in zeros.items())


def test_averages_loaded_weights_and_gradient_norms_see_the_zeros() -> None:
    model, _ = sparsify(network(), "2:4")
    zeros = zeros_in(model)
    average = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9))
    optimizer = optimizers(model, "sgd")
    step(model, optimizer)
    average.update_parameters(model)
    assert all(bool((average.module.get_parameter(name)[zero] == 0).all()) for name, zero in zeros.items())
    assert all(bool((model.get_parameter(name).grad[zero] == 0).all()) for name, zero in zeros.items())
    model.load_state_dict(network(seed=1).state_dict())
    model(image())
    assert zeros_in(model).keys() == zeros.keys()
    with torch.inference_mode():
        model(image())


def test_two_forwards_before_one_backward() -> None:
    model, _ = sparsify(network(), "2:4")
    model.eval()
    (model(image()).sum() + model(image(seed=1)).sum()).backward()
    together = {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}
    model.zero_grad()
    for seed in (0, 1):
        model(image(seed=seed)).sum().backward()
    assert together.keys() >= zeros_in(model).keys()
    for name, gradient in together.items():
        torch.testing.assert_close(gradient, model.get_parameter(name).grad)
    assert all(bool((together[name][zero] == 0).all()) for name, zero in zeros_in(model).items())


def test_fit_keeps_zeros_and_names_also_from_a_checkpoint(tiny_task: Task, tmp_path: Path) -> None:
    model, _ = sparsify(network(), "2:4", ignore=["7"])
    for optimizer in ("sgd", "adamw"):
        settings = TrainSettings(epochs=2, batch_size=32, learning_rate=0.02, optimizer=optimizer)  # type: ignore[arg-type]
        trained, _ = fit(model, tiny_task, settings, seed=0, device=CPU)
        assert all(torch.equal(zero, zeros_in(trained)[name]) for name, zero in zeros_in(model).items())
        assert not torch.equal(trained[4].weight, model[4].weight)
    assert list(trained.state_dict()) == list(network().state_dict())
    save_file(trained.state_dict(), tmp_path / "model.safetensors")

    fresh = network(seed=3)
    fresh.load_state_dict(load_file(tmp_path / "model.safetensors"))
    keep_zeros_(fresh)
    again, _ = fit(fresh, tiny_task, settings, seed=1, device=CPU)
    assert follows("2:4", again[4].weight)
    assert not follows("2:4", again[7].weight)


def test_fit_in_half_precision_keeps_zeros(tiny_task: Task) -> None:
    model, _ = sparsify(network(), "2:4")
    trained, record = fit(
        model, tiny_task, TrainSettings(epochs=1, batch_size=64, precision="bf16"), seed=0, device=CPU
    )
    assert record.precision == "bf16"
    assert all(torch.equal(zero, zeros_in(trained)[name]) for name, zero in zeros_in(model).items())


def test_released_weights_train_again() -> None:
    model, _ = sparsify(network(), "2:4")
    assert keeps_zeros(copy.deepcopy(model))
    assert not keeps_zeros(release_(model).train())
    step(model, optimizers(model, "sgd"))
    assert not follows("2:4", model[4].weight)


def test_the_keeper_travels_with_a_pickle() -> None:
    model, _ = sparsify(network(), "2:4")
    model(image())
    twin = pickle.loads(pickle.dumps(model))
    step(twin, optimizers(twin, "sgd"))
    assert follows("2:4", twin[4].weight)


def test_masks_that_do_not_fit_and_models_without_zeros_are_refused() -> None:
    with pytest.raises(UserError, match="no zeros"):
        keep_zeros_(network())
    with pytest.raises(UserError, match=r"4\.weight"):
        keep_zeros_(network(), {"4.weight": torch.ones(3, dtype=torch.bool)})
    model, _ = sparsify(network(), "2:4")
    model[7] = nn.Linear(9 * 12, 5)
    with pytest.raises(UserError, match="sparsify after layers change"):
        model(image())


# --------------------------------------------------------------------------------------------------------- shipping


@pytest.mark.filterwarnings("ignore")
def test_the_exported_graph_has_the_zeros() -> None:
    model, _ = sparsify(network(), "2:4", ignore=["0"])
    proto = export_onnx(model, args=(image(),), input_names=["x"])
    arrays = [onnx.numpy_helper.to_array(one) for one in proto.graph.initializer]
    convolution = next(torch.tensor(a) for a in arrays if a.shape == (12, 8, 1, 1))
    linear = next(torch.tensor(a if a.shape[0] == 3 else a.T) for a in arrays if set(a.shape) == {3, 108})
    assert follows("2:4", convolution)
    assert follows("2:4", linear)
    assert torch.equal(linear, model[7].weight)


def test_the_record_tells_what_zeros_buy_and_what_not() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 64))
    sparse, record = sparsify(model, 0.8)
    assert record.stored_bytes == stored_bytes(model)[0] == 4 * sum(p.numel() for p in model.parameters())
    assert record.zipped_bytes_before > 0.85 * record.stored_bytes
    assert record.zipped_bytes_after < 0.4 * record.zipped_bytes_before
    assert stored_bytes(sparse)[1] == record.zipped_bytes_after
    assert NO_FASTER in record.warnings
