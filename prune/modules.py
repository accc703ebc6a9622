"""What pruning does with any module before it changes one: copy it, run it, watch it; none of it leaves a trace."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.checkpoint import CheckpointFunction
from torch.utils.hooks import RemovableHandle

from distill.errors import UserError
from distill.references.unwrapping import plain_copy, require_plain

Loss = Callable[[nn.Module, Any], Tensor]
"""(model, batch) -> a scalar that depends on the model's parameters."""

Example: TypeAlias = tuple[tuple[Any, ...], dict[str, Any]]
"""(args, kwargs) of one forward call; tensors hold the batch in their first axis."""


def copied(model: nn.Module, *, to_be: str) -> nn.Module:
    """Return a copy of a model, to be pruned, say, as messages put it.

    Raises:
        UserError: it cannot be copied, or its layers or weights are none that can be changed.
    """
    require_plain(model, f"the model cannot be {to_be}")
    with explained(f"the model cannot be copied, so not {to_be}"):
        return plain_copy(model)


@contextmanager
def never_recomputed() -> Iterator[None]:
    """Let what is checkpointed, in the way that hides its layers from autograd (``use_reentrant=True``), just run."""
    function: Any = CheckpointFunction
    hidden = function.apply
    function.apply = lambda call, preserves_random_state, *args: call(*args)
    try:
        yield
    finally:
        function.apply = hidden


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


def set_tensor(module: nn.Module, name: str, value: Tensor) -> None:
    """Put a value in the place of a parameter, which is one again and learns or not as before, or of a buffer."""
    old = getattr(module, name)
    learns = isinstance(old, nn.Parameter)
    setattr(module, name, nn.Parameter(value, requires_grad=old.requires_grad) if learns else value)


def holders(model: nn.Module) -> Counter[int]:
    """Count the modules that hold each parameter, by the parameter's id."""
    return Counter(id(parameter) for module in model.modules() for parameter in module.parameters(recurse=False))


def batch_of(example: Example) -> int | None:
    """Return the batch size: the first axis of the first tensor that has one; None when there is no such tensor."""
    tensors = (leaf for leaf in tree_leaves(example) if isinstance(leaf, Tensor) and leaf.ndim > 0)
    return next((tensor.shape[0] for tensor in tensors), None)


def at_batch(example: Example, batch: int) -> Example:
    """Return (args, kwargs) with ``batch`` rows, made by repeating or dropping rows of the tensors that have them."""
    rows = batch_of(example)
    if not rows:
        return example

    def resize(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or leaf.ndim == 0 or leaf.shape[0] != rows:
            return leaf
        return leaf.detach()[torch.arange(batch, device=leaf.device) % rows]

    args, kwargs = tree_map(resize, example)
    return tuple(args), dict(kwargs)


def run_alike(model: nn.Module, example: Example) -> Any:
    """Run a model so that two runs can be compared.

    Each has inputs of its own, which forward may write into, the same random numbers, and no fused attention, which
    treats padding in another way.
    """
    args, kwargs = tree_map(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, example)
    with unfused(), seeded(0):
        return model(*args, **kwargs)


def tensors_in(output: Any, name: str = "output") -> Iterator[tuple[str, Tensor]]:
    """Yield (name, tensor) for every tensor in nested tuples, lists, mappings and dataclasses."""
    if isinstance(output, Tensor):
        yield name, output
    elif isinstance(output, Mapping):
        for key, value in output.items():
            yield from tensors_in(value, f"{name}[{key!r}]")
    elif isinstance(output, list | tuple):
        for index, value in enumerate(output):
            yield from tensors_in(value, f"{name}[{index}]")
    elif dataclasses.is_dataclass(output) and not isinstance(output, type):
        for field in dataclasses.fields(output):
            yield from tensors_in(getattr(output, field.name), f"{name}.{field.name}")
