"""Content hashes of arrays and settings."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

_SLICE = 1 << 26


class Digest:
    """Hashes values with their types and shapes, so that two different contents do not run into each other."""

    def __init__(self) -> None:
        self._hash = hashlib.blake2b(digest_size=16)

    def add(self, value: Any) -> Digest:
        """Take in a tensor, an array, bytes, a mapping, a sequence or any value that JSON can say."""
        torch = sys.modules.get("torch")  # without it nothing is a tensor, and hashing a text needs no torch
        if torch is not None and isinstance(value, torch.Tensor):
            self._head("tensor", str(value.dtype), list(value.shape))
            # As bytes: NumPy has no bfloat16.
            self._bytes(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
        elif isinstance(value, np.ndarray):
            self._head("array", value.dtype.str, list(value.shape))
            if value.dtype == object:  # texts: as one array of characters each would take the longest one's room
                for text in value.reshape(-1).tolist():
                    self.add(str(text).encode("utf-8", "surrogatepass"))
            else:
                self._bytes(value)
        elif isinstance(value, bytes):
            self._head("bytes", len(value))
            self._hash.update(value)
        elif isinstance(value, Mapping):
            self._head("mapping", [str(key) for key in value])
            for item in value.values():
                self.add(item)
        elif isinstance(value, tuple | list):
            self._head("sequence", len(value))
            for item in value:
                self.add(item)
        else:
            self._head("value", type(value).__name__, json.dumps(value, sort_keys=True, default=_named))
        return self

    def hexdigest(self) -> str:
        """Return the hash, 32 hexadecimal digits."""
        return self._hash.hexdigest()

    def _head(self, *parts: Any) -> None:
        self._hash.update(json.dumps(parts).encode() + b"\0")

    def _bytes(self, array: np.ndarray[Any, Any]) -> None:
        # In slices: a memory map larger than the memory is read once, never held.
        flat = np.ascontiguousarray(array).reshape(-1)
        step = max(1, _SLICE // max(1, flat.itemsize))
        for start in range(0, len(flat), step):
            self._hash.update(flat[start : start + step].view(np.uint8).data)


def _named(value: Any) -> str:
    # An object without a text form would print its address, which differs in every process.
    text = repr(value)
    return type(value).__qualname__ if " at 0x" in text else text
