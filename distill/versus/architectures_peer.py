"""torch-pruning on one architecture: with its defaults, and with what its examples add for models with attention.

The ratio of channels is searched for, as its users would, until the multiply-accumulates come out as asked.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch_pruning as tp
from torch import nn

from distill.errors import UserError
from distill.prune import count

from .architectures_models import Case, heads_of, logits_of

Attention = tuple[nn.Module, str, list[nn.Linear]]
"""A module, the name of its attribute that counts its heads, and the projections that are split into them."""

_TRIES = 6
_CLOSE = 0.02
_HEADS = ("num_heads", "num_attention_heads", "n_heads")
_PROJECTIONS = ("qkv", "query", "key", "value", "q_proj", "k_proj", "v_proj", "q_lin", "k_lin", "v_lin")


def searched(
    model: nn.Module,
    case: Case,
    asked: float,
    prune: Callable[[nn.Module, Case, float], nn.Module],
    seconds: float,
) -> tuple[nn.Module, float, int]:
    """Prune copies at several ratios of channels; return what came closest to ``asked``, its ratio, and the tries.

    The first ratio is the one at which square layers lose as much as was asked for. What the first try raises passes
    through, and a first model that does not run is returned as it is; a later one that fails ends the search, as does
    the time being up.
    """
    args, kwargs = case.inputs(1)
    before = count(model, args, kwargs).macs
    low, high, ratio = 0.0, 1.0, 1 - (1 - asked) ** 0.5
    found: list[tuple[float, nn.Module, float]] = []
    begun = time.perf_counter()
    for tries in range(1, _TRIES + 1):
        try:
            pruned = prune(copy.deepcopy(model), case, ratio)
        except Exception:  # whatever it does is the answer
            if not found:
                raise
            break
        try:
            removed = 1 - count(pruned, args, kwargs).macs / before
        except UserError:
            if not found:
                return pruned, ratio, tries
            break
        found.append((abs(removed - asked), pruned, ratio))
        found = [min(found, key=lambda one: one[0])]
        spent = time.perf_counter() - begun
        if found[0][0] <= _CLOSE or spent * (tries + 1) / tries > seconds:
            break
        low, high = (low, ratio) if removed > asked else (ratio, high)
        ratio = (low + high) / 2
    _, best, ratio = found[0]
    return best, ratio, tries


def with_defaults(model: nn.Module, case: Case, ratio: float) -> nn.Module:
    """Prune as its README does: group magnitude, the classifier ignored, everything else left as it is."""
    _pruner(model, case, ratio, heads_of(model, case)).step()
    return model


def with_extras(model: nn.Module, case: Case, ratio: float) -> nn.Module:
    """Prune as its examples do: heads are named before, and attention is told its new sizes afterwards.

    What its scripts for torchvision's ViT, timm's ViTs, and transformers' BERT, ViT and Swin do, under the names that
    these classes have by now.
    """
    attentions, ignored, options = _extras(model)
    pruner = _pruner(model, case, ratio, [*heads_of(model, case), *ignored], **options)
    pruner.step()
    for owner, name, layers in attentions:
        _resize(owner, name, layers, pruner.num_heads[layers[0]])
    if "round_to" in options:
        model.hidden_dim = model.conv_proj.out_channels  # type: ignore[union-attr]
    return model


def has_extras(model: nn.Module) -> bool:
    """Tell whether its examples have anything to add for this model."""
    attentions, ignored, options = _extras(model)
    return bool(attentions or ignored or options.keys() - {"num_heads"})


def _extras(model: nn.Module) -> tuple[list[Attention], list[nn.Module], dict[str, Any]]:
    """Return the attention modules, the layers to ignore besides the classifier, and the pruner's options."""
    attentions = list(_attentions(model))
    options: dict[str, Any] = {
        "num_heads": {layer: getattr(owner, name) for owner, name, layers in attentions for layer in layers},
    }
    if type(model).__name__ == "VisionTransformer" and hasattr(model, "conv_proj"):
        options["round_to"] = model.encoder.layers[0].num_heads  # type: ignore[union-attr, index]
    merging = {type(module) for module in model.modules() if type(module).__name__ == "SwinPatchMerging"}
    if merging:
        options["customized_pruners"] = {kind: _SwinPatchMerging() for kind in merging}
        options["root_module_types"] = (nn.Linear, nn.LayerNorm, *merging)
    return attentions, [one.out_proj for one in model.modules() if isinstance(one, nn.MultiheadAttention)], options


def _pruner(model: nn.Module, case: Case, ratio: float, ignored: Sequence[nn.Module], **options: Any) -> Any:
    args, kwargs = case.inputs(1)
    # Its default dicts are shared between pruners, so that one would know the heads of the one before.
    fresh: dict[str, Any] = {name: {} for name in ("in_channel_groups", "out_channel_groups", "num_heads")}
    return tp.pruner.BasePruner(
        model,
        kwargs or args[0],
        importance=tp.importance.GroupMagnitudeImportance(),
        pruning_ratio=ratio,
        ignored_layers=list(ignored),
        output_transform=logits_of,
        **(fresh | options),
    )


def _attentions(model: nn.Module) -> Iterator[Attention]:
    """Find what looks like attention."""
    for module in model.modules():
        layers = [layer for name, layer in module.named_children() if name in _PROJECTIONS]
        linear = [layer for layer in layers if isinstance(layer, nn.Linear)]
        counted = [name for name in _HEADS if isinstance(getattr(module, name, None), int)]
        if linear and counted:
            yield module, counted[0], linear


def _resize(owner: nn.Module, name: str, layers: Sequence[nn.Linear], heads: int) -> None:
    """Write an attention's new sizes into whatever attributes it has for them."""
    width = layers[0].out_features // (3 if len(layers) == 1 else 1)
    sizes = {"head_dim": width // heads, "attention_head_size": width // heads, "attn_dim": width}
    setattr(owner, name, heads)
    for attribute, value in (sizes | {"all_head_size": width}).items():
        if hasattr(owner, attribute):
            setattr(owner, attribute, value)


class _SwinPatchMerging(tp.BasePruningFunc):  # type: ignore[misc]
    """Four neighbours' channels side by side, as in its example for transformers' Swin."""

    def prune_out_channels(self, layer: Any, idxs: list[int]) -> Any:
        tp.prune_linear_out_channels(layer.reduction, idxs)
        return layer

    def prune_in_channels(self, layer: Any, idxs: list[int]) -> Any:
        width = layer.norm.normalized_shape[0] // 4
        repeated = [index + part * width for part in range(4) for index in idxs]
        tp.prune_linear_in_channels(layer.reduction, repeated)
        tp.prune_layernorm_out_channels(layer.norm, repeated)
        return layer

    def get_out_channels(self, layer: Any) -> int:
        return int(layer.reduction.out_features)

    def get_in_channels(self, layer: Any) -> int:
        return int(layer.norm.normalized_shape[0]) // 4
