"""A model's multiply-accumulates and parameters, and what narrower layers leave of them, told without cutting anything.

A cut takes seconds, and a search for a share needs dozens of tries: this answers in microseconds, from the layers'
own counts and the channels that each group holds in them. Of products of two activations only attention's shrink.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.conv import _ConvNd
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from distill.prune.attention.heads import AttentionGroup
from distill.prune.graph.groups import ChannelGroup, is_depthwise, widths_of
from distill.prune.graph.own_pruners import input_share
from distill.prune.modules import Example, at_batch, eval_mode, explained, frozen, unfused


@dataclass(frozen=True)
class Counts:
    """Size of a model: ``macs`` for one sample, ``parameters`` in all (a shared one counts once)."""

    macs: int
    parameters: int


def count(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Counts:
    """Count the multiply-accumulates of convolutions, linear layers and matrix products at batch 1.

    The inputs are cut to their first sample along the first axis. Biases, norms, activations and pooling are not
    counted: convolution O·C/g·k·k·H·W, linear in·out a position, attention both of its products. The model runs once,
    in eval mode; its modes are put back.

    Raises:
        UserError: the model does not run on these inputs.
    """
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return Counts(macs=layer_macs(model, args, kwargs)[0], parameters=parameters)


def layer_macs(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[int, dict[str, int]]:
    """Count as `count` does; return all multiply-accumulates, and those within each module, by its name.

    A layer that is not called itself, since a module around it passes its weight to ``torch.nn.functional.linear``, has
    its own, too.

    Raises:
        UserError: the model does not run on these inputs.
    """
    single_args, single_kwargs = at_batch((args, dict(kwargs)), 1)
    counter, products = FlopCounterMode(display=False), _Products(model)
    runs = explained("the model does not run on its example input at batch 1")
    with torch.no_grad(), eval_mode(model), _countable(model), counter, products, runs:
        model(*single_args, **single_kwargs)
    # The counter's unit is a flop: a multiply and an add. It calls the model itself by the name of its class.
    inside = {
        name.partition(".")[2]: sum(flops.values()) // 2
        for name, flops in counter.get_flop_counts().items()
        if "." in name
    }
    return counter.get_total_flops() // 2, products.macs | inside


class _Products(TorchFunctionMode):
    """Counts products with the weights of a model's modules, by the module that holds the weight."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.macs: dict[str, int] = {}
        self._holders = {
            id(parameter): name
            for name, module in model.named_modules()
            for parameter in module.parameters(recurse=False)
        }

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Note a product on its way."""
        if function is torch.nn.functional.linear and len(args) > 1 and (name := self._holders.get(id(args[1]))):
            self.macs[name] = self.macs.get(name, 0) + args[0].numel() * args[1].shape[0]
        return function(*args, **kwargs or {})


@contextmanager
def _countable(model: nn.Module) -> Iterator[None]:
    """Keep away what the counter does not know or stumbles over: fused CPU kernels, and calls with a live parameter."""
    fused = torch.backends.mkldnn.enabled
    if any(isinstance(module, nn.RNNBase) for module in model.modules()):
        torch.backends.mkldnn.enabled = False  # type: ignore[assignment]
    try:
        with unfused(), frozen(model.parameters()), sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        if torch.backends.mkldnn.enabled != fused:
            torch.backends.mkldnn.enabled = fused


Removed = Mapping[str, int]
"""Group's name -> how many of its units go."""


@dataclass(frozen=True)
class Layer:
    """A layer's multiply-accumulates for one sample, its parameters, and its widths; all before anything goes.

    ``reading`` is the share of its weights that its input meets: a recurrent layer's output meets others.
    """

    macs: int
    parameters: int
    width_in: int
    width_out: int
    one_sided: bool  # one number a channel, as in norms and depthwise convolutions
    reading: float = 1.0


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
            gone = 0.0 if layer.one_sided else layer.reading * (1 - into / layer.width_in)
            share = out / layer.width_out * (1 - gone)
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
    sided = isinstance(module, _ConvNd | nn.Linear | nn.RNNBase) and not is_depthwise(module)
    reading = input_share(module) if isinstance(module, nn.RNNBase) else 1.0
    return Layer(macs, parameters, into, out, not sided, reading)


def widths_of_layers(model: nn.Module) -> dict[str, int]:
    """Return the output channels of every Conv and Linear layer."""
    return {name: widths_of(m)[1] for name, m in model.named_modules() if isinstance(m, _ConvNd | nn.Linear)}
