from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from attention_zoo import (
    SUPPORTED,
    TEXT,
    Chosen,
    Family,
    Model,
    Own,
    Tokens,
    beit,
    cut,
    features,
    groups_of,
    hugging,
    images,
    make,
    size,
    some_units,
    text,
    timm_vit,
)
from prune_zoo import HARD
from prune_zoo import make as make_other
from torch import Tensor, nn

from distill.errors import UserError
from distill.prune.attention.heads import (
    AttentionGroup,
    attention_groups,
    attributes_of,
    cut_attention,
    mask_attention,
    verified_groups,
)
from distill.prune.attention.stand_ins import is_stand_in, stand_in_
from distill.prune.modules import at_batch, tensors_in
from distill.prune.scores.importance import IMPORTANCES
from distill.prune.scores.weights import Weights, unit_scores

# torch says it when its encoder packs padded batches, as the models that came in do.
pytestmark = pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")


def masked(model: nn.Module, chosen: Chosen) -> nn.Module:
    result = copy.deepcopy(model)
    for name, channels in chosen.items():
        mask_attention(result, name, channels)
    return result


@torch.no_grad()
def outputs(model: nn.Module, example: Any) -> list[Tensor]:
    args, kwargs = example
    return [tensor for _, tensor in tensors_in(model(*args, **kwargs))]


def everything(model: nn.Module) -> dict[str, Any]:
    """Return all numbers and tensors of a model, by their names."""
    found: dict[str, Any] = {key: value.clone() for key, value in model.state_dict().items()}
    for name, module in model.named_modules():
        numbers = {key: value for key, value in vars(module).items() if isinstance(value, int | float | str)}
        found |= {f"{name} {key}": value for key, value in numbers.items()} | {f"{name} class": type(module)}
    return found


def assert_unchanged(model: nn.Module, before: dict[str, Any]) -> None:
    now = everything(model)
    assert now.keys() == before.keys()
    assert all(
        torch.equal(now[key], value) if isinstance(value, Tensor) else now[key] == value
        for key, value in before.items()
    )


# ------------------------------------------------------------------------------------------------- what is computed


@pytest.mark.parametrize("name", SUPPORTED)
def test_what_remains_computes_what_the_model_did_with_the_removed_channels_masked(name: str) -> None:
    family = SUPPORTED[name]
    model = make(family)
    whole = outputs(model, family.example())
    before = everything(model)
    for seed in range(2):
        chosen = some_units(model, seed)
        result, reference = cut(model, chosen), masked(model, chosen)
        assert size(result) < size(model)
        for batch in (1, 5):
            example = at_batch(family.example(), batch)
            for want, got in zip(outputs(reference, example), outputs(result, example), strict=True):
                torch.testing.assert_close(got, want, atol=2e-5, rtol=1e-4)
        assert any((a - b).abs().max() > 1e-3 for a, b in zip(whole, outputs(reference, family.example()), strict=True))
    assert_unchanged(model, before)


@pytest.mark.parametrize("name", SUPPORTED)
def test_every_attention_is_found_and_stands_its_trial(name: str) -> None:
    family = SUPPORTED[name]
    model = make(family)
    before = everything(model)
    groups = verified_groups(model, family.example(), family.logits)
    assert [group.unprunable for group in groups] == [None] * len(groups)
    kinds = tuple(group.kind for group in groups if isinstance(group, AttentionGroup))
    assert kinds == (family.kinds if len(family.kinds) == len(kinds) else family.kinds * len(kinds))
    assert_unchanged(model, before)
    for group in groups:
        assert sorted(channel for unit in group.units for channel in unit) == list(range(group.width))
        assert not group.is_output
        for member in group.members:
            assert set(member.roots) == set(range(group.width))
            assert len(member.indices) == len(member.roots)
    patterns = {(group.pattern, group.kind) for group in groups if isinstance(group, AttentionGroup)}
    assert len(patterns) == len(set(kinds))


