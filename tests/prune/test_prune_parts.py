from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import settings as limits
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError
from torch import Tensor, nn

from distill.errors import UserError
from distill.models.resnet import ResNet
from distill.prune import PruneSettings, count, recalibrate
from distill.prune.widths.selection import Candidate, choose, choose_until

# ---------------------------------------------------------------------------------------------------- selection


@st.composite
def candidates(draw: st.DrawFn) -> list[Candidate]:
    result = []
    for index in range(draw(st.integers(1, 5))):
        scores = draw(
            st.lists(st.sampled_from([0.1, 0.3, 0.5, 1.0, 1.7, 1e9]) | st.floats(0, 10), min_size=1, max_size=40)
        )
        scope = draw(st.sampled_from(["a", "b"]))
        result.append(Candidate(f"c{index}", scope, tuple(scores), draw(st.sampled_from([1, 1, 2, 6])), len(scores)))
    return result


@limits(max_examples=80, deadline=None)
@given(candidates(), st.sampled_from([1, 2, 4, 8, 16]), st.floats(0, 0.95), st.floats(0, 0.94), st.floats(0, 0.94))
def test_selection_keeps_its_promises(
    given_candidates: list[Candidate], round_to: int, max_ratio: float, one: float, other: float
) -> None:
    low, high = sorted((one, other))
    fewer = choose(given_candidates, ratio=low, round_to=round_to, max_ratio=max_ratio)
    more = choose(given_candidates, ratio=high, round_to=round_to, max_ratio=max_ratio)
    for candidate in given_candidates:
        gone = more.get(candidate.name, ())
        assert set(fewer.get(candidate.name, ())) <= set(gone)  # a larger ratio removes a superset
        assert len(set(gone)) == len(gone)
        left = len(candidate.scores) - len(gone)
        assert left >= 1
        if gone:
            assert left * candidate.unit % round_to == 0
            assert left >= len(candidate.scores) * (1 - max_ratio) - 1e-6
            kept = [s for i, s in enumerate(candidate.scores) if i not in gone]
            assert max(candidate.scores[i] for i in gone) <= min(kept)  # the cheapest go
    for scope in ("a", "b"):
        members = [c for c in given_candidates if c.scope == scope]
        total = sum(len(c.scores) * c.unit for c in members)
        removed = sum(len(more.get(c.name, ())) * c.unit for c in members)
        largest = max((c.unit * round_to for c in members), default=0)
        assert removed <= high * total + largest / 2 + 1e-6  # not much more than asked


def test_a_scope_gives_up_its_cheapest_channels_wherever_they_lie() -> None:
    cheap = Candidate("cheap", "s", (0.1,) * 8, 1, 8)
    dear = Candidate("dear", "s", (1.0,) * 8, 1, 8)
    chosen = choose([dear, cheap], ratio=0.25, round_to=2, max_ratio=0.7)
    assert {name: len(units) for name, units in chosen.items()} == {"cheap": 4}


# ---------------------------------------------------------------------------------------------------- settings


def test_scopes_that_cross_a_share_together_give_way_one_by_one() -> None:
    alike = [Candidate(name=name, scope=name, scores=(1.0,) * 8, unit=1, initial=8) for name in "ab"]

    def left(units: Mapping[str, tuple[int, ...]]) -> float:
        return 1 - sum(map(len, units.values())) / 16

    chosen = choose_until(alike, goal=0.75, left=left, round_to=4, max_ratio=0.7)
    assert {name: len(units) for name, units in chosen.items()} in ({"a": 4}, {"b": 4})


def test_settings_refuse_what_is_out_of_bounds_all_at_once() -> None:
    with pytest.raises(ValidationError) as caught:
        TypeAdapter(PruneSettings).validate_python({"ratio": 1.2, "steps": 0, "importance": "best", "rounds": 3})
    assert {error["loc"][0] for error in caught.value.errors()} == {"ratio", "steps", "importance", "rounds"}
    with pytest.raises(ValidationError, match="above max_ratio"):
        PruneSettings(ratio=0.8)


def test_every_setting_is_described_in_the_schema() -> None:
    schema = TypeAdapter(PruneSettings).json_schema()
    assert all("description" in field for field in schema["properties"].values())
    assert schema["additionalProperties"] is False


def test_settings_import_no_torch() -> None:
    code = "import sys, distill.prune; from distill.prune.settings import PruneSettings; print('torch' in sys.modules)"
    root = Path(__file__).parents[2]
    assert (
        subprocess.run(
            [sys.executable, "-c", code], cwd=root, check=True, capture_output=True, text=True
        ).stdout.strip()
        == "False"
    )


# ---------------------------------------------------------------------------------------------------- counting


def resnet20_macs_by_hand() -> int:
    total = 28 * 28 * 9 * 1 * 16  # the stem
    total += 6 * 28 * 28 * 9 * 16 * 16  # stage 1: three blocks of two convolutions
    for before, after, side in ((16, 32, 14), (32, 64, 7)):
        total += side * side * 9 * before * after  # the strided convolution
        total += 5 * side * side * 9 * after * after
        total += side * side * before * after  # the shortcut
    return total + 64 * 10


