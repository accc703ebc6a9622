"""A graph beside the module that it was exported from, on calls of the example's sizes and of others."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import onnxruntime
import torch
from onnx import ModelProto
from torch import Tensor

from distill.errors import UserError
from distill.export.parity_check import parity, run_onnx
from distill.export.wrapped_model import Core, Tensors

from .settings import ExportSettings

Axes = Mapping[int, str]  # the open axes of an input beside the batch, each with its name
_BATCHES = (1, 3)  # sizes other than the example's, at which the graph has to agree too
_OPTIMIZED = (
    f"the graph is right, but onnxruntime {onnxruntime.__version__} computes something else once it has optimized it: "
    "take another version, or write the operators that it fuses another way"
)


def require_parity(
    core: Core, proto: ModelProto, tensors: Tensors, axes: Mapping[str, Axes], settings: ExportSettings
) -> None:
    """Run a graph on the example and on calls of other sizes, and compare its logits with the module's.

    Raises:
        UserError: it does not run at a size, or is farther away there than the settings allow.
    """
    for size, probe in _probes(core, tensors, axes):
        _verify(core, proto, size, probe, settings)


def _probes(core: Core, tensors: Tensors, axes: Mapping[str, Axes]) -> Iterator[tuple[str, Tensors]]:
    """Yield calls of other sizes than the example's, after the example itself, each with what errors call its size."""
    rows = len(next(iter(tensors.values())))
    for size in dict.fromkeys((rows, *_BATCHES)):
        yield f"batch {size}", {name: _resized(tensor, 0, size) for name, tensor in tensors.items()}
    for label in dict.fromkeys(label for named in axes.values() for label in named.values()):
        places = [(name, axis) for name, named in axes.items() for axis, other in named.items() if other == label]
        length = tensors[places[0][0]].shape[places[0][1]]
        for size in (length // 2, length - 1, length + 1):
            probe = dict(tensors)
            for name, axis in places:
                probe[name] = _resized(probe[name], axis, size)
            try:
                core.eager(probe)
            except UserError:  # shorter than a window, or longer than a table of positions
                continue
            yield f"{label} {size}", probe
            break
        else:
            raise UserError(f"model={core.name}: takes no other {label} than {length}; do not leave this axis open")


def _verify(core: Core, proto: ModelProto, size: str, probe: Tensors, settings: ExportSettings) -> None:
    """Run the graph on a call and compare its logits with the module's."""
    expected, feed = core.eager(probe).float().numpy(), {name: tensor.numpy() for name, tensor in probe.items()}
    try:
        logits = run_onnx(proto, [feed])
    except UserError as error:
        raise UserError(f"model={core.name}: exported, but does not run at {size}: {error}") from error
    if logits.shape != expected.shape:
        raise UserError(f"model={core.name}: at {size} the graph gives {logits.shape}, not {expected.shape}")
    result = parity(expected, logits, atol=settings.atol, rtol=settings.rtol)
    if np.isfinite(expected).all() and not result.ok:
        as_written = parity(expected, run_onnx(proto, [feed], optimized=False), atol=settings.atol, rtol=settings.rtol)
        raise UserError(
            f"model={core.name}: at {size} the graph's logits are {result.max_abs:.3g} away from the module's, more "
            f"than {result.tolerance:.3g}; "
            + (_OPTIMIZED if as_written.ok else "forward does something that its graph does not show")
            + "".join(f"; {warning}" for warning in result.warnings)
        )


def _resized(tensor: Tensor, axis: int, size: int) -> Tensor:
    return tensor.index_select(axis, torch.arange(size) % tensor.shape[axis])
