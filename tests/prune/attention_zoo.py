"""Small attention models of the families that people bring, with random weights; each says which library it needs."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill.prune.attention.heads import AttentionGroup, attention_groups, cut_attention

Call = tuple[tuple[Any, ...], dict[str, Any]]
Chosen = dict[str, list[int]]
"""Channels that go, by the name of their group."""

TEXT = {
    "vocab_size": 40, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48,
    "max_position_embeddings": 40,
}  # fmt: skip
VIT = {"image_size": 16, "patch_size": 8, "hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 48}
SWIN = {"image_size": 32, "patch_size": 4, "embed_dim": 48, "depths": [2, 2], "num_heads": [3, 6], "window_size": 4}


@dataclass(frozen=True)
class Family:
    needs: str
    build: Callable[[Any], nn.Module]
    example: Callable[[], Call]
    kinds: tuple[str, ...] = ("heads",)

    @staticmethod
    def logits(output: Any) -> Tensor:
        return getattr(output, "logits", output)


class Tokens(nn.Module):
    """torch's encoder between an embedding and a head that reads the first token."""

    def __init__(self, heads: int = 4, layers: int = 2, **kwargs: Any) -> None:
        super().__init__()
        self.embed = nn.Embedding(40, 32)
        nested = heads % 2 == 0 and kwargs.get("batch_first", False) and not kwargs.get("norm_first", False)
        layer = nn.TransformerEncoderLayer(32, heads, 48, **kwargs)
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=nested)
        self.first = layer.self_attn.batch_first
        self.head = nn.Linear(32, 3)

    def forward(self, tokens: Tensor, padding: Tensor | None = None) -> Tensor:
        x = self.embed(tokens)
        x = x if self.first else x.transpose(0, 1)
        x = self.encoder(x, src_key_padding_mask=padding)
        return self.head(x[:, 0] if self.first else x[0])


