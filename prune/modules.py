"""What pruning does with any module before it changes one: copy it, run it, watch it; none of it leaves a trace."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
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
def unfused() -> Iterator[None]:
    """Keep the fused attention and encoder layers away: padding is treated in another way, and counted not at all."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


@contextmanager
def frozen(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """Let no parameter require a gradient inside, and put each one's own choice back afterwards."""
    before = [(parameter, parameter.requires_grad) for parameter in parameters]
    try:
        for parameter, _ in before:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter, learns in before:
            parameter.requires_grad_(learns)


@contextmanager
def hooked(handles: Iterable[RemovableHandle]) -> Iterator[None]:
    """Remove hooks again at the end."""
    handles = [*handles]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def inside(model: nn.Module, ignore: Sequence[str]) -> tuple[str, ...]:
    """Return the names of the ignored modules and of all modules in them.

    Raises:
        UserError: the model has no module of such a name.
    """
    names = [name for name, _ in model.named_modules()]
    for name in ignore:
        if name not in names or not name:
            raise UserError(f"ignore: the model has no module {name!r}; its modules are {', '.join(names[1:9])}, …")
    return tuple(n for n in names if any(n == name or n.startswith(name + ".") for name in ignore))


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
