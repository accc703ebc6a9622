"""Whole residual blocks and transformer layers taken out of any ``nn.Module``, and put out again on a fresh one.

At batch 1 a small network waits for its layers one after another: fewer of them help where narrower ones do not.
``distill.prune.depth.blocks`` finds what can go. It is replaced by a module without parameters that hands the input on.
No pickle: names and argument names bring it back.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, TypeAlias

import torch
from torch import nn

from distill.errors import UserError
from distill.prune.modules import copied
from distill.prune.record import SkippedBlock

Returns: TypeAlias = str | tuple[str | None, ...]
"""What a skipped block returns: the argument of this name, or a tuple of arguments and None."""

_PLAIN = (bool, int, float, str, type(None), torch.dtype)


@dataclass(frozen=True)
class Block:
    """A block that can go: ``parameters`` go with it, and ``macs`` for one sample.

    ``kind`` is the name of its class. ``returns`` says what is handed on in its place: the argument of this name, or
    for a block that returns a tuple one entry an item, None for what only the block can compute.
    """

    name: str
    kind: str
    returns: Returns
    parameters: int = 0
    macs: int = 0


class Skipped(nn.Module):
    """Stands where a block was, and returns arguments in the form of the block's output.

    It has no parameters. Its plain attributes are the block's, also those of modules inside, since parents look at
    them: ``nn.TransformerEncoder`` reads ``layers[0].self_attn.batch_first``.
    """

    def __init__(self, block: nn.Module, returns: Returns) -> None:
        super().__init__()
        self.returns = returns
        for name, value in vars(_plain_attributes(block)).items():
            if not hasattr(self, name):
                setattr(self, name, value)
        self._arguments = argument_names(block)
        self.training = block.training

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return the arguments that the block's output is replaced by."""
        arguments = by_name(self._arguments, args, kwargs)
        if isinstance(self.returns, str):
            return arguments[self.returns]
        return tuple(None if name is None else arguments.get(name) for name in self.returns)

    def extra_repr(self) -> str:
        """Show what is handed on."""
        return f"returns={self.returns!r}"


def skip_blocks(model: nn.Module, blocks: Iterable[Block | SkippedBlock]) -> nn.Module:
    """Return a copy in which the blocks hand their inputs on; the names of all other modules stay.

    Blocks are those of ``removable_blocks``, or the plain data of ``skipped_of``.

    Raises:
        UserError: a block is unknown, lies in another one, or is skipped in another form.
    """
    return skip_blocks_(copied(model, to_be="made shallower"), blocks)


def skip_blocks_(model: nn.Module, blocks: Iterable[Block | SkippedBlock]) -> nn.Module:
    """Do as ``skip_blocks`` in place, and return the same model. A refused block leaves it unchanged.

    On a freshly built model this brings back what ``skipped_of`` told; the state dict of the model that it was taken
    from then fits.
    """
    for name, skipped in _replacements(model, blocks).items():
        model.set_submodule(name, skipped)
    return model


@contextmanager
def skipping(model: nn.Module, blocks: Iterable[Block | SkippedBlock]) -> Iterator[nn.Module]:
    """Skip blocks of this very model for a while, and put them back; what is skipped already stays so."""
    replacements = _replacements(model, blocks)
    originals = {name: model.get_submodule(name) for name in replacements}
    try:
        for name, skipped in replacements.items():
            model.set_submodule(name, skipped)
        yield model
    finally:
        for name, block in originals.items():
            model.set_submodule(name, block)


def skipped_of(model: nn.Module) -> list[SkippedBlock]:
    """Describe the skipped blocks as data that JSON can hold, for ``skip_blocks_`` on a freshly built model.

    Returns ``[{"name": str, "returns": str | [str | None]}]`` in the order of the model's modules.
    """
    return [
        {"name": name, "returns": m.returns if isinstance(m.returns, str) else list(m.returns)}
        for name, m in model.named_modules()
        if isinstance(m, Skipped)
    ]


def argument_names(block: nn.Module) -> tuple[str, ...]:
    """Return the names of the arguments that can be given by position."""
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = inspect.signature(block.forward).parameters.values()
    return tuple(parameter.name for parameter in parameters if parameter.kind in positional)


def by_name(names: tuple[str, ...], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a call's arguments by name; what ``*args`` takes has its position as its name."""
    places = (*names[: len(args)], *map(str, range(len(names), len(args))))
    return dict(zip(places, args, strict=True)) | dict(kwargs)


def _plain_attributes(module: nn.Module) -> SimpleNamespace:
    """Return a module's public attributes that are numbers, words and the like, with those of its children."""
    attributes = SimpleNamespace()
    for name, value in vars(module).items():
        flat = value if isinstance(value, tuple | list) else (value,)
        if not name.startswith("_") and name != "training" and all(isinstance(item, _PLAIN) for item in flat):
            setattr(attributes, name, copy.copy(value))
    for name, child in module.named_children():
        setattr(attributes, name, _plain_attributes(child))
    return attributes


def _replacements(model: nn.Module, blocks: Iterable[Block | SkippedBlock]) -> dict[str, Skipped]:
    """Make what replaces the blocks, by name, once all of them are right."""
    modules = dict(model.named_modules())
    replacements: dict[str, Skipped] = {}
    for block in blocks:
        name, returns = _read(block)
        if name not in modules or not name:
            raise UserError(f"blocks: the model has no module {name!r}; was it built with the same arguments?")
        old = modules[name]
        if isinstance(old, Skipped):
            if old.returns != returns:
                raise UserError(f"blocks: {name!r} is skipped already, and returns {old.returns!r}, not {returns!r}")
            continue
        replacements[name] = Skipped(old, returns)
    nested = [name for name in replacements if any(name.startswith(other + ".") for other in replacements)]
    if nested:
        raise UserError(f"blocks: {nested[0]!r} lies in another block that is to be skipped; name only one of them")
    return replacements


def _read(block: Block | SkippedBlock) -> tuple[str, Returns]:
    """Read a block, or the plain data of one."""
    if isinstance(block, Block):
        return block.name, block.returns
    name, returns = (block.get(key) for key in ("name", "returns")) if isinstance(block, Mapping) else (None, None)
    items = returns if isinstance(returns, list | tuple) else ()
    if isinstance(name, str) and isinstance(returns, str):
        return name, returns
    if isinstance(name, str) and items and all(item is None or isinstance(item, str) for item in items):
        return name, tuple(items)
    raise UserError(f"blocks: {block!r} is no block; give those of removable_blocks, or the data of skipped_of")
