"""Wrong cuts are noticed whatever the output looks like, and what a forward does on the side is no harm."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from distill.errors import UserError
from distill.prune import PruneRecord, PruneSettings, prune_channels


def pruned(
    model: nn.Module, *inputs: Tensor, logits: Callable[[Any], Tensor] = lambda output: output, **changes: Any
) -> tuple[nn.Module, PruneRecord]:
    settings = PruneSettings(**{"importance": "group_norm", "macs": 0.5, "round_to": 4, **changes})
    return prune_channels(model, settings, example=(inputs, {}), batches=None, loss=None, logits=logits)


class Flip(nn.Module):
    """The order of channels is turned over, which the graph does not follow: only the check notices a wrong cut."""

    def __init__(self, answer: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(8, 32), nn.Linear(32, 32), nn.Linear(32, 3)
        self.box, self.scale, self.answer = nn.Linear(8, 4), nn.Parameter(torch.full((3,), 1e-6)), answer
        nn.init.normal_(self.first.weight)

    def forward(self, x: Tensor) -> Any:
        scores = self.head(torch.relu(self.second(torch.relu(self.first(x)).flip(1))))
        return (
            self.answer(scores, self.box(x)) if self.answer is not SCALED else self.box(x)[:, :3] + self.scale * scores
        )


def SCALED(scores: Tensor, box: Tensor) -> Tensor:  # noqa: N802
    raise AssertionError


MASK = torch.tensor([False, False, True])


@pytest.mark.parametrize(
    ("answer", "logits"),
    [
        (lambda scores, box: scores.masked_fill(MASK, float("-inf")), lambda output: output),
        (lambda scores, box: scores.masked_fill(MASK, -1e9), lambda output: output),
        (lambda scores, box: torch.cat([box.sigmoid() * 640, scores.sigmoid()], 1), lambda output: output),
        (lambda scores, box: SimpleNamespace(logits=scores), lambda output: output.logits),
        (lambda scores, box: torch.distributions.Categorical(logits=scores), lambda output: output.logits),
        (SCALED, lambda output: output),
    ],
    ids=["minus infinity", "minus 1e9", "boxes beside scores", "plain object", "distribution", "layer scale"],
)
def test_a_wrong_cut_is_noticed_in_any_output(answer: Any, logits: Callable[[Any], Tensor]) -> None:
    torch.manual_seed(0)
    _, record = pruned(Flip(answer), torch.randn(4, 8), logits=logits, macs=None, ratio=0.3)
    assert record.widths["first"] == (32, 32)
    assert record.widths["second"][1] < 32
    assert any("first" in warning and "reads the removed ones in another way" in warning for warning in record.warnings)


def test_a_head_that_begins_at_zero_hides_nothing() -> None:
    torch.manual_seed(0)
    model = Flip(lambda scores, box: scores)
    nn.init.zeros_(model.head.weight)
    narrow, record = pruned(model, torch.randn(4, 8), macs=None, ratio=0.3)
    assert record.widths["first"] == (32, 32)
    assert torch.count_nonzero(narrow.get_submodule("head").weight) == 0  # type: ignore[arg-type]


class Aside(nn.Module):
    """A network whose forward does one thing on the side."""

    def __init__(self, aside: str) -> None:
        super().__init__()
        self.aside, self.seen = aside, torch.zeros(1)
        self.first, self.norm, self.second = nn.Linear(8, 32), nn.LayerNorm(32), nn.Linear(32, 32)
        self.attention, self.head = nn.MultiheadAttention(32, 8, batch_first=True), nn.Linear(32, 3)

    def forward(self, x: Tensor) -> Tensor:
        if self.aside == "writes into its input":
            x /= 2
        y = torch.relu(self.first(x))
        if self.aside == "keeps what it saw":
            self.seen = y
        if self.aside == "draws numbers":
            y = y + torch.randn_like(y)
        y = self.norm(y[:, None] + self.attention(y[:, None], y[:, None], y[:, None])[0])[:, 0]
        answer: Tensor = self.head(torch.relu(self.second(y)))
        return answer


@pytest.mark.parametrize("aside", ["writes into its input", "keeps what it saw", "draws numbers"])
def test_what_a_forward_does_on_the_side_is_no_harm(aside: str) -> None:
    torch.manual_seed(0)
    example = torch.randn(4, 8)
    before = example.clone()
    narrow, record = pruned(Aside(aside), example)
    assert torch.equal(example, before)
    assert record.macs_after == pytest.approx(record.macs_before / 2, rel=0.1)
    assert narrow(torch.randn(5, 8)).shape == (5, 3)
    assert not record.warnings


class Recurrent(nn.Module):
    """Gates of a recurrent cell are split anew in every step: lists of indices must not grow with them."""

    def __init__(self, cell: nn.Module) -> None:
        super().__init__()
        self.first, self.cell, self.second, self.head = nn.Linear(6, 32), cell, nn.Linear(16, 32), nn.Linear(32, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        if isinstance(self.cell, nn.RNNBase):
            y = self.cell(x)[0][:, -1]
        else:
            state = None
            for step in x.unbind(1):
                state = self.cell(step, state)
            y = state[0] if isinstance(state, tuple) else state
        answer: Tensor = self.head(torch.relu(self.second(y)))
        return answer


@pytest.mark.parametrize("kind", [nn.GRU, nn.LSTM, nn.RNN, nn.GRUCell, nn.LSTMCell])
def test_recurrent_layers_stay_and_what_is_behind_them_is_cut(kind: Callable[..., nn.Module]) -> None:
    torch.manual_seed(0)
    cell = kind(32, 16, **({"batch_first": True} if issubclass(kind, nn.RNNBase) else {}))  # type: ignore[arg-type]
    narrow, record = pruned(Recurrent(cell), torch.randn(4, 5, 6), macs=None, ratio=0.3)
    assert record.widths["second"][1] < 32
    assert narrow(torch.randn(2, 5, 6)).shape == (2, 3)


class Translator(nn.Module):
    """One recurrent layer's state starts another; a linear layer's may as well."""

    def __init__(self, start: str) -> None:
        super().__init__()
        self.start, self.embed, self.other = start, nn.Linear(6, 32), nn.Linear(6, 16)
        self.encoder, self.decoder = nn.GRU(32, 16, batch_first=True), nn.GRU(32, 16, batch_first=True)
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        words = torch.relu(self.embed(x))
        state = self.encoder(words)[1] if self.start == "recurrent" else self.other(x[:, 0])[None]
        answer: Tensor = self.head(self.decoder(words, state)[0].mean(1))
        return answer


@pytest.mark.parametrize("start", ["recurrent", "linear"])
def test_what_recurrent_layers_read_is_cut_and_a_state_keeps_its_width(start: str) -> None:
    torch.manual_seed(0)
    narrow, record = pruned(Translator(start), torch.randn(4, 5, 6), macs=None, ratio=0.5)
    assert record.widths["embed"][1] < 32
    assert record.widths["other"] == (16, 16)
    assert narrow.get_submodule("decoder").input_size == record.widths["embed"][1]
    assert narrow(torch.randn(2, 5, 6)).shape == (2, 3)


class Twice(nn.Module):
    """An encoder is called on two inputs, and both answers are joined or split."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.encoder = how, nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 24), nn.ReLU())
        self.left, self.right, self.joined = nn.Linear(12, 16), nn.Linear(12, 16), nn.Linear(48, 16)
        self.head = nn.Linear(16, 3)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        a, b = self.encoder(a), self.encoder(b)
        if self.how == "joined":
            y = self.joined(torch.cat([a, b], 1))
        else:
            y = sum(self.left(one.chunk(2, 1)[0]) + self.right(one.chunk(2, 1)[1]) for one in (a, b))
        answer: Tensor = self.head(torch.relu(y))
        return answer