class Decoder(nn.Module):
    """Self-attention with a causal mask, and attention to another sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.memory = nn.Embedding(40, 32), nn.Linear(6, 32)
        self.layer = nn.TransformerDecoderLayer(32, 4, 48, batch_first=True)
        self.head = nn.Linear(32, 3)

    def forward(self, tokens: Tensor, memory: Tensor) -> Tensor:
        causal = nn.Transformer.generate_square_subsequent_mask(tokens.shape[1])
        return self.head(self.layer(self.embed(tokens), self.memory(memory), tgt_mask=causal, tgt_is_causal=True))


class Own(nn.Module):
    """Written out by a user; ``scale`` says where the scores get their scale from."""

    def __init__(self, heads: int = 4, head_dim: int = 8, scale: str = "stored", fixed: bool = False) -> None:
        super().__init__()
        self.heads, self.dim, self.fixed, self.own = heads, heads * head_dim, fixed, scale
        if scale == "stored":
            self.scale = head_dim**-0.5
        elif scale == "other":
            self.scale = 0.77
        self.to_q, self.to_k, self.to_v = (nn.Linear(24, heads * head_dim) for _ in range(3))
        self.to_out = nn.Sequential(nn.Linear(heads * head_dim, 24), nn.Dropout(0.1))

    def forward(self, x: Tensor) -> Tensor:
        heads = 4 if self.fixed else self.heads
        q, k, v = (f(x).view(len(x), -1, heads, self.dim // heads).transpose(1, 2) for f in self._layers())
        if self.own == "none":
            mixed = torch.softmax(q @ k.transpose(-2, -1), -1) @ v
        else:
            mixed = F.scaled_dot_product_attention(q, k, v, scale=None if self.own == "computed" else self.scale)
        return self.to_out(mixed.transpose(1, 2).reshape(len(x), -1, self.dim))

    def _layers(self) -> tuple[nn.Module, ...]:
        return self.to_q, self.to_k, self.to_v


class Model(nn.Module):
    """A residual stream of 24 features around one attention."""

    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.norm, self.attention, self.head = nn.LayerNorm(24), attention, nn.Linear(24, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head((x + self.attention(self.norm(x))).mean(1))


def features() -> Call:
    return (torch.randn(3, 5, 24, generator=torch.Generator().manual_seed(7)),), {}


def images(side: int) -> Callable[[], Call]:
    return lambda: ((torch.randn(3, 3, side, side, generator=torch.Generator().manual_seed(7)),), {})


def tokens() -> Call:
    return (torch.arange(21).reshape(3, 7),), {}


def padded() -> Call:
    padding = torch.arange(7)[None] >= torch.tensor([7, 5, 6])[:, None]
    return (torch.arange(21).reshape(3, 7),), {"padding": padding}


def decoded() -> Call:
    return (torch.arange(21).reshape(3, 7), torch.randn(3, 4, 6, generator=torch.Generator().manual_seed(7))), {}


def text() -> Call:
    mask = (torch.arange(7)[None] < torch.tensor([7, 5, 6])[:, None]).long()
    return (), {"input_ids": torch.arange(21).reshape(3, 7), "attention_mask": mask}


def timm_vit(library: Any, width: int = 32, heads: int = 4, depth: int = 2, **kwargs: Any) -> nn.Module:
    make = library.models.vision_transformer.VisionTransformer
    return make(img_size=16, patch_size=8, embed_dim=width, depth=depth, num_heads=heads, num_classes=5, **kwargs)


def timm_swin(library: Any, version: str) -> nn.Module:
    room = getattr(library.models, f"swin_transformer{version}")
    make = getattr(room, f"SwinTransformer{version.upper().strip('_')}")
    return make(img_size=32, patch_size=4, window_size=4, embed_dim=48, depths=(2, 2), num_heads=(3, 6), num_classes=5)


def torchvision_swin(library: Any, version: str) -> nn.Module:
    room = library.models.swin_transformer
    block = getattr(room, f"SwinTransformerBlock{version}")
    merging = getattr(room, f"PatchMerging{version}")
    return room.SwinTransformer(
        [4, 4], 48, [2, 2], [3, 6], [3, 3], num_classes=5, block=block, downsample_layer=merging
    )


def beit(library: Any, **kwargs: Any) -> nn.Module:
    make = library.models.beit.Beit
    return make(img_size=16, patch_size=8, embed_dim=32, depth=2, num_heads=4, num_classes=5, **kwargs)


def hugging(name: str, **config: Any) -> Callable[[Any], nn.Module]:
    """Build a transformers classifier from its family's name and its config's arguments."""
    head = "ForImageClassification" if "image_size" in config else "ForSequenceClassification"
    return lambda library: getattr(library, name + head)(getattr(library, f"{name}Config")(num_labels=3, **config))


DISTILBERT = {
    "vocab_size": 40, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48, "max_position_embeddings": 40,
}  # fmt: skip
STAGES = ("head_dim", "head_dim", "heads", "heads")

SUPPORTED: dict[str, Family] = {
    "own": Family("", lambda _: Model(Own()), features),
    "own, dimensions": Family("", lambda _: Model(Own(2, 16)), features, ("head_dim",)),
    "own, scale computed": Family("", lambda _: Model(Own(2, 16, "computed")), features, ("head_dim",)),
    "own, another scale": Family("", lambda _: Model(Own(2, 16, "other")), features, ("head_dim",)),
    "encoder": Family("", lambda _: Tokens(batch_first=True), padded),
    "encoder, norm first": Family("", lambda _: Tokens(batch_first=True, norm_first=True), padded),
    "encoder, sequence first": Family("", lambda _: Tokens(bias=False), tokens),
    "encoder, dimensions": Family("", lambda _: Tokens(2, batch_first=True), padded, ("head_dim",)),
    "decoder": Family("", lambda _: Decoder(), decoded),
    "timm vit": Family("timm", timm_vit, images(16)),
    "timm vit, norm of heads": Family("timm", lambda t: timm_vit(t, 24, 3, qk_norm=True), images(16)),
    "timm vit, gate": Family("timm", lambda t: gated(timm_vit(t)), images(16)),
    "timm deit-tiny": Family("timm", lambda t: timm_vit(t, 48, 3), images(16), ("head_dim",)),
    "timm beit": Family("timm", lambda t: beit(t, use_rel_pos_bias=True), images(16)),
    "timm swin": Family("timm", lambda t: timm_swin(t, ""), images(32), STAGES),
    "timm swin v2": Family("timm", lambda t: timm_swin(t, "_v2"), images(32), STAGES),
    "torchvision vit": Family(
        "torchvision", lambda t: t.models.VisionTransformer(16, 8, 2, 4, 32, 48, num_classes=5), images(16)
    ),
    "torchvision swin": Family("torchvision", lambda t: torchvision_swin(t, ""), images(32), STAGES),
    "torchvision swin v2": Family("torchvision", lambda t: torchvision_swin(t, "V2"), images(32), STAGES),
    "bert": Family("transformers", hugging("Bert", **TEXT), text),
    "roberta": Family("transformers", hugging("Roberta", **TEXT), text),
    "electra": Family("transformers", hugging("Electra", embedding_size=16, **TEXT), text),
    "albert": Family("transformers", hugging("Albert", embedding_size=16, **TEXT), text),
    "distilbert": Family("transformers", hugging("DistilBert", **DISTILBERT), text),
    "llama": Family("transformers", hugging("Llama", pad_token_id=0, **TEXT), text),
    "vit": Family("transformers", hugging("ViT", num_attention_heads=4, **VIT), images(16)),
    "deit": Family(
        "transformers", hugging("DeiT", **{**VIT, "hidden_size": 48}, num_attention_heads=3), images(16), ("head_dim",)
    ),
    "swin": Family("transformers", hugging("Swin", **SWIN), images(32), STAGES),
    "swin v2": Family("transformers", hugging("Swinv2", **SWIN), images(32), STAGES),
}


def gated(model: nn.Module) -> nn.Module:
    """Give each attention timm's gate on its output, without asking its version for the argument."""
    for block in model.blocks:
        if not hasattr(block.attn, "gate"):
            pytest.skip("this timm has no gate")
        block.attn.gate = nn.Linear(32, 32)
    return model


