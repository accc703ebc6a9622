"""What pruning does with any module before it changes one: copy it, run it, watch it; none of it leaves a trace."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from distill.errors import UserError

Loss = Callable[[nn.Module, Any], Tensor]
"""(model, batch) -> a scalar that depends on the model's parameters."""


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
    with explained(f"the model cannot be copied, so not {to_be}"):
        return copy.deepcopy(model)


@contextmanager
def explained(problem: str) -> Iterator[None]:
    """Turn whatever foreign code raises inside into a `UserError`: the problem, and the first line of the reason."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{problem}: {reason(error)}") from error


def reason(error: BaseException) -> str:
    """Return an exception as one line: its type and the first line of its message."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Switch to eval mode inside, and put every module's own mode back afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed torch inside, and leave its generators outside as they were."""
    gpus = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()  # type: ignore[no-untyped-call]
    with torch.random.fork_rng(devices=list(gpus)):
        torch.manual_seed(seed)
        yield


@contextmanager
def hooked(handles: Iterable[RemovableHandle]) -> Iterator[None]:
    """Remove hooks again at the end."""
    handles = [*handles]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def require_scalar(loss: object) -> Tensor:
    """Return a loss that is a number and that autograd follows.

    Raises:
        UserError: it is something else.
    """
    if not isinstance(loss, Tensor) or loss.numel() != 1 or loss.grad_fn is None:
        raise UserError("loss(model, batch) must return a scalar tensor that depends on the model's parameters")
    return loss


def holders(model: nn.Module) -> Counter[int]:
    """Count the modules that hold each parameter, by the parameter's id."""
    return Counter(id(parameter) for module in model.modules() for parameter in module.parameters(recurse=False))
