"""Image augmentation that can be replayed: the random numbers are a hash of (seed, view, sample), not a stream.

So a view of a sample is the same bytes in any batch, any order, any process and after any resume, and a teacher's
logits on it can be kept.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_MASK = (1 << 64) - 1
_GAMMA = 0x9E3779B97F4A7C15
_MIX = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))


def hash_words(*words: int) -> int:
    """Return a 64-bit hash of whole numbers (splitmix64, Steele, Lea and Flood 2014, applied word by word)."""
    state = 0
    for word in words:
        state = ((state ^ (word & _MASK)) + _GAMMA) & _MASK
        for shift, factor in _MIX:
            state = ((state ^ (state >> shift)) * factor) & _MASK
        state ^= state >> 31
    return state


def counter_hash(key: int, index: Tensor) -> Tensor:
    """Return output number ``index`` (int64 [B], from 0) of splitmix64 started at ``key``, as int64 bits [B]."""
    # int64 arithmetic wraps as uint64 does; only the right shift differs, so its sign bits are masked off.
    state = (index + 1) * _signed(_GAMMA) + _signed(key)
    for shift, factor in _MIX:
        state = (state ^ _shift_right(state, shift)) * _signed(factor)
    return state ^ _shift_right(state, 31)


def draw(bits: Tensor, place: int, limit: int) -> Tensor:
    """Turn one third (``place`` 0, 1 or 2) of hashed bits, int64 [B], into whole numbers in [0, limit).

    A third is 21 bits; the bias is below limit / 2^21.
    """
    return ((_shift_right(bits, 1 + 21 * place) & 0x1FFFFF) * limit) >> 21


def shift_and_flip(images: Tensor, index: Tensor, *, seed: int, view: int, padding: int, flip: bool) -> Tensor:
    """Return each image shifted by up to ``padding`` pixels each way (zeros come in), mirrored half of the time.

    ``images`` is uint8 [B, H, W, C]; ``index`` int64 [B] are the samples' numbers. The result has the same shape.
    """
    batch, height, width, _ = images.shape
    bits = counter_hash(hash_words(seed, view), index)
    rows, columns = draw(bits, 0, 2 * padding + 1), draw(bits, 1, 2 * padding + 1)
    padded = F.pad(images, (0, 0, padding, padding, padding, padding))
    # Every window is a view; indexing copies only the chosen one of each image: [B, C, H, W].
    windows = padded.unfold(1, height, 1).unfold(2, width, 1)
    chosen = windows[torch.arange(batch, device=images.device), rows, columns]
    if flip:
        mirrored = draw(bits, 2, 2).bool()
        chosen[mirrored] = chosen[mirrored].flip(3)
    return chosen.permute(0, 2, 3, 1).contiguous()


def _signed(value: int) -> int:
    value &= _MASK
    return value - (1 << 64) if value >> 63 else value


def _shift_right(value: Tensor, by: int) -> Tensor:
    return (value >> by) & ((1 << (64 - by)) - 1)
