"""What layers read on average: once some of it goes, a constant in the layer's bias can stand in for its mean.

Source: the bias compensation of An et al. 2023 (FLAP, arXiv 2312.11983). Unlike there, scores count the mean as well:
that fluctuations alone choose better could not be shown (they do for perceptrons, and not before a batch norm).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from distill.prune.graph.groups import ChannelGroup
from distill.prune.modules import hooked
from distill.state_dicts import twin

_PLAIN = {
    kind.forward
    for kind in (
        nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d
    )
}  # fmt: skip
"""Forwards that are linear in what is read, whatever a class derived from these is for."""


Means = Mapping[str, Tensor]
"""What layers read, by their names: [1, channels, …] with a convolution's spatial axes."""


class Watch:
    """What layers read, averaged over rows (and tokens) by how much the outputs depend on what they make of each."""

    def __init__(self, *, is_idle: bool) -> None:
        self.is_idle, self._listens = is_idle, False
        self._sums: dict[str, Tensor] = {}
        self._weights: dict[str, float] = {}
        self._excluded: set[str] = set()
        self._waiting: list[Tensor] = []

    def backward(self, scalar: Tensor, *, retain_graph: bool) -> None:
        """Go backward from a scalar, and count the gradients that come; those of other passes say nothing."""
        self._listens = True
        scalar.backward(retain_graph=retain_graph)  # type: ignore[no-untyped-call]
        self._listens = False

    @property
    def means(self) -> dict[str, Tensor]:
        """What is known so far: nothing of a layer that no gradient has reached, or that read what has no one shape."""
        means = {name: (total / self._weights[name]).float() for name, total in self._sums.items()}
        return {name: mean for name, mean in means.items() if name not in self._excluded and mean.isfinite().all()}

    def forget(self) -> None:
        """Let go of what no gradient came for."""
        self._waiting.clear()

    def record(self, name: str, layer: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """See what a layer makes of what; that is added once the gradient says what it is worth."""
        if not args:  # it is called by keyword
            self._excluded.add(name)
            return
        read, convolves = args[0], isinstance(layer, _ConvNd)
        has_rows = read.ndim == layer.weight.ndim if convolves else read.ndim > 1
        if not has_rows:
            self._excluded.add(name)
        elif output.requires_grad:
            number = len(self._waiting)
            self._waiting.append(read.detach())  # not in the hook, which would hold it as long as the graph
            output.register_hook(lambda gradient: self._add(name, convolves, number, gradient))

    def _add(self, name: str, convolves: bool, number: int, gradient: Tensor) -> None:
        if not self._listens:
            return
        read = self._waiting[number]
        self._waiting[number] = read.new_empty(0)
        # What no output depends on, as tokens that are masked or not asked, must not move the mean of those that count.
        worth = gradient.double().square()
        if convolves:
            worth = worth.flatten(1).sum(1)
            total = torch.tensordot(worth, read.double(), dims=1)[None]
        else:
            worth = worth.sum(-1).flatten()
            total = (worth @ read.double().flatten(0, -2))[None]
        before = self._sums.get(name)
        if before is not None and before.shape != total.shape:
            self._excluded.add(name)  # images of another size: the mean over rows has no one shape
            return
        self._sums[name] = total if before is None else before + total
        self._weights[name] = self._weights.get(name, 0.0) + float(worth.sum())


@contextmanager
def watching(model: nn.Module, names: Collection[str]) -> Iterator[Watch]:
    """Watch what the named layers read in backward passes, of those that have a bias for themselves."""
    times = Counter(id(parameter) for _, parameter in model.named_parameters(remove_duplicate=False))
    layers = {
        name: module
        for name, module in model.named_modules()
        if name in names and type(module).forward in _PLAIN and times[id(module._parameters.get("bias"))] == 1
    }
    watch = Watch(is_idle=not layers)
    with hooked(layer.register_forward_hook(partial(watch.record, name)) for name, layer in layers.items()):
        yield watch


def read_by(groups: Iterable[ChannelGroup]) -> set[str]:
    """Return the names of the layers that read channels of these groups."""
    return {member.name for group in groups for member in group.members if member.side == "in"}


@torch.no_grad()
def with_constants(
    model: nn.Module, groups: Sequence[ChannelGroup], removed: Mapping[str, Sequence[int]], means: Means
) -> nn.Module | None:
    """Return a copy whose biases hold the means of what their layers are about to lose; None where that changes none.

    Nothing is cut here: the model and its means have all channels, ``removed`` names those that go, by group.
    """
    lost: dict[str, set[int]] = {}
    for group in groups:
        roots = set(removed.get(group.name, ()))
        for member in group.members if roots else ():
            if member.side == "in" and member.name in means:
                pairs = zip(member.indices, member.roots, strict=True)
                lost.setdefault(member.name, set()).update(index for index, root in pairs if root in roots)
    if not lost:
        return None
    result = twin(model)
    for name, channels in lost.items():
        layer: Any = result.get_submodule(name)
        index = sorted(channels)
        mean, nothing = torch.zeros_like(means[name]), torch.zeros_like(means[name])
        mean[:, index] = means[name][:, index]
        layer.bias += _constant(layer, mean.to(layer.weight)) - _constant(layer, nothing.to(layer.weight))
    return result


def _constant(layer: nn.Module, mean: Tensor) -> Tensor:
    """Return what a layer makes of a mean input, averaged over positions, its bias included: [outputs]."""
    output: Tensor = layer.forward(mean)  # hooks are not for it
    return output.flatten(2).mean(2)[0] if output.ndim > 2 else output[0]
