"""The copy that is worked on: the model that came in is not changed."""

from __future__ import annotations

import copy

import torch
from torch import nn

from distill.errors import UserError
from distill.prune.examples import reason


def copied(model: nn.Module, *, to_be: str) -> nn.Module:
    """Return a copy of a model.

    Args:
        model: any module.
        to_be: what the copy is for, as "pruned", for messages.

    Raises:
        UserError: it cannot be copied, or it is a TorchScript or compiled module, which cannot be changed.
    """
    if isinstance(model, torch.jit.ScriptModule):
        raise UserError(f"a TorchScript module cannot be {to_be}; give the nn.Module that it was made from")
    if hasattr(model, "_orig_mod"):
        raise UserError(f"a compiled module cannot be {to_be}; give the module that was passed to torch.compile")
    try:
        return copy.deepcopy(model)
    except Exception as error:
        raise UserError(f"the model cannot be copied, so not {to_be}: {reason(error)}") from error
