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
    culprits = _culprits(model, chosen, problem, checks, progress)
    raise BrokenError(culprits or _culprits_together(model, chosen, checks, progress))


def _culprits(
    model: nn.Module, chosen: Channels, problem: str, checks: Checks, progress: Progress | None
) -> dict[str, str]:
    """Halve the groups that break the model until each stands alone; return those, and how they break it."""
    culprits: dict[str, str] = {}
    waiting = [(dict(chosen), problem)]
    cleared = 0
    while waiting:
        groups, why = waiting.pop()
        if len(groups) == 1:
            culprits |= dict.fromkeys(groups, why)
            cleared += 1
        else:
            names = list(groups)
            for half in (names[len(names) // 2 :], names[: len(names) // 2]):
                part = {name: groups[name] for name in half}
                trouble = _attempt(model, part, checks)[1]
                if trouble is None:
                    cleared += len(part)
                else:
                    waiting.append((part, trouble))
        if progress is not None:
            progress("finding layers that cannot be cut", min(cleared, len(chosen)), len(chosen))
    return culprits


def _culprits_together(model: nn.Module, chosen: Channels, checks: Checks, progress: Progress | None) -> dict[str, str]:
    """Return groups without which the others can be cut together, and what each breaks with which of them.

    Of groups that break the model together, the last is to blame.
    """
    culprits: dict[str, str] = {}
    sound: list[str] = []
    waiting = list(chosen)

    def trouble(names: Sequence[str]) -> str | None:
        return _attempt(model, {name: chosen[name] for name in names}, checks)[1]

    while waiting and (why := trouble([*sound, *waiting])) is not None:
        count, why = _first_broken(lambda n: trouble([*sound, *waiting[:n]]), len(waiting), why)  # noqa: B023
        sound, culprit, waiting = [*sound, *waiting[: count - 1]], waiting[count - 1], waiting[count:]
        alone = trouble([culprit])
        if alone is None:
            count, why = _first_broken(lambda n: trouble([culprit, *sound[:n]]), len(sound), why)  # noqa: B023
            why = f"{why}, where {sound[count - 1]} is narrowed, too"
        culprits[culprit] = alone or why
        if progress is not None:
            progress("finding layers that cannot be cut together", len(chosen) - len(waiting), len(chosen))
    return culprits


def _first_broken(trouble: Callable[[int], str | None], most: int, why: str) -> tuple[int, str]:
    """Return the number of things from which on there is trouble, and which; with ``most`` of them there is ``why``."""
    sound = 0
    while most - sound > 1:
        middle = (sound + most) // 2
        found = trouble(middle)
        sound, most, why = (middle, most, why) if found is None else (sound, middle, found)
    return most, why


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
