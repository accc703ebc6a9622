"""Cutting a copy of a model and checking it by running it; which groups are to blame where that fails."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from torch import nn

from distill.errors import UserError
from distill.prune.attention.heads import cut_attention, mask_attention
from distill.prune.graph.groups import ROOTS, Graph, prepare
from distill.prune.graph.verify import Checks, lifts_of, masked_copy, problem_with
from distill.prune.modules import reason
from distill.state_dicts import twin
from distill.types import Progress

Channels = Mapping[str, Sequence[int]]
"""Group's name -> its root channels that go."""


class BrokenError(Exception):
    """Groups that cannot be cut after all, each with the reason; nothing was changed."""

    def __init__(self, culprits: Mapping[str, str]) -> None:
        super().__init__(", ".join(culprits))
        self.culprits = dict(culprits)


def cut(model: nn.Module, chosen: Channels, checks: Checks, progress: Progress | None = None) -> nn.Module:
    """Return a copy without the chosen channels; it runs, keeps its outputs' shapes, and computes what it should.

    Raises:
        BrokenError: some groups break the model, alone or with others; these can be cut.
    """
    pruned, problem = _attempt(model, chosen, checks)
    if problem is None:
        return pruned
    raise BrokenError(_culprits(model, chosen, problem, checks, progress))


def _culprits(
    model: nn.Module, chosen: Channels, problem: str, checks: Checks, progress: Progress | None
) -> dict[str, str]:
    """Halve the groups until those that break the model stand alone; return these, and how they break it.

    The others can be cut together. Of groups that break the model together only, the last is to blame.
    """
    culprits: dict[str, str] = {}
    sound: list[str] = []
    waiting = [list(chosen)]

    def trouble(names: Sequence[str]) -> str | None:
        return _attempt(model, {name: chosen[name] for name in names}, checks)[1]

    while waiting:
        names = waiting.pop()
        why = problem if len(names) == len(chosen) else trouble([*sound, *names])
        if why is None:
            sound += names
        elif len(names) > 1:
            middle = len(names) // 2
            waiting += [names[middle:], names[:middle]]
        else:
            alone = trouble(names) if sound else why
            culprits[names[0]] = alone or _with_which(lambda count: trouble([*names, *sound[:count]]), sound, why)  # noqa: B023
        if progress is not None:
            progress("finding layers that cannot be cut", len(sound) + len(culprits), len(chosen))
    return culprits


def _with_which(trouble: Callable[[int], str | None], sound: Sequence[str], why: str) -> str:
    """Say what goes wrong, and with which of the sound groups, the first so many of which bring trouble."""
    fine, broken = 0, len(sound)
    while broken - fine > 1:
        middle = (fine + broken) // 2
        problem = trouble(middle)
        fine, broken, why = (middle, broken, why) if problem is None else (fine, middle, problem)
    return f"{why}, where {sound[broken - 1]} is narrowed, too"


def _attempt(model: nn.Module, chosen: Channels, checks: Checks) -> tuple[nn.Module, str | None]:
    """Cut a copy; return it and what is wrong with it."""
    pruned = twin(model)
    if not chosen:
        return pruned, None
    lifts = lifts_of(model)
    heads = [name for name in chosen if not isinstance(model.get_submodule(name), ROOTS)]
    try:
        graph = Graph(pruned, checks.example, checks.logits)
        consumers = graph.cut({name: indices for name, indices in chosen.items() if name not in heads})
        masked = masked_copy(model, consumers, lifts)
        for name in heads:  # last: their modules may be exchanged for others, which the graph does not know
            cut_attention(pruned, name, chosen[name])
            mask_attention(masked, name, chosen[name])
    except Exception as error:  # torch-pruning asserts, indexes and multiplies its way out
        return pruned, f"{error}" if isinstance(error, UserError) else reason(error)
    prepare(pruned)
    return pruned, problem_with(pruned, masked, checks, lifts)
