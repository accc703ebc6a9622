"""Structured pruning of attention: whole heads go, or the same dimensions of every head.

Heads are the default: what remains computes exactly what it did. Where there are fewer than four, a head is too much at
once, and dimensions go instead; the queries are rescaled, because the scores are divided by the root of the dimension.
Whole heads as prunable structure: Michel et al. 2019 (arXiv 1905.10650); heads that compete with those of
like attention: Fang et al. 2024 (arXiv 2407.04616).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from distill.errors import UserError
from distill.prune.attention.sites import (
    EITHER,
    HEAD_DIM,
    HEADS,
    INNER,
    SCALE,
    Site,
    Slot,
    follows_heads,
    site_of,
    sites,
)
from distill.prune.attention.stand_ins import needs_stand_in, stand_in_
from distill.prune.graph.groups import ChannelGroup, Member
from distill.prune.graph.verify import Checks, lifts_of, masked_copy, output_shapes, problem_with
from distill.prune.modules import Example, reason, set_tensor
from distill.state_dicts import twin

Kind = Literal["heads", "head_dim"]

_FEW_HEADS = 4
_NARROWEST = 8


@dataclass(frozen=True, eq=False)
class AttentionGroup(ChannelGroup):
    """The channels of an attention's values, 0..heads * head_dim - 1, as its output projection reads them.

    It bears the name of the attention module. ``kind`` says what a unit is: a head, or a dimension of every head.
    """

    kind: Kind
    heads: int


def attention_groups(model: nn.Module, *, kinds: Mapping[str, Kind] | None = None) -> list[ChannelGroup]:
    """Return one group for each attention; those that cannot be cut say why in ``unprunable``.

    Whether a cut would be right is told by running it only: ``verified_groups``. ``kinds`` says what a unit is, by
    group, where it is decided already: by an earlier step, when there were more heads.
    """
    return [_group(model, site, (kinds or {}).get(site.name)) for site in sites(model)]


def cut_attention(model: nn.Module, group_name: str, channels: Sequence[int]) -> list[Member]:
    """Remove root channels of one attention in place; return the output projection, which lost these inputs.

    What stays must be whole heads, or the same dimensions of each head that stays. Attributes that tell the sizes
    follow; attention that cannot run narrower than the model is exchanged for one that can (``stand_in_``). The member
    returned has the indices of before the cut.

    Raises:
        UserError: there is no such attention, it cannot be cut, or not like this; the model is as it was.
    """
    site = site_of(model, group_name)
    heads, dims = _remaining(site, channels)
    output = model.get_submodule(site.output)
    removed = tuple(sorted(set(channels)))
    consumers = [Member(site.output, output, "in", removed, removed)]
    if not removed:
        return consumers
    if needs_stand_in(site.module):
        site = replace(site, module=stand_in_(model, group_name))
    keep = [head * site.head_dim + dim for head in heads for dim in dims]
    for slot in site.slots:
        _narrow(model.get_submodule(slot.module), slot, heads if slot.by == "heads" else keep)
    # A stored scale that is another one than the root's stays as it is, and so do the queries.
    stored = [vars(site.module)[name] for name in SCALE if name in vars(site.module)]
    if len(dims) < site.head_dim and all(_is_root(site, value) for value in stored):
        _scale_queries(model, site, math.sqrt(len(dims) / site.head_dim))
    _update_attributes(site, len(heads), len(dims))
    return consumers


def attributes_of(module: nn.Module) -> dict[str, int | float]:
    """Return the attributes that tell the sizes of an attention, by name: those that ``cut_attention`` may change.

    Empty for a module that names no heads. Set on a freshly built module, after ``stand_in_`` where the cut one
    ``is_stand_in`` and once its tensors have the cut one's shapes, they make its forward the cut one's.
    """
    names = (*HEADS, *HEAD_DIM, *INNER, *EITHER, *SCALE)
    values = {name: vars(module)[name] for name in names if name in vars(module)}
    numbers = {k: v for k, v in values.items() if isinstance(v, int | float) and not isinstance(v, bool)}
    return numbers if any(name in numbers for name in (*HEADS, *HEAD_DIM)) else {}


def _group(model: nn.Module, site: Site, kind: Kind | None) -> AttentionGroup:
    kind, narrow = (kind, None) if kind else _kind(site)
    heads, dim = site.heads, site.head_dim
    if kind == "heads":
        units = tuple(tuple(range(head * dim, (head + 1) * dim)) for head in range(heads))
    else:
        units = tuple(tuple(range(index, site.width, dim)) for index in range(dim))
    pattern = f"attention {type(site.module).__name__} {kind}"
    unprunable = site.problem or narrow
    return AttentionGroup(site.name, units, tuple(_members(model, site)), pattern, False, unprunable, kind, heads)


def _kind(site: Site) -> tuple[Kind, str | None]:
    """Return what a unit of the attention is, and why none can go."""
    wide = site.head_dim >= 2 * _NARROWEST
    if site.heads >= _FEW_HEADS or (site.heads > 1 and (site.fixed_dim or not wide)):
        return "heads", None
    if site.fixed_dim:
        return "heads", f"it has one head only, and {site.fixed_dim}"
    return "head_dim", None if wide else f"it has one head of {site.head_dim} dimensions, which is narrow already"


def _members(model: nn.Module, site: Site) -> Iterable[Member]:
    roots = tuple(range(site.width))
    for name, roles in site.projections:
        layer = model.get_submodule(name)
        if isinstance(layer, nn.MultiheadAttention):
            if layer.in_proj_weight is None:
                continue
            layer = _as_linear(layer.in_proj_weight)
        rows = min(_tensor(layer, "weight").shape[0], site.width * len(roles))
        yield Member(name, layer, "out", tuple(range(rows)), (roots * len(roles))[:rows])
    if site.problem is None:
        yield Member(site.output, model.get_submodule(site.output), "in", roots, roots)


def _as_linear(weight: nn.Parameter) -> nn.Linear:
    """Return a layer that holds this very parameter, so that an importance sees its values and its gradient."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    layer.weight = weight
    return layer