@pytest.mark.parametrize("name", SUPPORTED)
def test_weights_load_into_a_fresh_model_that_was_narrowed_by_shapes_and_attributes(name: str) -> None:
    family = SUPPORTED[name]
    model = make(family)
    pruned = cut(model, some_units(model, 4))
    fresh = make(family, seed=1)
    for key, module in pruned.named_modules():
        if is_stand_in(module):
            stand_in_(fresh, key)
    for key, module in pruned.named_modules():
        twin = fresh.get_submodule(key)
        for attribute, value in attributes_of(module).items():
            setattr(twin, attribute, value)
        for tensor, value in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
            part = getattr(twin, tensor)[tuple(slice(size) for size in value.shape)].detach().clone()
            setattr(twin, tensor, nn.Parameter(part) if isinstance(value, nn.Parameter) else part)
    fresh.load_state_dict(pruned.state_dict())
    for want, got in zip(outputs(pruned, family.example()), outputs(fresh, family.example()), strict=True):
        assert torch.equal(want, got)


@pytest.mark.parametrize("name", ["own", "timm vit", "timm swin v2", "encoder", "bert", "torchvision swin"])
def test_heads_and_dimensions_go_one_after_another(name: str) -> None:
    family = SUPPORTED[name]
    model = make(family)
    if name != "torchvision swin":
        model = make(wide(name, family))
    chosen = {}
    first: Chosen = {}
    for group in groups_of(model):
        dim = group.width // group.heads
        first[group.name] = list(range(dim))
        others = [head * dim + index for head in range(1, group.heads) for index in (0, 3, dim - 1)]
        chosen[group.name] = sorted(first[group.name] + others)
    result = cut(model, first)
    for group in groups_of(result):
        dim = group.width // group.heads
        cut_attention(result, group.name, [head * dim + i for head in range(group.heads) for i in (0, 3, dim - 1)])
    at_once = cut(model, chosen)
    want = outputs(masked(model, chosen), family.example())
    for narrow in (result, at_once):
        for expected, got in zip(want, outputs(narrow, family.example()), strict=True):
            torch.testing.assert_close(got, expected, atol=2e-5, rtol=1e-4)


def wide(name: str, family: Family) -> Family:
    """Give the family's model heads wide enough to lose dimensions too."""
    changed = {
        "own": lambda _: Model(Own(4, 16)),
        "encoder": lambda _: Tokens(2, batch_first=True),
        "bert": hugging("Bert", **{**TEXT, "hidden_size": 64}),
    }
    if name == "timm vit":
        return Family(family.needs, lambda library: timm_vit(library, 64), family.example)
    return Family(family.needs, changed.get(name, family.build), family.example)


def test_timm_computes_the_same_with_and_without_its_fused_kernel_after_dimensions_went() -> None:
    family = SUPPORTED["timm deit-tiny"]
    model = make(family)
    result = cut(model, some_units(model, 1))
    plain = copy.deepcopy(result)
    for block in plain.blocks:
        assert block.attn.scale == block.attn.head_dim**-0.5
        block.attn.fused_attn = False
    for want, got in zip(outputs(result, family.example()), outputs(plain, family.example()), strict=True):
        torch.testing.assert_close(got, want)


# ------------------------------------------------------------------------------------------------- what is changed


@pytest.mark.parametrize(
    ("name", "channels", "path", "attributes"),
    [
        ("timm vit", range(8, 16), "blocks.0.attn", {"num_heads": 3, "head_dim": 8, "attn_dim": 24}),
        ("timm deit-tiny", [0, 16, 32, 5, 21, 37], "blocks.1.attn", {"num_heads": 3, "head_dim": 14, "attn_dim": 42}),
        (
            "bert",
            range(16),
            "bert.encoder.layer.1.attention.self",
            {"num_attention_heads": 2, "attention_head_size": 8, "all_head_size": 16},
        ),
        (
            "distilbert",
            range(24, 32),
            "distilbert.transformer.layer.0.attention",
            # Nothing reads dim: it still says what the module was built with.
            {"n_heads": 3, "attention_head_size": 8, "dim": 32},
        ),
        ("own", range(8), "attention", {"heads": 3, "dim": 24}),
        ("encoder", range(8), "encoder.layers.0.self_attn", {"num_heads": 3, "head_dim": 8, "embed_dim": 32}),
    ],
)
def test_attributes_follow_the_cut(name: str, channels: Any, path: str, attributes: dict[str, int]) -> None:
    model = make(SUPPORTED[name])
    (consumer,) = cut_attention(model, path, list(channels))
    module = model.get_submodule(path)
    assert {key: getattr(module, key) for key in attributes} == attributes
    assert attributes_of(module).items() >= attributes.items()
    assert consumer.indices == tuple(sorted(channels))
    assert consumer.side == "in"
    assert consumer.module is model.get_submodule(consumer.name)
    assert isinstance(consumer.module, nn.Linear)
    assert consumer.module.in_features == consumer.module.weight.shape[1]


