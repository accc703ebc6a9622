"""What layers read on average: once some of it goes, a constant stands in for its mean, and only the rest is lost.

The constant is added to the reading layer's bias, the bias compensation of An et al. 2023 (FLAP, arXiv 2312.11983). A
batch norm right behind the layer does the same once its statistics are taken anew (``recalibrate``).
"""

from __future__ import annotations

import copy
import weakref
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from distill.prune.graph import ChannelGroup, is_depthwise

_PLAIN = {
    kind.forward
    for kind in (
        nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d
    )
}  # fmt: skip
"""Forwards that are linear in what is read, whatever a class derived from these is for."""


@dataclass(frozen=True)
class Reader:
    """A layer that a constant can be given to.

    ``mean`` is what it reads, averaged over rows (and tokens) by how much the outputs depend on what it makes of each:
    [1, channels, …] with a convolution's spatial axes. ``norm`` names the batch norm right behind it, where it has no
    bias of its own.
    """

    mean: Tensor
    norm: str | None = None


class Watch:
    """What the layers have read so far."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._sums: dict[str, Tensor] = {}
        self._weights: dict[str, float] = {}
        self._norms: dict[str, str] = {}
        self._made: dict[int, tuple[weakref.ref[Tensor], int, str]] = {}
        self._strange: set[str] = set()
        self._listens = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Count the gradients that come inside."""
        self._listens = True
        try:
            yield
        finally:
            self._listens = False

    @property
    def readers(self) -> dict[str, Reader]:
        """The layers that have read anything, that a constant can be given to, and whose mean is known."""
        times = Counter(id(p) for _, p in self._model.named_parameters(remove_duplicate=False))
        found = {}
        for name, total in self._sums.items():
            bias = self._model.get_submodule(name)._parameters.get("bias")
            can = name in self._norms if bias is None else times[id(bias)] == 1
            if not can or name in self._strange or not self._weights[name] > 0:
                continue
            mean = (total / self._weights[name]).float()
            if bool(mean.isfinite().all()):
                found[name] = Reader(mean, self._norms.get(name) if bias is None else None)
        return found

    def made(self, name: str, layer: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """See what a layer makes of what; that is added once the gradient says what it is worth."""
        if not args:  # it is called by keyword
            self._strange.add(name)
            return
        given, convolves = args[0], isinstance(layer, _ConvNd)
        usual = given.ndim == layer.weight.ndim if convolves else given.ndim > 1  # one sample alone has no rows
        if not usual:
            self._strange.add(name)
        elif output.requires_grad:
            read = given.detach()
            output.register_hook(lambda gradient: self._read(name, convolves, read, gradient))
            self._made[id(output)] = weakref.ref(output), output._version, name

    def normed(self, name: str, args: tuple[Any, ...]) -> None:
        """See whose outputs a batch norm is given, with nothing done to them in between."""
        given = args[0] if args else None
        made, version, maker = self._made.get(id(given), (None, 0, ""))
        if not isinstance(given, Tensor) or made is None or made() is not given or given._version != version:
            return
        if self._norms.setdefault(maker, name) != name:
            self._strange.add(maker)

    def _read(self, name: str, convolves: bool, given: Tensor, gradient: Tensor) -> None:
        if not self._listens:
            return
        # What no output depends on, as tokens that are masked or not asked, must not move the mean of those that count.
        worth = gradient.double().square()
        if convolves:
            worth = worth.flatten(1).sum(1)
            total = torch.tensordot(worth, given.double(), dims=1)[None]
        else:
            worth = worth.sum(-1).flatten()
            total = (worth @ given.double().flatten(0, -2))[None]
        known = self._sums.get(name)
        if known is not None and known.shape != total.shape:
            self._strange.add(name)  # images of another size: the mean over rows has no one shape
            return
        self._sums[name] = total if known is None else known + total
        self._weights[name] = self._weights.get(name, 0.0) + float(worth.sum())


@contextmanager
def watching(model: nn.Module, names: Collection[str]) -> Iterator[Watch]:
    """Watch what the named layers of a model read, of those that a constant can stand in for, in backward passes."""
    watch = Watch(model)
    hooks = []

    def watch_reader(name: str, layer: nn.Module) -> None:
        hooks.append(layer.register_forward_hook(lambda _, args, output: watch.made(name, layer, args, output)))

    def watch_norm(name: str, norm: nn.Module) -> None:
        hooks.append(norm.register_forward_pre_hook(lambda _, args: watch.normed(name, args)))

    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm) and module.running_mean is not None:
            watch_norm(name, module)
        elif name in names and type(module).forward in _PLAIN and not is_depthwise(module):
            watch_reader(name, module)
    try:
        yield watch
    finally:
        for hook in hooks:
            hook.remove()