def _remaining(site: Site, channels: Sequence[int]) -> tuple[list[int], list[int]]:
    """Return the heads that stay, and the dimensions that stay in each of them."""
    removed = set(channels)
    if not removed <= set(range(site.width)):
        raise UserError(f"attention {site.name!r} has channels 0 to {site.width - 1}, not {max(removed)}")
    left = {
        head: [dim for dim in range(site.head_dim) if head * site.head_dim + dim not in removed]
        for head in range(site.heads)
    }
    heads = [head for head, dims in left.items() if dims]
    if not heads:
        raise UserError(f"cutting {site.name!r} would leave an attention without heads")
    dims = left[heads[0]]
    if any(left[head] != dims for head in heads):
        raise UserError(f"attention {site.name!r} can lose whole heads or the same dimensions of every head only")
    if len(dims) < site.head_dim and site.fixed_dim:
        raise UserError(f"attention {site.name!r} can lose whole heads only: {site.fixed_dim}")
    if len(dims) < min(site.head_dim, _NARROWEST):
        raise UserError(f"attention {site.name!r} would be left with {len(dims)} dimensions a head; keep {_NARROWEST}")
    return heads, dims


def _tensor(owner: nn.Module, name: str) -> Tensor:
    value = getattr(owner, name)
    assert isinstance(value, Tensor)
    return value


def _narrow(owner: nn.Module, slot: Slot, keep: Sequence[int]) -> None:
    """Keep these entries of each part of the slot's axis."""
    value = _tensor(owner, slot.tensor)
    size = value.shape[slot.axis] // len(slot.roles)
    index = torch.tensor([part * size + entry for part in range(len(slot.roles)) for entry in keep])
    set_tensor(owner, slot.tensor, value.detach().index_select(slot.axis, index.to(value.device)).clone())
    if isinstance(owner, nn.Linear):
        owner.out_features, owner.in_features = owner.weight.shape


