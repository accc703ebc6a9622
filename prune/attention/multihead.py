"""torch's multi-head attention, with heads whose width does not follow from the model's."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


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
