"""Zeros in weights that stay zeros: kept through training, found again after loading, counted.

Hooks keep them, on one module: no parametrization, whose names would be other ones in a state dict, and no buffers,
which a fresh build of the model has not. Hooks are no part of a state dict; ``keep_zeros_`` on a reloaded model finds
the zeros again.
"""

from __future__ import annotations

import copy
import re
import weakref
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from distill.errors import UserError

Pattern = str | float
"""``"N:M"``, N weights of every M in a row stay, or the share of weights that become zero, in (0, 1)."""

# The weights of attention lie in nn.MultiheadAttention itself.
_WEIGHTS = ("weight", "in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")


def keep_zeros_(model: nn.Module, masks: Mapping[str, Tensor] | None = None) -> nn.Module:
    """Keep weights zero where ``masks`` are False, in place, and return the same model.

    Gradients are zero there, so that no optimizer moves these weights and gradient clipping does not see them; and the
    zeros are written again before each forward and into each state dict, should momentum from before, an average or
    loaded weights have filled them. Names, parameters and buffers stay as they are; a deepcopy keeps its zeros too.

    Args:
        model: the module whose forward is called in training.
        masks: parameter's name -> bool of its shape; those of ``masks_of`` when not given.

    Raises:
        UserError: a mask is not one of this model's, or there is none.
    """
    masks = masks_of(model) if masks is None else masks
    parameters = dict(model.named_parameters())
    for name, mask in masks.items():
        if name not in parameters or parameters[name].shape != mask.shape or mask.dtype != torch.bool:
            raise UserError(f"masks: {name!r} is no mask of one of the model's parameters; they are bool, same shape")
    if not masks:
        raise UserError("the model has no zeros to keep: none of its weights is sparse")
    release_(model)
    keeper = _Keeper({name: ~mask.detach() for name, mask in masks.items()})
    model.register_forward_pre_hook(keeper)
    model.register_state_dict_pre_hook(keeper)  # type: ignore[no-untyped-call]
    keeper(model)
    return model


def release_(model: nn.Module) -> nn.Module:
    """Take the hooks of ``keep_zeros_`` away, in place; return the same model, zeros and all."""
    for hooks in (model._forward_pre_hooks, model._state_dict_pre_hooks):
        for key in [key for key, hook in hooks.items() if isinstance(hook, _Keeper)]:
            keeper: Any = hooks.pop(key)
            keeper.release()
    return model


def keeps_zeros(model: nn.Module) -> bool:
    """Tell whether ``keep_zeros_`` holds on this module, so that layers inside must keep their widths."""
    return any(isinstance(hook, _Keeper) for hook in model._forward_pre_hooks.values())


def masks_of(model: nn.Module) -> dict[str, Tensor]:
    """Return where the sparse weights are not zero: parameter's name -> bool of its shape.

    A weight without a zero, or of zeros only (a branch that starts as nothing), is not sparse.
    """
    masks = {name: weight.detach() != 0 for name, _, weight in sparse_weights(model)}
    return {name: mask for name, mask in masks.items() if mask.any() and not mask.all()}


def in_groups(weight: Tensor, size: int) -> Tensor:
    """Return [out, in, …] as [out, in / size, size, …]."""
    return weight.reshape(weight.shape[0], -1, size, *weight.shape[2:])


def read_pattern(pattern: Pattern) -> tuple[int, int] | None:
    """Return N and M, or None for a share."""
    if isinstance(pattern, str):
        match = re.fullmatch(r"(\d+):(\d+)", pattern.strip())
        if match and 1 <= int(match[1]) < int(match[2]):
            return int(match[1]), int(match[2])
    elif not isinstance(pattern, bool) and 0 < pattern < 1:
        return None
    raise UserError(f"pattern={pattern!r}: must be N:M with 1 ≤ N < M, such as '2:4', or a share of zeros in (0, 1)")


class _Keeper:
    """A hook before the forward and the state dict of one module: writes zeros, and stops gradients there.

    It holds no module, so that a deepcopy of its module has a keeper of its own. ``Parameter`` drops its hooks when it
    is copied; they come back with the next forward.
    """

    def __init__(self, zeros: dict[str, Tensor]) -> None:
        self._zeros = zeros
        self._hooked: dict[str, tuple[weakref.ref[Tensor], Any]] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> _Keeper:
        return _Keeper(copy.deepcopy(self._zeros, memo))

    def __getstate__(self) -> Mapping[str, object]:
        return {"_zeros": self._zeros, "_hooked": {}}

    def __call__(self, module: nn.Module, *_: Any) -> None:
        """Keep the module's zeros."""
        if torch.compiler.is_compiling():  # a graph is made: the weights are as they are
            return
        parameters = dict(module.named_parameters())
        for name, zeros in self._zeros.items():
            weight = parameters.get(name)
            if weight is None:  # its layer went, or this is a replica without parameters
                continue
            if weight.shape != zeros.shape:
                raise UserError(
                    f"{name} is not the weight that was made sparse; sparsify after layers change, or call release_"
                )
            if zeros.device != weight.device:
                zeros = self._zeros[name] = zeros.to(weight.device)
            # Not a change to autograd: the values that were used are the values that stay.
            weight.data.masked_fill_(zeros, 0)
            self._hook(name, weight, zeros)

    def release(self) -> None:
        """Let gradients through again."""
        for _, handle in self._hooked.values():
            handle.remove()
        self._hooked.clear()

    def _hook(self, name: str, weight: nn.Parameter, zeros: Tensor) -> None:
        hooked = self._hooked.get(name)
        if weight.requires_grad and (hooked is None or hooked[0]() is not weight):
            handle = weight.register_hook(lambda gradient: gradient.masked_fill(zeros.to(gradient.device), 0))  # type: ignore[no-untyped-call]
            self._hooked[name] = (weakref.ref(weight), handle)


def sparse_weights(model: nn.Module) -> Iterator[tuple[str, nn.Module, nn.Parameter]]:
    """Yield (name, layer, weight) of every Conv, Linear and attention weight that is a parameter, each once."""
    seen: set[int] = set()
    for prefix, module in model.named_modules():
        if isinstance(module, _ConvNd | nn.Linear | nn.MultiheadAttention):
            for key in _WEIGHTS:
                weight = module._parameters.get(key)
                if weight is not None and id(weight) not in seen:
                    seen.add(id(weight))
                    yield f"{prefix}.{key}" if prefix else key, module, weight
