"""Attention of torch, torchvision and timm whose heads' width does not follow from the model's.

The originals end in ``reshape(B, N, C)`` with the input's C, or assert that it is their heads' width. A stand-in takes
over everything that such a module holds under the same names, so checkpoints still fit; only ``forward`` is new.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill.errors import UserError


class MultiheadAttention(nn.MultiheadAttention):
    """Self- or cross-attention between tensors of ``embed_dim`` features, in ``num_heads`` heads of ``head_dim``.

    Takes the place of ``nn.MultiheadAttention``, whose forward asserts ``num_heads * head_dim == embed_dim``. Same
    parameters, narrower: in_proj_weight [3 * heads * head_dim, embed_dim], out_proj.weight [embed_dim,
    heads * head_dim]. Made by ``stand_in_`` only.
    """

    @property
    def _qkv_same_embed_dim(self) -> bool:
        """False: torch's encoder layer asks this before its fast path, which takes full-width weights only."""
        return False

    @_qkv_same_embed_dim.setter
    def _qkv_same_embed_dim(self, value: bool) -> None:
        """Take what ``__setstate__`` of the class above may set."""

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Return the output and, with ``need_weights``, the attention; shapes and masks as in the class above.

        Raises:
            ValueError: ``is_causal`` without ``attn_mask`` (it only says what the mask is), or nested tensors.
        """
        if is_causal and attn_mask is None:
            raise ValueError("is_causal says that attn_mask is causal; give attn_mask too")
        if query.is_nested or key.is_nested or value.is_nested:
            raise ValueError("attention with fewer heads takes no nested tensors; give padded ones and a mask")
        batched = query.dim() == 3
        if not batched:
            query, key, value = (x.unsqueeze(0) for x in (query, key, value))
            key_padding_mask = None if key_padding_mask is None else key_padding_mask.unsqueeze(0)
        elif not self.batch_first:
            query, key, value = (x.transpose(0, 1) for x in (query, key, value))
        q, k, v = self._project(query, key, value)
        mask = self._merged(key_padding_mask, attn_mask, q)
        dropout = self.dropout if self.training else 0.0
        weights: Tensor | None = None
        if need_weights:
            scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
            weights = F.dropout(torch.softmax(scores if mask is None else scores + mask, dim=-1), dropout)
            mixed = weights @ v
            weights = weights.mean(1) if average_attn_weights else weights
        else:
            mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
        output = self.out_proj(mixed.transpose(1, 2).flatten(2))
        if not batched:
            return output.squeeze(0), None if weights is None else weights.squeeze(0)
        return output if self.batch_first else output.transpose(0, 1), weights

    def _project(self, *inputs: Tensor) -> list[Tensor]:
        """Return queries, keys and values, each [batch, heads, positions, head_dim]."""
        weights = self.in_proj_weight.chunk(3)
        biases = (None,) * 3 if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
        projected = (F.linear(x, w, b) for x, w, b in zip(inputs, weights, biases, strict=True))
        return [x.reshape(*x.shape[:-1], self.num_heads, -1).transpose(1, 2) for x in projected]

    def _merged(self, padding: Tensor | None, mask: Tensor | None, q: Tensor) -> Tensor | None:
        """Return what is added to the scores, broadcastable to [batch, heads, queries, keys]; None for nothing."""
        parts = []
        if padding is not None:
            parts.append(_additive(padding, q)[:, None, None, :])
        if mask is not None:
            added = _additive(mask, q)
            parts.append(added if added.dim() == 2 else added.reshape(-1, self.num_heads, *added.shape[1:]))
        return sum(parts[1:], parts[0]) if parts else None


def _additive(mask: Tensor, like: Tensor) -> Tensor:
    """Turn a boolean mask, True where nobody may look, into minus infinities; a float mask is added as it is."""
    if mask.dtype is not torch.bool:
        return mask.to(like.dtype)
    return torch.zeros_like(mask, dtype=like.dtype).masked_fill(mask, -math.inf)


class ShiftedWindowAttention(nn.Module):
    """torchvision's Swin attention, versions 1 and 2 (torchvision.models.swin_transformer)."""

    window_size: Sequence[int]
    shift_size: Sequence[int]
    num_heads: int
    attention_dropout: float
    dropout: float
    qkv: nn.Linear
    proj: nn.Linear
    relative_position_index: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """Map [batch, height, width, channels] to the same shape."""
        height, width = x.shape[1:3]
        rows, columns = self.window_size
        x = F.pad(x, (0, 0, 0, -width % columns, 0, -height % rows))
        # A picture of one window has nothing to shift.
        down, right = (
            0 if window >= side else shift
            for window, side, shift in zip(self.window_size, x.shape[1:3], self.shift_size, strict=True)
        )
        x = torch.roll(x, (-down, -right), (1, 2)) if down or right else x
        up, across = x.shape[1] // rows, x.shape[2] // columns
        grid = x.reshape(-1, up, rows, across, columns, x.shape[3]).transpose(2, 3)
        windows = grid.flatten(3, 4).flatten(0, 2)
        bias = self._position_bias()
        if down or right:
            # [windows, 1, N, N] for a picture, in front of the heads' [1, heads, N, N]
            mask = _shift_mask(x.shape[1], x.shape[2], (rows, columns), (down, right), x)[:, None]
            bias = (bias + mask).repeat(x.shape[0], 1, 1, 1)
        mixed = self._attend(windows, bias)
        mixed = mixed.reshape(*grid.shape[:-1], -1).transpose(2, 3).flatten(3, 4).flatten(1, 2)
        mixed = torch.roll(mixed, (down, right), (1, 2)) if down or right else mixed
        return mixed[:, :height, :width].contiguous()

    def _attend(self, windows: Tensor, bias: Tensor) -> Tensor:
        qkv_bias: Tensor | None = self.qkv.bias
        scale = getattr(self, "logit_scale", None)
        if scale is not None and qkv_bias is not None:
            q_bias, k_bias, v_bias = qkv_bias.chunk(3)
            qkv_bias = torch.cat((q_bias, torch.zeros_like(k_bias), v_bias))  # version 2 has no bias on the keys
        qkv = F.linear(windows, self.qkv.weight, qkv_bias)
        dropout = self.attention_dropout if self.training else 0.0
        mixed = self.proj(_attention(qkv, self.num_heads, bias, dropout, scale))
        return F.dropout(mixed, self.dropout, self.training)

    def _position_bias(self) -> Tensor:
        """Return what is added to the scores for the positions: [1, heads, N, N]."""
        area = math.prod(self.window_size)
        if "cpb_mlp" in self._modules:
            return _continuous_bias(self, area)
        table = self.get_parameter("relative_position_bias_table")
        return table[self.relative_position_index].reshape(area, area, -1).permute(2, 0, 1).unsqueeze(0)


