"""Statistics over channels, such as a gate's mean or a norm's root mean square, when some of the channels are gone.

They are others then, which is no mistake: a cut model is compared with one whose statistics are over what remains.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

# Functions of channels to which their order is nothing. What counts or sorts them is none.
_SYMMETRIC = (
    *("mean", "sum", "prod", "amax", "amin", "max", "min", "median", "topk", "logsumexp", "_softmax", "_log_softmax"),
    *("var", "std", "var_mean", "std_mean", "norm", "linalg_vector_norm"),
    *("native_layer_norm", "native_group_norm", "_fused_rms_norm"),
)
_TOLERANCES = (0.0, 1e-6, 1e-5, 1e-4, 1e-3)  # of the largest value


@dataclass(frozen=True)
class _Call:
    name: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]


class Recorded(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes the statistics that are computed inside: what they read, and what they say."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: list[_Call] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Compute, and note."""
        result, name = function(*args, **kwargs or {}), str(function.overloadpacket.__name__)
        if name in _SYMMETRIC:
            self.note(_Call(name, tuple(_floats(args)), tuple(_floats(result))))
        return result

    def note(self, call: _Call) -> None:
        """Keep what was computed."""
        self.calls.append(call)


class Repeated(Recorded):  # type: ignore[no-untyped-call]
    """Lets statistics over more channels say what they say of those alone that the recorded ones read.

    Args:
        calls: of the same model with fewer channels, in their order.
    """

    def __init__(self, calls: Sequence[_Call]) -> None:
        super().__init__()
        self._recorded = iter(calls)

    def note(self, call: _Call) -> None:
        """Write what was recorded over what was computed, where that was read from some of the same channels."""
        recorded = next(self._recorded, None)
        if recorded is not None and recorded.name == call.name:
            _overwrite(call.outputs, call.inputs, recorded)


def _overwrite(outputs: Sequence[Tensor], inputs: Sequence[Tensor], call: _Call) -> None:
    axis = _axis_cut(inputs[0], call.inputs[0]) if inputs and call.inputs else None
    if axis is None or len(inputs) != len(call.inputs) or len(outputs) != len(call.outputs):
        return
    pairs = [*zip(outputs, call.outputs, strict=True)]
    if all(wide.shape != narrow.shape and _axis_cut(wide, narrow) != axis for wide, narrow in pairs):
        return  # each channel is for itself
    places = _places(inputs, call.inputs)
    if places is None:
        return
    wides, narrows = places
    for wide, narrow in pairs:
        if wide.shape == narrow.shape:
            wide.copy_(narrow)
        elif _axis_cut(wide, narrow) == axis:
            wide.index_copy_(axis, wides, narrow.index_select(axis, narrows))


def _axis_cut(wide: Tensor, narrow: Tensor) -> int | None:
    """Return the only axis that is shorter in the second tensor."""
    if wide.ndim != narrow.ndim:
        return None
    axes = [axis for axis, (more, less) in enumerate(zip(wide.shape, narrow.shape, strict=True)) if more != less]
    return axes[0] if len(axes) == 1 and wide.shape[axes[0]] > narrow.shape[axes[0]] else None


def _places(wide: Sequence[Tensor], narrow: Sequence[Tensor]) -> tuple[Tensor, Tensor] | None:
    """Return which channels of the wide tensors are which of the narrow ones; None where these are no part of them.

    Channels with equal values, such as dead ones, are all the same one.
    """
    rows, wanted = [], []
    for more, less in zip(wide, narrow, strict=True):
        axis = _axis_cut(more, less)
        size = more.abs().nan_to_num(posinf=0.0).max().clamp_min(1e-30)
        if axis is not None:
            rows.append(more.movedim(axis, 0).reshape(more.shape[axis], -1) / size)
            wanted.append(less.movedim(axis, 0).reshape(less.shape[axis], -1) / size)
        elif more.shape != less.shape or not torch.allclose(more, less, rtol=_TOLERANCES[-1], atol=_TOLERANCES[-1]):
            return None
    have, want = torch.cat(rows, 1), torch.cat(wanted, 1)
    for tolerance in _TOLERANCES:  # the closest, where several are alike
        firsts: list[int] = []
        for place, row in enumerate(have):
            # The first that fits leaves the most to choose from.
            if len(firsts) < len(want) and bool(((row - want[len(firsts)]).abs() <= tolerance).all()):
                firsts.append(place)
        if len(firsts) == len(want):
            break
    else:
        return None
    kinds = torch.unique(have, dim=0, return_inverse=True)[1].tolist()
    number_of = {kinds[place]: number for number, place in enumerate(firsts)}
    alike = {place: number_of[kind] for place, kind in enumerate(kinds) if kind in number_of}
    numbers = alike | {place: number for number, place in enumerate(firsts)}
    return torch.tensor([*numbers], device=have.device), torch.tensor([*numbers.values()], device=have.device)


def _floats(values: Any) -> Iterator[Tensor]:
    if isinstance(values, Tensor):
        if values.is_floating_point():
            yield values
    elif isinstance(values, list | tuple):
        for value in values:
            yield from _floats(value)
    elif isinstance(values, Mapping):
        yield from _floats(list(values.values()))