@pytest.mark.parametrize("how", ["joined", "split"])
def test_a_layer_that_is_called_twice_is_followed_in_both(how: str) -> None:
    torch.manual_seed(0)
    narrow, record = pruned(Twice(how), torch.randn(4, 8), torch.randn(4, 8), macs=None, ratio=0.3)
    assert record.widths["encoder.0"][1] < 32
    if how == "joined":
        assert narrow.get_submodule("joined").in_features == 2 * record.widths["encoder.2"][1] < 48
    assert narrow(torch.randn(2, 8), torch.randn(2, 8)).shape == (2, 3)


def test_groups_of_a_norm_that_hold_several_layers_keep_them() -> None:
    class Joined(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.wide, self.narrow = nn.Conv2d(3, 64, 1), nn.Conv2d(3, 32, 1)
            self.norm, self.after, self.head = nn.GroupNorm(8, 96), nn.Conv2d(96, 32, 1), nn.Linear(32, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.norm(torch.cat([self.wide(x), self.narrow(x)], 1))
            answer: Tensor = self.head(torch.relu(self.after(x)).mean((2, 3)))
            return answer

    _, record = pruned(Joined(), torch.randn(4, 3, 5, 5))
    assert record.widths["wide"] == (64, 64)
    assert record.widths["narrow"] == (32, 32)
    assert record.widths["after"][1] < 32
    assert any("groups hold channels of several layers" in warning for warning in record.warnings)


def test_two_groupings_of_the_same_channels_lose_as_much_from_each_group_of_both() -> None:
    model = nn.Sequential(
        *(nn.Conv2d(3, 48, 1), nn.GroupNorm(2, 48), nn.ReLU(), nn.GroupNorm(3, 48)),
        *(nn.Conv2d(48, 16, 1), nn.ReLU(), nn.Conv2d(16, 3, 1)),
    )
    narrow, record = pruned(model, torch.randn(4, 3, 5, 5), macs=None, ratio=0.4, round_to=6)
    assert record.widths["0"][1] < 48
    assert record.widths["0"][1] % 6 == 0
    assert narrow(torch.randn(2, 3, 5, 5)).shape == (2, 3, 5, 5)


def test_a_layer_behind_a_transposition_is_called_all_the_same() -> None:
    class Transposed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.head = nn.Conv1d(3, 32, 1), nn.Linear(32, 32), nn.Linear(32, 3)

        def forward(self, x: Tensor) -> Tensor:
            answer: Tensor = self.head(torch.relu(self.second(torch.relu(self.first(x)).transpose(1, 2))).mean(1))
            return answer

    _, record = pruned(Transposed(), torch.randn(4, 3, 7))
    assert record.widths["first"][1] < 32
    assert not record.warnings


def test_padding_masks_of_encoder_layers_do_not_keep_heads() -> None:
    class Padded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True, dropout=0.0)
            self.embed, self.encoder, self.head = (
                nn.Embedding(20, 32),
                nn.TransformerEncoder(layer, 2),
                nn.Linear(32, 3),
            )

        def forward(self, tokens: Tensor) -> Tensor:
            x = self.encoder(self.embed(tokens), src_key_padding_mask=tokens == 0)
            answer: Tensor = self.head(x[:, 0])
            return answer

    torch.manual_seed(0)
    tokens = torch.tensor([[1, 2, 3, 0, 0], [4, 5, 6, 7, 0], [1, 9, 0, 0, 0]])
    _, record = pruned(Padded(), tokens)
    assert record.macs_after == pytest.approx(record.macs_before / 2, rel=0.1)


@pytest.mark.parametrize("how", ["lazy", "inference"])
def test_parameters_that_cannot_be_pruned_are_named(how: str) -> None:
    if how == "lazy":
        model = nn.Sequential(nn.LazyLinear(8), nn.Linear(8, 3))
        assert isinstance(model[0].weight, UninitializedParameter)
    else:
        with torch.inference_mode():
            model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 3))
    with pytest.raises(UserError, match=r"0\.weight"):
        pruned(model, torch.randn(4, 8))


def test_a_layer_with_a_parameter_of_its_own_for_each_channel_stays() -> None:
    class Gained(nn.Conv2d):
        """A convolution of standardised weights with a gain, as in NFNet."""

        def __init__(self, *args: int) -> None:
            super().__init__(*args)
            self.gain = nn.Parameter(torch.ones(self.out_channels, 1, 1, 1))

        def forward(self, input: Tensor) -> Tensor:
            weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
            return nn.functional.conv2d(input, weight * self.gain, self.bias)

    model = nn.Sequential(Gained(3, 32, 1), nn.ReLU(), nn.Conv2d(32, 16, 1), nn.ReLU(), nn.Conv2d(16, 3, 1))
    _, record = pruned(model, torch.randn(4, 3, 5, 5), macs=None, ratio=0.4)
    assert record.widths["0"] == (32, 32)
    assert record.widths["2"][1] < 16
    assert any("a Gained has a gain of its own for each channel" in warning for warning in record.warnings)
