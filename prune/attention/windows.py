"""Vision attention of torchvision and timm, with an output width that is the values', not the input's.

The originals end in ``reshape(B, N, C)`` with the input's C, which ties heads * head_dim to it. Only ``forward`` is
written anew, after theirs; everything that the modules hold comes from them (``stand_in_``).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


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


class BeitAttention(nn.Module):
    """timm's BEiT attention (timm.models.beit)."""

    num_heads: int
    window_size: Sequence[int] | None
    qkv: nn.Linear
    proj: nn.Linear
    attn_drop: nn.Dropout
    proj_drop: nn.Dropout
    relative_position_index: Tensor

    def forward(self, x: Tensor, shared_rel_pos_bias: Tensor | None = None) -> Tensor:
        """Map [batch, tokens, channels] to the same shape; the bias is [1, heads, tokens, tokens]."""
        bias = shared_rel_pos_bias
        table = self._parameters.get("relative_position_bias_table")
        if table is not None and self.window_size is not None:
            tokens = math.prod(self.window_size) + 1
            own = table[self.relative_position_index.flatten()].reshape(tokens, tokens, -1).permute(2, 0, 1)
            bias = own.unsqueeze(0) if bias is None else own.unsqueeze(0) + bias
        dropout = self.attn_drop.p if self.training else 0.0
        mixed = _attention(_projected(self, x), self.num_heads, bias, dropout)
        output: Tensor = self.proj_drop(self.proj(mixed))
        return output


class WindowAttentionV2(nn.Module):
    """timm's Swin attention, version 2 (timm.models.swin_transformer_v2)."""

    num_heads: int
    window_size: Sequence[int]
    qkv: nn.Linear
    proj: nn.Linear
    attn_drop: nn.Dropout
    proj_drop: nn.Dropout
    logit_scale: Tensor

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Map windows [pictures * windows, N, channels] to the same shape; the mask is [windows, N, N]."""
        bias = _continuous_bias(self, math.prod(self.window_size))
        if mask is not None:
            bias = (bias + mask[:, None]).repeat(x.shape[0] // mask.shape[0], 1, 1, 1)
        dropout = self.attn_drop.p if self.training else 0.0
        mixed = _attention(_projected(self, x), self.num_heads, bias, dropout, self.logit_scale)
        output: Tensor = self.proj_drop(self.proj(mixed))
        return output


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


def _projected(module: BeitAttention | WindowAttentionV2, x: Tensor) -> Tensor:
    """Return queries, keys and values in one; timm keeps their biases as parameters of the attention."""
    parts = [getattr(module, f"{role}_bias", None) for role in "qkv"]
    biases = [part for part in parts if part is not None]
    projected: Tensor = module.qkv(x)
    return projected + torch.cat(biases) if biases else projected


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
