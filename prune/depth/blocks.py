"""Which residual blocks and transformer layers of any ``nn.Module`` can be entry out whole.

They are found by running the model, not by the names of classes: a block returns what it takes, has layers inside, and
its input reaches its output around them, so that the network behind it finds much of what it is used to.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.utils._pytree import tree_map

from distill.errors import UserError
from distill.prune.depth.skipped import Block, Returns, argument_names, by_name, skipping
from distill.prune.graph.verify import Shapes, output_shapes
from distill.prune.modules import Example, copied, explained, hooked, seeded
from distill.prune.record import by_reason
from distill.prune.widths.sizes import count

# A skipped block hands on a value that passed through one of these at most: the addition of a branch, the norm or the
# activation behind it, and what changes neither values nor their order. A product is none: it is a gate, not a path.
_PATH = {
    "Add", "Addcmul", "Relu", "Hardtanh", "LeakyRelu", "Elu", "Gelu", "Silu", "Hardswish", "Mish", "NativeDropout",
    "NativeLayerNorm", "FusedRmsNorm", "NativeBatchNorm", "CudnnBatchNorm", "MiopenBatchNorm", "NativeGroupNorm",
    "View", "UnsafeView", "ReshapeAlias", "Squeeze", "Unsqueeze", "Alias", "Clone", "ToCopy",
}  # fmt: skip
_MAIN_NAMES = ("hidden_states", "x")
_MIN_LAYERS = 2


def removable_blocks(model: nn.Module, example: Example, logits: Callable[[Any], Tensor]) -> list[Block]:
    """Return the blocks that can go one by one, in the order of the model's modules; autograd must follow the model.

    Raises:
        UserError: the model does not run, or none of its blocks can go; the message says why.
    """
    blocks, refused = examine_blocks(model, example, logits)
    if not blocks:
        raise UserError(f"the model has no block that can be removed: {_summary(refused)}")
    return blocks


def examine_blocks(
    model: nn.Module, example: Example, logits: Callable[[Any], Tensor]
) -> tuple[list[Block], dict[str, str]]:
    """Return the blocks that can go, and for every other module of two layers or more why it cannot.

    A block is a module that is called once in a forward, with at least two layers, whose output has the shape of its
    main input (the first tensor argument) and follows from it around all layers; without it the model has to run at
    batch 1 and 2 with outputs of the same shapes. Of blocks in blocks the outermost counts, unless it is a stage:
    several blocks of one class, or a single one and nothing else, which are offered one by one. Modules in an offered
    block are not mentioned.

    Raises:
        UserError: the model cannot be copied, or does not run on its example.
    """
    work = copied(model, to_be="made shallower").eval()
    for parameter in work.parameters():
        parameter.requires_grad_(parameter.is_floating_point() or parameter.is_complex())
    with torch.inference_mode(False), torch.enable_grad(), seeded(0):
        shapes = output_shapes(work, example, logits)
        watch = _observe(work, example)
        work.requires_grad_(False)  # torch's counter of operators fails on parameters that a module is called with
        search = _Search(work, example, logits, shapes, watch)
        search.run("")
    order = {name: index for index, (name, _) in enumerate(work.named_modules())}
    return sorted(search.blocks, key=lambda block: order[block.name]), search.refused


class _Search:
    """Goes through a model's modules from the outside, and tries what may go."""

    def __init__(
        self, model: nn.Module, example: Example, logits: Callable[[Any], Tensor], shapes: Shapes, watch: _Watch
    ) -> None:
        self.blocks: list[Block] = []
        self._model, self._example, self._logits, self._shapes = model, example, logits, shapes
        self._returns, self.refused = watch.verdicts(model)
        self._macs = count(model, *example).macs

    def run(self, inside: str) -> None:
        """Offer the outermost candidates in the module of this name, or what lies in them."""
        for name in self._outermost(inside):
            if self._is_stage(name):
                self.refused[name] = "it is a sequence of blocks"
                self.run(name)
                continue
            if problem := self._try(name):
                self.refused[name] = problem
                self.run(name)
            else:
                self.refused = {path: why for path, why in self.refused.items() if not path.startswith(name + ".")}

    def _is_stage(self, name: str) -> bool:
        """Tell a module that holds several blocks of one class, or nothing but one block."""
        inner = [self._model.get_submodule(path) for path in self._outermost(name)]
        if len(inner) == 1:
            return _size(inner[0]) == _size(self._model.get_submodule(name))
        return bool(inner) and max(Counter(map(type, inner)).values()) > 1

    def _outermost(self, inside: str) -> list[str]:
        names = [name for name in self._returns if not inside or name.startswith(inside + ".")]
        return [name for name in names if not any(name.startswith(other + ".") for other in names)]

    def _try(self, name: str) -> str | None:
        """Take one block out and run the model; note it, or return what is wrong."""
        block = self._model.get_submodule(name)
        candidate = Block(name, type(block).__name__, self._returns[name])
        try:
            with skipping(self._model, [candidate]):
                shapes = output_shapes(self._model, self._example, self._logits)
                if shapes != self._shapes:
                    return "without it the model's outputs have other shapes"
                left = count(self._model, *self._example)
        except UserError as error:
            return f"without it {error}"
        parameters = _size(self._model) - left.parameters
        self.blocks.append(replace(candidate, parameters=parameters, macs=self._macs - left.macs))
        return None