def library_of(family: Family) -> Any:
    """Return the library that a family needs, or skip the test."""
    if not family.needs:
        return None
    for name in ("nms", "qnms"):  # PyPI's torchvision looks for them, and a CPU build of torch has them not
        if not hasattr(torch.ops.torchvision, name):
            torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return pytest.importorskip(family.needs)


def make(family: Family, seed: int = 0) -> nn.Module:
    """Build a model whose weights are large enough for attention to matter, and differ everywhere."""
    library = library_of(family)
    torch.manual_seed(seed)
    model = family.build(library).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            # Norms' factors stay near 1, tables and biases get values.
            parameter.copy_(torch.randn_like(parameter) * 0.2 + (parameter if parameter.ndim == 1 else 0))
    return model


def groups_of(model: nn.Module) -> list[AttentionGroup]:
    return [group for group in attention_groups(model) if isinstance(group, AttentionGroup)]


def some_units(model: nn.Module, seed: int) -> Chosen:
    """Choose some units of every group by chance: at least one goes and one stays."""
    generator = torch.Generator().manual_seed(seed)
    chosen = {}
    for group in groups_of(model):
        most = len(group.units) - (8 if group.kind == "head_dim" else 1)
        number = int(torch.randint(1, most + 1, (), generator=generator))
        picked = torch.randperm(len(group.units), generator=generator)[:number].tolist()
        chosen[group.name] = [channel for unit in picked for channel in group.units[unit]]
    return chosen


def cut(model: nn.Module, chosen: Chosen) -> nn.Module:
    result = copy.deepcopy(model)
    for name, channels in chosen.items():
        cut_attention(result, name, channels)
    return result


def size(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
