"""Multiply-accumulates and parameters of a module, by torch's own operator counter."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from distill.prune.examples import at_batch
from distill.prune.modules import eval_mode, explained, frozen, unfused


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