class _Watch:
    """Hooks that see what each composite module takes and returns, and whether one follows the other."""

    def __init__(self) -> None:
        self._calls: Counter[str] = Counter()
        self._inputs: dict[str, _Entry] = {}
        self._returns: dict[str, Returns] = {}
        self._refused: dict[str, str] = {}

    def verdicts(self, model: nn.Module) -> tuple[dict[str, Returns], dict[str, str]]:
        """Return what each candidate returns, and why other modules are none."""
        paths = Counter(id(module) for _, module in model.named_modules(remove_duplicate=False))
        called = [(name, module) for name, module in model.named_modules() if self._calls[name]]
        several = {name for name, module in called if self._calls[name] > 1 or paths[id(module)] > 1}
        refused = self._refused | dict.fromkeys(several, "it is used more than once")
        returns = {name: self._returns[name] for name, _ in called if name not in refused}
        return returns, {name: refused[name] for name, _ in called if name in refused}

    def before(self, name: str, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Keep the main input's place in the graph: the module may overwrite the tensor."""
        self._calls[name] += 1
        arguments = by_name(argument_names(module), args, kwargs)
        names = (*list(arguments)[: len(args)], *_MAIN_NAMES, *kwargs)
        main = next((key for key in names if isinstance(arguments.get(key), Tensor)), None)
        value = arguments.get(main or "")
        if main is not None and isinstance(value, Tensor):
            edge = get_gradient_edge(value) if value.requires_grad else None
            self._inputs[name] = _Entry(arguments, main, value.shape, value.dtype, edge)

    def after(self, name: str, module: nn.Module, args: Any, output: Any) -> None:
        """Judge one call."""
        entry = self._inputs.pop(name, None)
        items = output if type(output) is tuple else (output,)
        problem = "it takes no tensor" if entry is None else _why_no_block(entry, items[0] if items else None)
        if problem or entry is None:
            self._refused[name] = problem or ""
        elif items[0] is output:
            self._returns[name] = entry.main
        else:
            names = {id(value): key for key, value in entry.arguments.items() if isinstance(value, Tensor)}
            self._returns[name] = (entry.main, *(names.get(id(item)) for item in items[1:]))


class _Entry(NamedTuple):
    """What a module was called with, and of its main argument what it was then."""

    arguments: Mapping[str, Any]
    main: str
    shape: torch.Size
    dtype: torch.dtype
    edge: GradientEdge | None


def _why_no_block(entry: _Entry, output: Any) -> str | None:
    """Say why a module's first output is not the successor of its main input."""
    if not isinstance(output, Tensor):
        return "it returns neither a tensor nor a tuple that begins with one"
    if output.shape != entry.shape or output.dtype != entry.dtype:
        return "its output has another shape or type than its input"
    if entry.edge is None or not output.requires_grad:
        return "autograd does not follow it from its input to its output"
    if not _follows(get_gradient_edge(output), entry.edge):
        return "its input does not reach its output around the layers (no shortcut inside)"
    return None


def _follows(output: GradientEdge, goal: GradientEdge) -> bool:
    """Tell whether a value reaches another through additions, norms and activations alone, along autograd's graph."""
    seen, waiting = set(), [(output.node, output.output_nr)]
    while waiting:
        node, number = waiting.pop()
        if (node, number) == (goal.node, goal.output_nr):
            return True
        if node in seen or re.sub(r"Backward\d*$", "", node.name()) not in _PATH:
            continue
        seen.add(node)
        waiting += [(source, index) for source, index in node.next_functions if source is not None]
    return False


def _observe(model: nn.Module, example: Example) -> _Watch:
    """Run the model once under autograd, with an eye on every module of two layers or more."""
    watch = _Watch()

    def tracked(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        leaf = leaf.detach().clone()  # of our own: a forward may write into it
        # No leaf of the graph, which must not be written into.
        return leaf.requires_grad_() * 1 if leaf.is_floating_point() else leaf

    handles = (
        handle
        for name, module in model.named_modules()
        if name and not _is_container(module) and _layers(module) >= _MIN_LAYERS
        for handle in (
            module.register_forward_pre_hook(partial(watch.before, name), with_kwargs=True),
            module.register_forward_hook(partial(watch.after, name)),
        )
    )
    args, kwargs = tree_map(tracked, example)
    with hooked(handles), explained("the model does not run under autograd on its example input"):
        model(*args, **kwargs)
    return watch


def _is_container(module: nn.Module) -> bool:
    """Tell a plain sequence: what it holds may be a block, it is none itself."""
    return type(module).forward is nn.Sequential.forward


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _layers(module: nn.Module) -> int:
    """Count the modules inside that have a weight of two axes or more."""
    return sum(any(p.ndim > 1 for p in layer.parameters(recurse=False)) for layer in module.modules())


def _summary(refused: Mapping[str, str]) -> str:
    """Return the reasons with the modules that they concern, a few of each."""
    if not refused:
        return "no part of it that is a module of its own has two layers or more"
    return "; ".join(by_reason(refused, most=3))
