"""Layers that torch-pruning does not cut: RMS norms, and recurrent layers, of which it sees every gate."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch_pruning as tp
from torch import Tensor, nn

from distill.prune.modules import set_tensor


class RMSNormPruner(tp.pruner.function.BasePruningFunc):  # type: ignore[misc]
    """Narrows an RMS norm over one axis."""

    def prune_out_channels(self, layer: nn.RMSNorm, idxs: Sequence[int]) -> nn.Module:
        """Keep all channels but these."""
        (width,) = layer.normalized_shape
        if layer.elementwise_affine:
            _keep(layer, "weight", width, idxs, axis=0)
        layer.normalized_shape = (width - len(set(idxs)),)
        return layer

    prune_in_channels = prune_out_channels

    def get_out_channels(self, layer: nn.RMSNorm) -> int:
        """Return the width."""
        return layer.normalized_shape[-1]

    get_in_channels = get_out_channels


class RecurrentPruner(tp.pruner.function.BasePruningFunc):  # type: ignore[misc]
    """Narrows what a recurrent layer reads; what it makes stays."""

    def prune_in_channels(self, layer: nn.RNNBase, idxs: Sequence[int]) -> nn.Module:
        """Read all channels but these."""
        for name in _readers(layer):
            _keep(layer, name, layer.input_size, idxs, axis=1)
        layer.input_size -= len(set(idxs))
        return layer

    def prune_out_channels(self, layer: nn.RNNBase, idxs: Sequence[int]) -> nn.Module:
        """Refuse: groups with such a member are not cut."""
        raise NotImplementedError(f"the {layer.hidden_size} channels of a {type(layer).__name__}, {len(idxs)} of them")

    def get_in_channels(self, layer: nn.RNNBase) -> int:
        """Return how many channels it reads."""
        return layer.input_size

    def get_out_channels(self, layer: nn.RNNBase) -> int:
        """Return how many channels it makes."""
        return (layer.proj_size or layer.hidden_size) * (2 if layer.bidirectional else 1)


RECURRENT = RecurrentPruner()
PRUNERS = {nn.RMSNorm: RMSNormPruner(), **dict.fromkeys((nn.LSTM, nn.GRU, nn.RNN), RECURRENT)}


@torch.no_grad()
def ignore_inputs(layer: nn.RNNBase, channels: Sequence[int]) -> None:
    """Let a recurrent layer read nothing of these channels, in place."""
    for name in _readers(layer):
        getattr(layer, name)[:, list(channels)] = 0


def input_share(layer: nn.RNNBase) -> float:
    """Return the share of a recurrent layer's weights that multiply what comes in."""
    reading = sum(layer.get_parameter(name).numel() for name in _readers(layer))
    return reading / sum(parameter.numel() for parameter in layer.parameters() if parameter.ndim > 1)


class _Opaque(torch.autograd.Function):
    """Stands for a layer: all that it returns depends on what it reads, in one step."""

    @staticmethod
    def forward(ctx: Any, states: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(tensor.clone() for tensor in tensors[1 + states :])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        raise NotImplementedError("it is traced only")


@contextmanager
def recurrent_in_one_step(model: nn.Module) -> Iterator[None]:
    """Let autograd see each recurrent layer as one step from its input, and none of its gates; packed rows show all."""
    with ExitStack() as stack:
        for module in model.modules():
            if isinstance(module, nn.RNNBase):
                stack.callback(module.__dict__.pop, "forward", None)
                module.forward = _in_one_step(module.forward)
        yield


def _in_one_step(forward: Any) -> Any:
    def wrapped(input: Any, hx: Any = None) -> Any:
        if not isinstance(input, Tensor) or not input.requires_grad:
            return forward(input, hx)
        with torch.no_grad():
            output, state = forward(input, hx)
        several = isinstance(state, tuple)
        states = state if several else (state,)
        starts = hx if isinstance(hx, tuple) else () if hx is None else (hx,)
        output, *states = _Opaque.apply(len(starts), input, *starts, output, *states)  # type: ignore[no-untyped-call]
        return output, tuple(states) if several else states[0]

    return wrapped


def _readers(layer: nn.RNNBase) -> tuple[str, ...]:
    return ("weight_ih_l0", "weight_ih_l0_reverse") if layer.bidirectional else ("weight_ih_l0",)


def _keep(layer: nn.Module, name: str, width: int, removed: Sequence[int], *, axis: int) -> None:
    value: Tensor = getattr(layer, name)
    index = torch.tensor(sorted(set(range(width)) - set(removed)), device=value.device)
    set_tensor(layer, name, value.detach().index_select(axis, index))
