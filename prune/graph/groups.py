"""Which channels have to go together: torch-pruning's dependency graph, with its traps fenced off.

The graph is traced through autograd, so the model's parameters must require gradients and nothing may detach them.
What a channel group looks like here does not depend on torch-pruning; it is used for tracing and for cutting only.
"""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch_pruning as tp
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.instancenorm import _InstanceNorm
from torch_pruning import ops

from distill.errors import UserError
from distill.prune.graph.dependency import Dependency
from distill.prune.graph.own_pruners import PRUNERS, RECURRENT, recurrent_in_one_step
from distill.prune.modules import Example, explained, holders, run_alike, tensors_in

# Layers whose cut is known to be right. Anything else in a group keeps the whole group as it is.
_NORMS = (_BatchNorm, _InstanceNorm, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)
_CUTTABLE = (_ConvNd, nn.Linear, *_NORMS, nn.PReLU, nn.Embedding, nn.RNNBase)
ROOTS = (_ConvNd, nn.Linear)
_NORM_WIDTHS = ("num_features", "num_channels", "normalized_shape")


@dataclass(frozen=True, eq=False)
class Member:
    """A layer of a group: ``indices[i]`` of its ``side`` goes when the root's channel ``roots[i]`` goes."""

    name: str
    module: nn.Module
    side: Literal["out", "in"]
    indices: tuple[int, ...]
    roots: tuple[int | None, ...]


@dataclass(frozen=True, eq=False)
class ChannelGroup:
    """Channels that can only go together with those of other layers.

    ``units`` are the smallest sets of root channels that can go: one channel each, or one in every group of a grouped
    layer. ``unprunable`` says why the group cannot be cut; ``is_output`` that it makes the logits, or another output
    only.
    """

    name: str
    units: tuple[tuple[int, ...], ...]
    members: tuple[Member, ...]
    pattern: str
    is_output: bool
    unprunable: str | None

    @property
    def width(self) -> int:
        """Channels of the layer that the group is named after."""
        return sum(map(len, self.units))