def _is_root(site: Site, value: object) -> bool:
    return isinstance(value, float) and math.isclose(value, site.head_dim**-0.5)


@torch.no_grad()
def _scale_queries(model: nn.Module, site: Site, factor: float) -> None:
    """Make up for the root of a smaller dimension, wherever forward takes it from."""
    for slot in site.slots:
        if "q" in slot.roles:
            value = _tensor(model.get_submodule(slot.module), slot.tensor)
            value[: value.shape[0] // len(slot.roles)] *= factor


def _update_attributes(site: Site, heads: int, dim: int) -> None:
    """Make the attributes say what is left; an attribute of another value than expected is not one of them."""
    module, attributes = site.module, vars(site.module)
    is_torchs = isinstance(module, nn.MultiheadAttention)  # whose embed_dim is the model's
    either = (name for name in EITHER if name in attributes and not is_torchs and follows_heads(module, name))
    for names, before, now in (
        (HEADS, site.heads, heads),
        (HEAD_DIM, site.head_dim, dim),
        ((*INNER, *either), site.width, heads * dim),
    ):
        for name in names:
            if name in attributes and type(attributes[name]) is int and attributes[name] == before:
                setattr(module, name, now)
    for name in SCALE:
        if name in attributes and _is_root(site, attributes[name]):
            setattr(module, name, dim**-0.5)


def verified_groups(
    model: nn.Module,
    example: Example,
    logits: Callable[[Any], Tensor],
    *,
    kinds: Mapping[str, Kind] | None = None,
) -> list[ChannelGroup]:
    """Return ``attention_groups``, of which those whose trial cut goes wrong are ``unprunable`` and say how.

    The trial takes every second unit from a copy, which must run at batch 1 and 2 and compute what the model does with
    those channels masked. All groups are tried together first, and one by one only if that fails.

    Raises:
        UserError: the model as it is does not run on its example.
    """
    groups = attention_groups(model, kinds=kinds)
    model = twin(model).eval()  # some models write down what they saw
    checks = Checks(example, logits, output_shapes(model, example, logits))
    trial = {g.name: [channel for unit in g.units[::2] for channel in unit] for g in groups if not g.unprunable}
    if not trial or attention_problem(model, trial, checks) is None:
        return groups
    problems = {name: attention_problem(model, {name: channels}, checks) for name, channels in trial.items()}
    return [replace(group, unprunable=group.unprunable or problems.get(group.name)) for group in groups]


@torch.no_grad()
def mask_attention(model: nn.Module, group_name: str, channels: Sequence[int]) -> None:
    """Zero, in place, all that root channels of one attention say: what a cut of them is compared with.

    Queries and keys too, since a dimension also speaks through the scores. No shape and no attribute changes.

    Raises:
        UserError: there is no such attention, or it cannot be cut.
    """
    site = site_of(model, group_name)
    for slot in site.slots:
        value = getattr(model.get_submodule(slot.module), slot.tensor)
        for part, role in enumerate(slot.roles):
            if role in ("q", "k") and slot.by == "channels":
                value[[part * site.width + channel for channel in channels]] = 0
    model.get_submodule(site.output).get_parameter("weight")[:, list(channels)] = 0


@torch.no_grad()
def attention_problem(model: nn.Module, chosen: Mapping[str, Sequence[int]], checks: Checks) -> str | None:
    """Return what is wrong after these channels are cut from a copy, or None.

    The model is in eval mode, or its dropout is what is wrong. Norms stay active: what they see is as wide as before.
    """
    lifts = lifts_of(model)
    pruned, masked = twin(model), masked_copy(model, (), lifts)
    try:
        for name, channels in chosen.items():
            cut_attention(pruned, name, channels)
            mask_attention(masked, name, channels)
    except UserError as error:
        return f"with fewer of its channels {error}"
    except Exception as error:  # whatever indexing a foreign module's tensors raises
        return reason(error)
    return problem_with(pruned, masked, checks, lifts, norms=True)