def test_resnet20_at_28_pixels() -> None:
    counts = count(ResNet(channels=1), (torch.randn(4, 1, 28, 28),), {})
    assert counts.macs == resnet20_macs_by_hand()
    assert counts.macs == pytest.approx(31e6, rel=0.01)
    assert counts.parameters == 272_186


def test_grouped_and_transposed_convolutions_and_linear_layers_on_sequences() -> None:
    image = torch.randn(2, 8, 6, 6)
    assert count(nn.Conv2d(8, 8, 3, groups=8, padding=1), (image,), {}).macs == 36 * 8 * 9
    assert count(nn.Conv2d(8, 16, 3, groups=4, padding=1), (image,), {}).macs == 36 * 16 * 2 * 9
    assert count(nn.ConvTranspose2d(8, 4, 2, stride=2), (image,), {}).macs == 36 * 8 * 4 * 4
    assert count(nn.Linear(5, 7), (torch.randn(3, 11, 5),), {}).macs == 11 * 5 * 7


class _Attention(nn.Module):
    def forward(self, q: Tensor, *, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v)


def test_attention_and_encoder_layers_are_counted_though_the_cpu_fuses_them() -> None:
    heads = torch.randn(2, 4, 10, 8)
    products = 2 * 4 * 10 * 10 * 8
    assert count(_Attention(), (heads,), {"k": heads, "v": heads}).macs == products
    layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
    projections = 10 * (3 * 32 * 32 + 32 * 32 + 2 * 32 * 64)
    assert count(layer, (torch.randn(2, 10, 32),), {}).macs == projections + products
    lstm = nn.LSTM(6, 16, batch_first=True)
    assert count(lstm, (torch.randn(2, 5, 6),), {}).macs == 5 * 4 * 16 * (6 + 16)
    assert torch.backends.mkldnn.enabled
    assert torch.backends.mha.get_fastpath_enabled()


def test_counting_leaves_modes_alone_and_says_when_the_model_does_not_run() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(), nn.Linear(4, 2))
    model[1].eval()
    modes = [module.training for module in model.modules()]
    count(model, (torch.randn(2, 4),), {})
    assert [module.training for module in model.modules()] == modes
    with pytest.raises(UserError, match="batch 1"):
        count(model, (torch.randn(2, 5),), {})
    assert [module.training for module in model.modules()] == modes


def test_a_shared_parameter_counts_once() -> None:
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    model[1].weight = model[0].weight
    assert count(model, (torch.randn(1, 4),), {}).parameters == 16


# ---------------------------------------------------------------------------------------------------- batch norm


def batches(number: int = 5) -> list[tuple[tuple[Tensor], dict[str, Tensor]]]:
    generator = torch.Generator().manual_seed(2)
    return [((torch.randn(8, 3, 4, 4, generator=generator) * 2 + 1,), {}) for _ in range(number)]


def test_recalibration_averages_the_batches_and_leaves_its_argument_alone() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3, momentum=0.3), nn.Dropout(0.5), nn.BatchNorm2d(3)).train()
    model[1].eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    one, two = recalibrate(model, batches()), recalibrate(model, iter(batches()))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert [m.training for m in one.modules()] == [m.training for m in model.modules()]
    assert one[0].momentum == 0.3
    images = torch.stack([args[0] for args, _ in batches()]).double()
    torch.testing.assert_close(one[0].running_mean.double(), images.mean((0, 1, 3, 4)), rtol=1e-5, atol=1e-6)
    variance = torch.stack([image.transpose(0, 1).flatten(1).var(1) for image in images]).mean(0)
    torch.testing.assert_close(one[0].running_var.double(), variance, rtol=1e-5, atol=1e-6)
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True))


def test_recalibration_reads_as_many_batches_as_asked_and_no_more() -> None:
    seen: list[tuple[str, int, int]] = []
    stream = iter(batches(5))
    recalibrate(nn.BatchNorm2d(3), stream, batches=2, progress=lambda *event: seen.append(event))
    assert [done for _, done, _ in seen] == [1, 2]
    assert len(list(stream)) == 3


def test_a_norm_that_no_batch_reaches_keeps_its_statistics() -> None:
    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
            self.unused.running_mean.fill_(7.0)

        def forward(self, x: Tensor) -> Tensor:
            return self.used(x)

    result = recalibrate(Half(), batches())
    assert torch.equal(result.unused.running_mean, torch.full((3,), 7.0))
    assert not torch.equal(result.used.running_mean, torch.zeros(3))


def test_recalibration_without_data_is_refused_and_without_norms_a_copy() -> None:
    with pytest.raises(UserError, match="no batch"):
        recalibrate(nn.BatchNorm2d(3), [])
    with pytest.raises(UserError, match="drop_last"):
        recalibrate(nn.BatchNorm1d(3), [((torch.randn(1, 3),), {})])
    linear = nn.Linear(2, 2)
    assert recalibrate(linear, []) is not linear