class _TimmAttention(nn.Module):
    num_heads: int
    qkv: nn.Linear
    proj: nn.Linear
    attn_drop: nn.Dropout
    proj_drop: nn.Dropout

    def _attend(self, x: Tensor, bias: Tensor | None, logit_scale: Tensor | None = None) -> Tensor:
        """Attend with timm's biases of queries, keys and values, which are parameters of the attention."""
        parts = [getattr(self, f"{role}_bias", None) for role in "qkv"]
        biases = [part for part in parts if part is not None]
        qkv: Tensor = self.qkv(x)
        qkv = qkv + torch.cat(biases) if biases else qkv
        dropout = self.attn_drop.p if self.training else 0.0
        output: Tensor = self.proj_drop(self.proj(_attention(qkv, self.num_heads, bias, dropout, logit_scale)))
        return output


class BeitAttention(_TimmAttention):
    """timm's BEiT attention (timm.models.beit)."""

    window_size: Sequence[int] | None
    relative_position_index: Tensor

    def forward(self, x: Tensor, shared_rel_pos_bias: Tensor | None = None) -> Tensor:
        """Map [batch, tokens, channels] to the same shape; the bias is [1, heads, tokens, tokens]."""
        bias = shared_rel_pos_bias
        table = self._parameters.get("relative_position_bias_table")
        if table is not None and self.window_size is not None:
            tokens = math.prod(self.window_size) + 1
            own = table[self.relative_position_index.flatten()].reshape(tokens, tokens, -1).permute(2, 0, 1)
            bias = own.unsqueeze(0) if bias is None else own.unsqueeze(0) + bias
        return self._attend(x, bias)


class WindowAttentionV2(_TimmAttention):
    """timm's Swin attention, version 2 (timm.models.swin_transformer_v2)."""

    window_size: Sequence[int]
    logit_scale: Tensor

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Map windows [pictures * windows, N, channels] to the same shape; the mask is [windows, N, N]."""
        bias = _continuous_bias(self, math.prod(self.window_size))
        if mask is not None:
            bias = (bias + mask[:, None]).repeat(x.shape[0] // mask.shape[0], 1, 1, 1)
        return self._attend(x, bias, self.logit_scale)


def _attention(
    qkv: Tensor, heads: int, bias: Tensor | None, dropout: float, logit_scale: Tensor | None = None
) -> Tensor:
    """Mix [B, N, 3 * heads * d] to [B, N, heads * d]; with a logit scale by the cosine of queries and keys."""
    q, k, v = qkv.reshape(*qkv.shape[:-1], 3, heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
    if logit_scale is None:
        scores = q * q.shape[-1] ** -0.5 @ k.transpose(-2, -1)
    else:
        scores = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1)
        scores = scores * logit_scale.clamp(max=math.log(100.0)).exp()
    weights = torch.softmax(scores if bias is None else scores + bias, dim=-1)
    mixed: Tensor = F.dropout(weights, dropout) @ v
    return mixed.transpose(1, 2).flatten(2)


def _continuous_bias(module: nn.Module, area: int) -> Tensor:
    """Return the position bias that a small network computes, [1, heads, N, N] (Swin v2, arXiv 2111.09883)."""
    table = module.get_submodule("cpb_mlp")(module.get_buffer("relative_coords_table")).flatten(0, -2)
    picked = table[module.get_buffer("relative_position_index").flatten()].reshape(area, area, -1)
    bias: Tensor = 16 * torch.sigmoid(picked.permute(2, 0, 1))
    return bias.unsqueeze(0)


def _shift_mask(height: int, width: int, window: tuple[int, int], shift: tuple[int, int], like: Tensor) -> Tensor:
    """Return -100 between pixels that only the shift brought into one window, else 0: [windows, N, N]."""
    regions = like.new_zeros((height, width))
    bounds = [((0, -size), (-size, -step), (-step, None)) for size, step in zip(window, shift, strict=True)]
    for number, (top, bottom) in enumerate(bounds[0]):
        for other, (left, right) in enumerate(bounds[1]):
            regions[top:bottom, left:right] = 3 * number + other
    grid = regions.reshape(height // window[0], window[0], width // window[1], window[1]).transpose(1, 2)
    flat = grid.flatten(2).flatten(0, 1)
    return torch.where(flat[:, None, :] != flat[:, :, None], -100.0, 0.0).to(like.dtype)


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