def test_frozen_parameters_stay_frozen_and_the_residual_width_is_not_touched() -> None:
    model = make(SUPPORTED["timm vit"])
    model.blocks[0].attn.qkv.weight.requires_grad_(False)
    cut_attention(model, "blocks.0.attn", range(8))
    attention = model.blocks[0].attn
    assert not attention.qkv.weight.requires_grad
    assert attention.qkv.bias.requires_grad
    assert (attention.qkv.in_features, attention.qkv.out_features) == (32, 72)
    assert (attention.proj.in_features, attention.proj.out_features) == (24, 32)


def test_nothing_is_cut_when_nothing_is_chosen() -> None:
    model = make(SUPPORTED["encoder"])
    before = everything(model)
    cut_attention(model, "encoder.layers.0.self_attn", [])
    assert_unchanged(model, before)


# ------------------------------------------------------------------------------------------------- importance


@pytest.mark.parametrize("name", ["timm vit", "encoder", "bert"])
def test_importances_see_all_weights_of_a_head(name: str) -> None:
    family = SUPPORTED[name]
    model = make(family)
    family.logits(call(model, family)).square().sum().backward()
    for group in groups_of(model):
        rows = torch.stack([weight for weight in projections(model, group.name)]).detach().double()  # [3, d, width]
        output = model.get_submodule(group.members[-1].name)
        columns = output.weight.detach().double().T
        heads = [list(unit) for unit in group.units]
        for kind, per_channel in {
            "group_norm": rows.square().sum((0, 2)) + columns.square().sum(1),
            "magnitude": rows.abs().sum((0, 2)),
        }.items():
            want = torch.stack([per_channel[head].mean() for head in heads])
            got = unit_scores(group, IMPORTANCES[kind], 0, {})
            assert got is not None
            torch.testing.assert_close(torch.tensor(got.units, dtype=torch.float64), want / want.mean())
        change = Weights(group).change()
        assert change is not None
        assert change.shape == (32,)
        assert change.abs().min() > 0


def call(model: nn.Module, family: Family) -> Any:
    args, kwargs = family.example()
    return model(*args, **kwargs)


def projections(model: nn.Module, name: str) -> list[Tensor]:
    module = model.get_submodule(name)
    if isinstance(module, nn.MultiheadAttention):
        return list(module.in_proj_weight.chunk(3))
    if hasattr(module, "qkv"):
        return list(module.qkv.weight.chunk(3))
    return [module.query.weight, module.key.weight, module.value.weight]


# ------------------------------------------------------------------------------------------------- what is refused


def whole(build: Any, needs: str = "", example: Any = features) -> Family:
    return Family(needs, build, example)


class Alibi(Own):
    def forward(self, x: Tensor, alibi: Tensor | None = None) -> Tensor:
        return super().forward(x)


def with_tensor(**tensors: Tensor) -> nn.Module:
    model = Model(Own())
    for name, tensor in tensors.items():
        model.attention.register_buffer(name, tensor)
    return model


def parametrized() -> nn.Module:
    model = Model(Own())
    nn.utils.parametrizations.weight_norm(model.attention.to_k)
    return model


def tied() -> nn.Module:
    model = Model(Own())
    model.attention.to_k.weight = model.attention.to_q.weight
    return model


def small_values() -> nn.Module:
    model = Model(Own())
    model.attention.to_v = nn.Linear(24, 16)
    return model


class Multihead(nn.Module):
    def __init__(self, **kwargs: Any) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(24, 4, batch_first=True, **kwargs)

    def forward(self, x: Tensor) -> Tensor:
        other = x[..., : self.attention.kdim]
        return self.attention(x, other, other)[0]


class OwnMultihead(nn.MultiheadAttention):
    pass


def own_multihead() -> nn.Module:
    model = Multihead()
    model.attention = OwnMultihead(24, 4, batch_first=True)
    return model


def bloom(library: Any) -> nn.Module:
    config = library.BloomConfig(vocab_size=40, hidden_size=32, n_layer=2, n_head=4, pad_token_id=0)
    return library.BloomForSequenceClassification(config)


