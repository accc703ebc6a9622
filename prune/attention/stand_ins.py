"""Modules whose forward ties the attention's width to the model's are exchanged for ones that do not.

A stand-in takes over everything that the module holds under the same names, so checkpoints still fit.
"""

from __future__ import annotations

from torch import nn

from distill.errors import UserError
from distill.prune.attention.multihead import MultiheadAttention
from distill.prune.attention.windows import BeitAttention, ShiftedWindowAttention, WindowAttentionV2

# By the full name of the class that is exchanged: neither torchvision nor timm has to be there.
_STAND_INS: dict[str, type[nn.Module]] = {
    "torch.nn.modules.activation.MultiheadAttention": MultiheadAttention,
    "torchvision.models.swin_transformer.ShiftedWindowAttention": ShiftedWindowAttention,
    "torchvision.models.swin_transformer.ShiftedWindowAttentionV2": ShiftedWindowAttention,
    "timm.models.beit.Attention": BeitAttention,
    "timm.models.swin_transformer_v2.WindowAttention": WindowAttentionV2,
}


def needs_stand_in(module: nn.Module) -> bool:
    """Tell a module that has to be exchanged before its attention can be narrowed."""
    return _full_name(module) in _STAND_INS


def is_stand_in(module: nn.Module) -> bool:
    """Tell a module that was exchanged: a freshly built model needs ``stand_in_`` there before it takes the weights."""
    return isinstance(module, tuple(_STAND_INS.values()))


def stand_in_(model: nn.Module, name: str) -> nn.Module:
    """Exchange the named module in place, and return what is there now; one that needs no exchange stays.

    Same parameters and buffers, names, hooks and outputs. A ``nn.TransformerEncoder`` around it no longer packs padded
    batches into nested tensors, which its layers could only take on the fast path.

    Raises:
        UserError: the named module is the model itself, which cannot be exchanged in place.
    """
    module = model.get_submodule(name)
    if not needs_stand_in(module):
        return module
    if not name:
        raise UserError(f"a {type(module).__name__} alone cannot be exchanged in place; put it into another module")
    kind = _STAND_INS[_full_name(module)]
    result = kind.__new__(kind)
    result.__dict__.update(module.__dict__)
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, result)
    for outer, encoder in model.named_modules():
        if isinstance(encoder, nn.TransformerEncoder) and (not outer or name.startswith(outer + ".")):
            encoder.use_nested_tensor = False
    return result


def _full_name(module: nn.Module) -> str:
    return f"{type(module).__module__}.{type(module).__qualname__}"
