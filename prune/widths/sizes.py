"""What narrower layers leave of a model's multiply-accumulates and parameters, told without cutting anything.

A cut takes seconds, and a search for a share needs dozens of tries: this answers in microseconds, from the layers'
own counts and the channels that each group holds in them. Of products of two activations only attention's shrink.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import nn
from torch.nn.modules.conv import _ConvNd

from distill.prune.attention.heads import AttentionGroup
from distill.prune.examples import Example
from distill.prune.graph.groups import ChannelGroup, is_depthwise, widths_of
from distill.prune.widths.counts import layer_macs

Removed = Mapping[str, int]
"""Group's name -> how many of its units go."""


@dataclass(frozen=True)
class Layer:
    """A layer's multiply-accumulates for one sample, its parameters, and its widths; all before anything goes."""

    macs: int
    parameters: int
    width_in: int
    width_out: int
    one_sided: bool  # one number a channel, as in norms and depthwise convolutions


class Sizes:
    """Multiply-accumulates and parameters that a choice of units leaves.

    ``layers`` are all that hold parameters of their own; what is counted outside of them stays as it is.
    """

    def __init__(self, model: nn.Module, groups: Sequence[ChannelGroup], example: Example) -> None:
        self.macs, own = layer_macs(model, *example)
        self.parameters = sum(parameter.numel() for parameter in model.parameters())
        self.layers = {
            name: _layer(module, own.get(name, 0) - sum(own.get(child, 0) for child in _layers_in(name, module)))
            for name, module in model.named_modules()
            if any(True for _ in module.parameters(recurse=False))
        }
        self._products = {
            group.name: (own.get(group.name, 0) - sum(_outermost(own, group.name)), len(group.units))
            for group in groups
            if isinstance(group, AttentionGroup) and group.name and group.name not in self.layers
        }
        self._effects: dict[str, list[tuple[str, str, float]]] = defaultdict(list)
        self._touched: dict[str, tuple[str, ...]] = {}
        for group in groups:
            members = [member for member in group.members if member.name in self.layers]
            self._touched[group.name] = tuple(dict.fromkeys(member.name for member in members))
            for member in members:
                self._effects[member.name].append((group.name, member.side, len(member.indices) / len(group.units)))

    def touched(self, group: str) -> tuple[str, ...]:
        """Name the layers that hold channels of a group, each once."""
        return self._touched[group]

    def widths(self, name: str, removed: Removed) -> tuple[int, int]:
        """Return the input and output channels that a layer is left with."""
        layer = self.layers[name]
        lost = {"in": 0.0, "out": 0.0}
        for group, side, per_unit in self._effects[name]:
            lost[side] += per_unit * removed.get(group, 0)
        out = max(1, round(layer.width_out - lost["out"]))
        # What has one number a channel reads as many as it writes, and is listed on one side only.
        return (out if layer.one_sided else max(1, round(layer.width_in - lost["in"]))), out

    def left(self, removed: Removed) -> dict[str, float]:
        """Return the share of ``macs`` and of ``parameters`` that stays."""
        macs, parameters = float(self.macs), float(self.parameters)
        for name in dict.fromkeys(name for group in removed for name in self._touched[group]):
            layer = self.layers[name]
            into, out = self.widths(name, removed)
            share = out / layer.width_out * (1.0 if layer.one_sided else into / layer.width_in)
            macs -= layer.macs * (1 - share)
            parameters -= layer.parameters * (1 - share)
        for name in removed.keys() & self._products.keys():
            products, units = self._products[name]
            macs -= products * removed[name] / units
        return {"macs": macs / max(1, self.macs), "parameters": parameters / max(1, self.parameters)}


def _outermost(own: Mapping[str, int], name: str) -> Iterator[int]:
    """Yield the counts of the modules within one, but not of those within these."""
    inside = [child for child in own if child.startswith(f"{name}.")]
    for child in inside:
        if not any(child.startswith(f"{other}.") for other in inside):
            yield own[child]


def _layers_in(name: str, module: nn.Module) -> Iterator[str]:
    """Name the layers within a module, not itself."""
    for path, child in module.named_modules():
        if path and any(True for _ in child.parameters(recurse=False)):
            yield f"{name}.{path}" if name else path


def _layer(module: nn.Module, macs: int) -> Layer:
    into, out = widths_of(module)
    parameters = sum(parameter.numel() for parameter in module.parameters(recurse=False))
    sided = isinstance(module, _ConvNd | nn.Linear) and not is_depthwise(module)
    return Layer(macs, parameters, into, out, one_sided=not sided)


def widths_of_layers(model: nn.Module) -> dict[str, int]:
    """Return the output channels of every Conv and Linear layer."""
    return {name: widths_of(m)[1] for name, m in model.named_modules() if isinstance(m, _ConvNd | nn.Linear)}
