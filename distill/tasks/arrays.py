"""Numbers as users hold them: NumPy arrays of any byte order, tensors with a history, sparse or without values."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from distill.benchmarks.parse import native
from distill.errors import UserError
from distill.types import Array


def as_array(title: str, values: Any) -> Array:
    """Return values as an array in this machine's byte order; bfloat16, which NumPy lacks, as float32.

    ``title`` opens the message of an error.

    Raises:
        UserError: there are no values, some are masked, or they are no rectangular array.
    """
    if isinstance(values, Tensor):
        return as_tensor(title, values).numpy()
    if isinstance(values, np.ma.MaskedArray) and np.ma.is_masked(values):
        raise UserError(f"{title}: has masked values; write what stands for them with .filled(value), or drop the rows")
    try:
        return native(np.asarray(values))
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(
            f"{title}: is no array of numbers ({' '.join(str(error).split())}); give np.stack of rows"
        ) from error


def as_tensor(title: str, values: Tensor) -> Tensor:
    """Return a tensor on the CPU without a history, dense, bfloat16 as float32. Raises UserError for one on meta."""
    if values.is_meta:
        raise UserError(f"{title}: is a tensor on the device meta, which has no values; make it on the CPU")
    tensor = values.detach()
    if tensor.layout != torch.strided:
        tensor = tensor.to_dense()
    if tensor.is_quantized:
        tensor = tensor.dequantize()
    tensor = tensor.resolve_conj().resolve_neg().cpu()
    return tensor.float() if tensor.dtype == torch.bfloat16 else tensor