def read_by(groups: Iterable[ChannelGroup]) -> set[str]:
    """Return the names of the layers that read channels of these groups."""
    return {member.name for group in groups for member in group.members if member.side == "in"}


def of_means(model: nn.Module, readers: Mapping[str, Reader]) -> dict[str, Tensor]:
    """Return what the mean of each input channel has to do with the loss: ∂L/∂constant · constant, float32 [channels].

    Gradients lie in ``.grad``. A layer that they do not reach is left out.
    """
    found = {}
    for name, reader in readers.items():
        layer = model.get_submodule(name)
        slope = _slope(model, layer, reader)
        if slope is None:
            continue
        with torch.enable_grad():
            mean = reader.mean.to(layer.weight).requires_grad_()  # type: ignore[arg-type]
            (toward,) = torch.autograd.grad(_constant(layer, mean) @ slope, mean)
        share = (toward * mean).detach()
        found[name] = share.flatten(2).sum(2)[0] if share.ndim > 2 else share[0]
    return found


@torch.no_grad()
def compensated(
    model: nn.Module, groups: Sequence[ChannelGroup], gone: Mapping[str, Sequence[int]], readers: Mapping[str, Reader]
) -> nn.Module | None:
    """Return a copy whose biases hold the means of what their layers are about to lose; None where that changes none.

    Args:
        model: with all channels; nothing is cut here.
        groups: that lose channels, or not.
        gone: root channels that go, by group.
        readers: of this model.
    """
    lost: dict[str, set[int]] = {}
    for group in groups:
        roots = set(gone.get(group.name, ()))
        for member in group.members:
            if roots and member.side == "in" and member.name in readers and readers[member.name].norm is None:
                pairs = zip(member.indices, member.roots, strict=True)
                lost.setdefault(member.name, set()).update(index for index, root in pairs if root in roots)
    if not lost:
        return None
    result = copy.deepcopy(model)
    for name, channels in lost.items():
        layer: Any = result.get_submodule(name)
        index = sorted(channels)
        mean = torch.zeros_like(readers[name].mean)
        mean[:, index] = readers[name].mean[:, index]
        nothing = torch.zeros_like(mean)
        layer.bias += _constant(layer, mean.to(layer.weight)) - _constant(layer, nothing.to(layer.weight))
    return result


def _constant(layer: nn.Module, mean: Tensor) -> Tensor:
    """Return what a layer makes of a mean input, averaged over positions: [outputs]."""
    made: Tensor = layer.forward(mean)  # hooks are not for it
    return made.flatten(2).mean(2)[0] if made.ndim > 2 else made[0]


def _slope(model: nn.Module, layer: nn.Module, reader: Reader) -> Tensor | None:
    """Return how the loss changes with a constant in each output, [outputs]; gradients lie in ``.grad``."""
    if reader.norm is None:
        bias: Any = layer.bias
        return bias.grad  # type: ignore[no-any-return]
    norm: Any = model.get_submodule(reader.norm)
    if norm.bias is None or norm.bias.grad is None:
        return None
    return norm.bias.grad * norm.weight.detach() * (norm.running_var + norm.eps).rsqrt()  # type: ignore[no-any-return]
