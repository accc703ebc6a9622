"""Attention of our own in the place of torch's: answers as it does, narrows, trains and exports."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from attention_zoo import (
    DISTILBERT,
    SUPPORTED,
    TEXT,
    Family,
    Tokens,
    cut,
    hugging,
    images,
    make,
    size,
    some_units,
    text,
    timm_vit,
    tokens,
)
from torch import Tensor, nn

from distill.export import export_onnx
from distill.prune.attention.stand_ins import MultiheadAttention, stand_in_

# torch says it when its encoder packs padded batches, as the models that came in do.
pytestmark = pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")


class Holder(nn.Module):
    def __init__(self, **kwargs: Any) -> None:
        super().__init__()
        self.inner = nn.MultiheadAttention(24, 4, **kwargs)


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_the_stand_in_answers_every_usual_call_as_torch_does(batch_first: bool, bias: bool) -> None:
    torch.manual_seed(0)
    holder = Holder(batch_first=batch_first, bias=bias).eval()
    original = copy.deepcopy(holder.inner)
    stand_in = stand_in_(holder, "inner")
    assert isinstance(stand_in, MultiheadAttention)
    assert list(stand_in.state_dict()) == list(original.state_dict())
    query, key = torch.randn(3, 5, 24), torch.randn(3, 7, 24)
    padding = torch.arange(7)[None] >= torch.tensor([7, 4, 6])[:, None]
    boolean = torch.rand(5, 7) > 0.8
    causal = nn.Transformer.generate_square_subsequent_mask(5)
    turned = (query, key) if batch_first else (query.transpose(0, 1), key.transpose(0, 1))
    calls: list[tuple[tuple[Tensor, ...], dict[str, Any]]] = [
        ((turned[0], turned[1], turned[1]), {}),
        ((turned[0], turned[1], turned[1]), {"key_padding_mask": padding, "attn_mask": boolean}),
        ((turned[0], turned[1], turned[1]), {"attn_mask": torch.randn(12, 5, 7), "average_attn_weights": False}),
        ((turned[0],) * 3, {"attn_mask": causal, "is_causal": True, "need_weights": False}),
        ((turned[0], turned[1], turned[1]), {"key_padding_mask": padding, "need_weights": False}),
        ((query[0], key[0], key[0]), {"key_padding_mask": padding[1], "average_attn_weights": False}),
    ]
    for args, kwargs in calls:
        want, want_weights = original(*args, **kwargs)
        got, got_weights = stand_in(*args, **kwargs)
        torch.testing.assert_close(got, want)
        assert (got_weights is None) == (want_weights is None)
        if want_weights is not None:
            torch.testing.assert_close(got_weights, want_weights)
    with pytest.raises(ValueError, match="attn_mask"):
        stand_in(*calls[0][0], is_causal=True)


def test_torch_s_encoder_takes_no_fast_path_through_a_stand_in() -> None:
    model = make(SUPPORTED["encoder"])
    result = cut(model, {"encoder.layers.0.self_attn": list(range(16))})  # two heads: an even number
    assert model.encoder.use_nested_tensor
    assert not result.encoder.use_nested_tensor
    (tokens,), kwargs = SUPPORTED["encoder"].example()
    with torch.no_grad():
        quick = result(tokens, **kwargs)
    torch.testing.assert_close(quick, result(tokens, **kwargs))  # with gradients torch never takes it


def test_a_narrow_encoder_trains() -> None:
    model = cut(make(SUPPORTED["encoder"]), {"encoder.layers.0.self_attn": list(range(8))}).train()
    (tokens,), kwargs = SUPPORTED["encoder"].example()
    model(tokens, **kwargs).sum().backward()
    weight = model.encoder.layers[0].self_attn.in_proj_weight
    assert weight.shape == (72, 32)
    assert weight.grad.abs().sum() > 0


# One layer each: an export takes seconds.
SHALLOW: dict[str, Family] = {
    "timm vit": Family("timm", lambda library: timm_vit(library, depth=1), images(16)),
    "bert": Family("transformers", hugging("Bert", **{**TEXT, "num_hidden_layers": 1}), text),
    "distilbert": Family("transformers", hugging("DistilBert", **{**DISTILBERT, "n_layers": 1}), text),
    "encoder": Family("", lambda _: Tokens(layers=1, batch_first=True), tokens),
}
SLOW = ["timm beit", "timm swin v2", "torchvision vit", "torchvision swin", "torchvision swin v2", "decoder"]


@pytest.mark.parametrize("name", [*SHALLOW, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
def test_a_narrowed_model_exports_and_the_graph_gives_its_logits(name: str) -> None:
    family = SHALLOW.get(name) or SUPPORTED[name]
    model = make(family)
    pruned = cut(model, some_units(model, 2))
    args, kwargs = family.example()
    names = [*(f"input_{index}" for index in range(len(args))), *kwargs]
    # It compares the graph with the module at several batch sizes, and raises if they differ.
    proto = export_onnx(pruned, args=args, kwargs=kwargs, logits=family.logits, input_names=names)
    if name in SHALLOW:  # Swin's graph holds masks for its windows too
        assert sum(math.prod(tensor.dims) for tensor in proto.graph.initializer) < size(model)
    assert size(pruned) < size(model)