REFUSED: dict[str, tuple[Family, str]] = {
    "forward with its own numbers": (whole(lambda _: Model(Own(fixed=True))), "removed ones in another way"),
    "no scale at all": (whole(lambda _: Model(Own(2, 16, "none"))), "removed ones in another way"),
    "no heads": (whole(lambda _: make_other(HARD["attention"]), example=HARD["attention"].example), "how many heads"),
    "slopes": (whole(lambda _: with_tensor(slopes=torch.rand(4))), "an entry for each head"),
    "alibi": (whole(lambda _: Model(Alibi())), "ALiBi"),
    "parametrization": (whole(lambda _: parametrized()), "parametrization"),
    "tied": (whole(lambda _: tied()), "shares its weight"),
    "small values": (whole(lambda _: small_values()), "keys have 32 channels and its values 16"),
    "one small head": (whole(lambda _: Model(Own(1, 8))), "narrow already"),
    "other keys": (whole(lambda _: Multihead(kdim=16, vdim=16)), "other widths"),
    "keys of its own": (whole(lambda _: Multihead(add_bias_kv=True)), "add_bias_kv"),
    "a subclass": (whole(lambda _: own_multihead()), "class of its own"),
    "alone": (whole(lambda _: nn.MultiheadAttention(24, 4)), "put it into another module"),
    "grouped queries": (whole(hugging("Llama", pad_token_id=0, num_key_value_heads=2, **TEXT), "transformers", text),
                        "grouped-query"),
    "bloom": (whole(bloom, "transformers", text), "ALiBi"),
    "mpnet": (whole(hugging("MPNet", **TEXT), "transformers", text), "does not run"),
    "beit, shared biases": (whole(lambda t: beit(t, use_shared_rel_pos_bias=True), "timm", images(16)), "does not run"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_cut_is_kept_and_says_why(name: str) -> None:
    family, why = REFUSED[name]
    model = make(family)
    before = everything(model)
    if name in ("alone", "small values"):  # these do not run on the example, or at all
        groups = attention_groups(model)
    else:
        groups = verified_groups(model, family.example(), family.logits)
    assert groups
    for group in groups:
        assert group.unprunable is not None
        assert why in group.unprunable
        assert "\n" not in group.unprunable
        assert group.width > 0
    assert_unchanged(model, before)
    if name in ("slopes", "alibi", "tied", "other keys"):
        with pytest.raises(UserError, match=f"{groups[0].name}.*cannot be cut"):
            cut_attention(model, groups[0].name, [0])


def test_one_bad_attention_does_not_keep_the_others() -> None:
    model = make(whole(lambda _: Model(nn.Sequential(Own(), Own(fixed=True)))))
    good, bad = verified_groups(model, features(), lambda output: output)
    assert (good.name, good.unprunable) == ("attention.0", None)
    assert bad.unprunable is not None


@pytest.mark.parametrize(
    ("channels", "message"),
    [
        ([0], "whole heads or the same dimensions"),
        (range(32), "without heads"),
        ([32], "channels 0 to 31, not 32"),
        ([0, 8, 16, 24], "7 dimensions a head"),
    ],
)
@pytest.mark.parametrize("name", ["own", "encoder"])
def test_a_cut_that_makes_no_sense_is_refused_and_changes_nothing(name: str, channels: Any, message: str) -> None:
    model = make(SUPPORTED[name])
    before = everything(model)
    with pytest.raises(UserError, match=message):
        cut_attention(model, attention_groups(model)[0].name, list(channels))
    assert_unchanged(model, before)


def test_dimensions_that_are_normalised_or_turned_in_pairs_stay() -> None:
    for name, why in (("timm vit, norm of heads", "normalises"), ("llama", "rotary")):
        model = make(SUPPORTED[name])
        group = attention_groups(model)[0]
        with pytest.raises(UserError, match=why):
            cut_attention(model, group.name, list(range(0, group.width, 8)))


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(UserError, match="no attention 'head'"):
        cut_attention(make(SUPPORTED["own"]), "head", [0])


def test_a_kind_that_an_earlier_step_chose_stays() -> None:
    model = make(SUPPORTED["own"])
    cut_attention(model, "attention", range(16))
    (group,) = attention_groups(model, kinds={"attention": "heads"})
    assert len(group.units) == 2