class Graph:
    """The channel groups of a model, which ``cut`` narrows in place.

    Raises:
        UserError: the model cannot be traced; the message says why.
    """

    def __init__(self, model: nn.Module, example: Example, logits: Callable[[Any], Tensor]) -> None:
        self._model = model
        self._names = {module: name for name, module in model.named_modules()}
        self._outputs: dict[Any, str] = {}
        self._dependency = self._trace(example, logits)

    def groups(self, without: Collection[str] = ()) -> list[ChannelGroup]:
        """Describe the groups, but for those of which a layer named in ``without`` makes channels.

        Raises:
            UserError: there is no group at all.
        """
        shared = {parameter for parameter, number in holders(self._model).items() if number > 1}
        groups = list(self._dependency.get_all_groups(ignored_layers=[], root_module_types=list(ROOTS)))
        if not groups:
            raise UserError(
                "the model cannot be pruned: no Conv or Linear layer lies on a differentiable path to the logits; "
                "is its forward under torch.no_grad(), or are its layers not torch.nn modules?"
            )
        described = [(group, self._members(group)) for group in groups]
        return [
            self._describe(group, members, shared)
            for group, members in described
            if len(group[0].idxs) > 1  # a single channel stays
            and not any(member.side == "out" and member.name in without for member in members)
        ]

    def unseen(self) -> dict[str, str]:
        """Say of layers and of bare parameters why no group holds their channels, by their names."""
        seen = self._dependency.module2node
        layers = {
            name: "autograd does not see it in forward: it runs under torch.no_grad or in a function that hides its "
            "layers, or another module applies its weight"
            for name, module in self._model.named_modules()
            if isinstance(module, ROOTS) and module not in seen
        }
        bare = "a parameter that forward multiplies with itself (F.linear, F.conv2d, @, einsum): only layers of "
        return layers | dict.fromkeys(self._dependency.bare, f"{bare}torch.nn are cut")

    def cut(self, chosen: Mapping[str, Sequence[int]]) -> list[Member]:
        """Remove the given root channels of the named groups in place; return the consumers that lost inputs.

        The members returned carry indices in the coordinates of the model before the cut.
        """
        groups = {name: self._group(name, indices) for name, indices in chosen.items()}
        consumers = [m for group in groups.values() for m in self._members(group) if m.side == "in"]
        for name, group in groups.items():
            if not self._dependency.check_pruning_group(group):
                raise UserError(
                    f"cutting {name!r} would leave a layer, or a parameter outside of layers, without channels"
                )
        # At once, while all indices are still those of the trace: after a cut torch-pruning moves the starts of slices
        # in a way of its own.
        joined = self._dependency.joined(groups.values())
        if not self._dependency.check_pruning_group(joined):
            raise UserError("cutting these groups together would leave a layer without channels")
        joined.prune(record_history=False)
        return consumers

    def _trace(self, example: Example, logits: Callable[[Any], Tensor]) -> Dependency:
        roots: list[Tensor] = []

        def named_outputs(output: Any) -> list[Tensor]:
            result = logits(output)
            if not isinstance(result, Tensor):
                raise UserError(f"logits(output) gave a {type(result).__name__}, not a tensor")
            if result.grad_fn is None:
                raise UserError(
                    "the logits do not depend on the parameters through autograd: is forward under torch.no_grad(), "
                    "or does it detach its output?"
                )
            outputs = [("logits", result)]
            outputs += [(name, t) for name, t in tensors_in(output) if t is not result and t.grad_fn is not None]
            for name, tensor in outputs:
                # A node of its own for every output: torch-pruning makes none when a layer's result is returned as it
                # is, nor for a tensor that is on the way to an earlier output.
                root = tensor * 1
                roots.append(root)
                self._outputs[root.grad_fn] = name
            return roots

        dependency = Dependency()
        traced = explained("the model cannot be traced for pruning")
        with traced, warnings.catch_warnings(), _attributes_kept(self._model), recurrent_in_one_step(self._model):
            warnings.simplefilter("ignore")  # about parameters outside of layers; every cut is verified
            dependency.build_dependency(
                self._model,
                example_inputs=(),
                forward_fn=lambda model, _: run_alike(model, example),
                output_transform=named_outputs,
                unwrapped_parameters=[],
                customized_pruners=dict(PRUNERS),
                ignored_layers=[],
                ignored_params=[],
                verbose=False,
            )
        return dependency

    def _group(self, name: str, indices: Sequence[int]) -> Any:
        root = self._model.get_submodule(name)
        pruner = self._dependency.get_pruner_of_module(root)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return self._dependency.get_pruning_group(root, pruner.prune_out_channels, list(indices))

    def _members(self, group: Any) -> list[Member]:
        members = []
        for item in group:
            module = item.dep.target.module
            if module not in self._names:
                continue
            pruner = self._dependency.get_pruner_of_module(module)
            # Norms and depthwise convolutions have one function for both sides: they are producers here.
            outwards = item.dep.handler in (pruner.prune_out_channels, tp.prune_depthwise_conv_out_channels)
            side: Literal["out", "in"] = "out" if outwards else "in"
            members.append(Member(self._names[module], module, side, tuple(item.idxs), tuple(item.root_idxs)))
        return members

    def _describe(self, group: Any, members: list[Member], shared: set[int]) -> ChannelGroup:
        root = members[0]
        outputs = [
            self._outputs.get(item.dep.target.grad_fn, "output")
            for item in group
            if item.dep.target.type == ops.OPTYPE.OUTPUT
        ]
        units, unprunable = self._units(root, members, self._split_into(group))
        along = {m.name for m in members if m.side == "in" and self._dependency.runs_along(m.module)}
        unprunable = unprunable or _why_unprunable(members, shared, along)
        hidden = any(member.side == "in" for member in members)
        unprunable = next(filter(None, (self._dependency.lost.get(item.dep.target) for item in group)), unprunable)
        if outputs and hidden and "logits" not in outputs:
            unprunable = f"its channels are those of {outputs[0]}, which the model returns beside the logits"
        is_output = "logits" in outputs or (bool(outputs) and not hidden)
        pattern = sorted(Counter(f"{type(m.module).__name__}.{m.side}" for m in members).items())
        return ChannelGroup(root.name, units, tuple(members), repr(pattern), is_output, unprunable)

    @staticmethod
    def _split_into(group: Any) -> int:
        """Return into how many equal parts forward splits the channels of the root, as chunk() does."""
        width = len(group[0].idxs)
        sizes = [item.dep.target.module.split_sizes for item in group if item.dep.target.type == ops.OPTYPE.SPLIT]
        return math.lcm(*(len(parts) for parts in sizes if parts and sum(parts) == width and len(set(parts)) == 1))

    def _units(self, root: Member, members: list[Member], split: int) -> tuple[tuple[tuple[int, ...], ...], str | None]:
        """Return the sets of root channels that go together, and why they cannot be told."""
        width = len(root.indices)
        parts = math.lcm(*(_parts(member) for member in members))
        coupled = len(self._members(self._group(root.name, [0]))[0].indices) > 1
        if not coupled:
            parts = math.lcm(parts, split)
        if parts > 1:
            why = "a grouped layer meets channels that are coupled" if coupled or width % parts else None
            norms = [(member.module, member) for member in members if isinstance(member.module, nn.GroupNorm)]
            if any(norm.num_groups > 1 and norm.num_channels != len(member.indices) for norm, member in norms):
                why = "a group norm's groups hold channels of several layers"
            size = max(1, width // parts)
            if size == 1:
                why = why or f"its {width} channels can only go all at once"
            return tuple(tuple(range(i, size * parts, size)) for i in range(size)), why
        if not coupled:
            return tuple((i,) for i in range(width)), None
        seen: dict[int, tuple[int, ...]] = {}
        for index in range(width):
            if index not in seen:
                unit = tuple(sorted(self._members(self._group(root.name, [index]))[0].indices))
                seen.update(dict.fromkeys(unit, unit))
        return tuple(dict.fromkeys(seen[index] for index in range(width))), None


def is_depthwise(module: nn.Module) -> bool:
    """Tell a convolution in which every channel is its own group."""
    return isinstance(module, _ConvNd) and module.groups == module.in_channels == module.out_channels > 1


def _parts(member: Member) -> int:
    """Return into how many equal parts the layer splits the channels: each must lose as many as the others."""
    module = member.module
    if isinstance(module, _ConvNd) and not is_depthwise(module):
        return int(module.groups)
    return module.num_groups if isinstance(module, nn.GroupNorm) else 1


def widths_of(module: nn.Module) -> tuple[int, int]:
    """Return a layer's input and output channels; what is no Conv, Linear or Embedding has as many out as in."""
    if isinstance(module, _ConvNd):
        return module.in_channels, module.out_channels
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    if isinstance(module, nn.Embedding):
        return module.num_embeddings, module.embedding_dim
    if isinstance(module, nn.RNNBase):
        return RECURRENT.get_in_channels(module), RECURRENT.get_out_channels(module)
    if isinstance(module, _NORMS):  # they may have no parameters
        width = next(vars(module)[name] for name in _NORM_WIDTHS if name in vars(module))
        width = int(width[-1] if isinstance(width, tuple) else width)
    else:
        width = next(iter(next(module.parameters(recurse=False)).shape), 1)
    return width, width


def _why_unprunable(members: list[Member], shared: set[int], along: Collection[str]) -> str | None:
    for member in members:
        module = member.module
        if member.name in along:
            return f"{member.name} is a {type(module).__name__} along its channels, in which each meets the others"
        if not isinstance(module, _CUTTABLE):
            return f"{member.name} is a {type(module).__name__}, which cannot be cut"
        if isinstance(module, nn.RNNBase) and member.side == "out":
            return f"its channels are joined to those of {member.name}, a {type(module).__name__}, which cannot be cut"
        if isinstance(module, _InstanceNorm) and module.track_running_stats:
            return f"{member.name} keeps running statistics of instances, which cannot be cut"
        if isinstance(module, _ConvNd) and module.transposed and module.groups > 1:
            return f"{member.name} is a grouped transposed convolution, which cannot be cut"
        if isinstance(module, nn.LayerNorm | nn.RMSNorm) and len(module.normalized_shape) > 1:
            return f"{member.name} normalises over several axes, which cannot be cut"
        one_for_all = isinstance(module, nn.PReLU) and module.num_parameters == 1
        width = None if one_for_all else widths_of(module)[member.side == "out" or isinstance(module, nn.Embedding)]
        if width is not None and max(member.indices) >= width:
            return f"its channels cannot be followed into {member.name}, which has fewer"
        own = dict(module.named_parameters(recurse=False))
        if isinstance(getattr(module, "weight", None), Tensor) and "weight" not in own:
            return (
                f"the weight of {member.name} is computed (by a mask, a weight or spectral norm, or another "
                "parametrization); remove that first"
            )
        beside = sorted(own.keys() - {"weight", "bias"})
        if not isinstance(module, nn.RNNBase) and any(width in own[name].shape for name in beside):
            return f"a {type(module).__name__} has a {beside[0]} of its own for each channel, which would not be cut"
        if any(id(parameter) in shared for parameter in own.values()):
            return f"{member.name} shares its weight with another layer"
    return None


@contextmanager
def _attributes_kept(model: nn.Module) -> Iterator[None]:
    """Give modules back the attributes that they had: a tensor with a history that one keeps could not be copied."""
    before = [(module, dict(vars(module)), dict(module._buffers)) for module in model.modules()]
    try:
        yield
    finally:
        for module, attributes, buffers in before:
            vars(module).clear()
            vars(module).update(attributes)
            module._buffers.update(buffers)


def prepare(model: nn.Module) -> nn.Module:
    """Set a working copy up for tracing, in place: eval mode, and every floating parameter requires a gradient.

    A frozen layer would otherwise be missing from the graph, and its neighbours would be cut without it.
    """
    model.eval()
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.requires_grad_(True)
        parameter.grad = None
    return model
