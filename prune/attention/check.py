"""Is a narrowed attention what it should be? Checked by running it beside one whose channels are masked instead."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from distill.errors import UserError
from distill.prune.attention.heads import Kind, attention_groups, cut_attention
from distill.prune.attention.sites import site_of
from distill.prune.examples import Example
from distill.prune.graph.groups import ChannelGroup
from distill.prune.graph.verify import Checks, lifts_of, masked_copy, output_shapes, problem_with
from distill.prune.modules import reason


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
    model = copy.deepcopy(model).eval()  # some models write down what they saw
    checks = Checks(example, logits, output_shapes(model, example, logits))
    trial = {group.name: _every_second(group) for group in groups if not group.unprunable}
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
    pruned, masked = copy.deepcopy(model), masked_copy(model, (), lifts)
    try:
        for name, channels in chosen.items():
            cut_attention(pruned, name, channels)
            mask_attention(masked, name, channels)
    except UserError as error:
        return f"with fewer of its channels {error}"
    except Exception as error:  # whatever indexing a foreign module's tensors raises
        return reason(error)
    return problem_with(pruned, masked, checks, lifts, norms=True)


def _every_second(group: ChannelGroup) -> list[int]:
    return [channel for unit in group.units[::2] for channel in unit]
