"""How many channels each layer loses, and which. Pure: no model, no torch.

Channels go in blocks, so that every width that is cut ends on a multiple. A block is as large as the step from one
multiple to the next, and is worth the mean of its units. The layers of one scope give up their cheapest blocks, in a
fixed order, until the next block would leave the scope farther from what was asked. Therefore a larger ratio always
removes a superset, and no scope loses more than half a block beyond its share.

A policy that knows a device (which widths its kernels like, what a block saves there) replaces ``blocks`` and the
order; the rest stays.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

Units = Mapping[str, tuple[int, ...]]
"""The units that go, by candidate; a candidate that loses nothing is not in it."""
_BISECTIONS = 12  # to a four-thousandth of the channels, finer than their blocks


@dataclass(frozen=True)
class Candidate:
    """A group of channels that may be cut: the score of each unit, and the channels in one unit.

    ``initial`` is the number of units before the first step; ``scope`` names those it competes with.
    """

    name: str
    scope: str
    scores: tuple[float, ...]
    unit: int
    initial: int


@dataclass(frozen=True)
class Block:
    """Units of one candidate that go together to reach the next multiple."""

    candidate: str
    units: tuple[int, ...]
    channels: int
    score: float


def blocks(candidate: Candidate, *, round_to: int, max_ratio: float) -> list[Block]:
    """Return the blocks that may go, cheapest first; none if the layer is narrower than ``round_to``."""
    step = round_to // math.gcd(round_to, candidate.unit)
    count = len(candidate.scores)
    # The smallest count that max_ratio allows, on a multiple; the epsilon forgives 10 * (1 - 0.7) = 3.0000000000000004.
    least = max(1, math.ceil(candidate.initial * (1 - max_ratio) - 1e-9))
    least = math.ceil(least / step) * step
    ranked = sorted(range(count), key=lambda index: (candidate.scores[index], index))
    result = []
    start, size, score = 0, count % step or step, 0.0
    while count - start - size >= least:
        units = ranked[start : start + size]
        # Never below the block before it, not even by rounding: a block without its predecessor breaks the multiple.
        score = max(score, sum(candidate.scores[index] for index in units) / size)
        result.append(Block(candidate.name, tuple(sorted(units)), size * candidate.unit, score))
        start, size = start + size, step
    return result


def choose(candidates: Sequence[Candidate], *, ratio: float, round_to: int, max_ratio: float) -> Units:
    """Return the units that go for a share of the channels of each scope."""
    chosen: dict[str, list[int]] = {}
    for scope in dict.fromkeys(candidate.scope for candidate in candidates):
        members = [candidate for candidate in candidates if candidate.scope == scope]
        initial = sum(member.initial * member.unit for member in members)
        removed = initial - sum(len(member.scores) * member.unit for member in members)
        order = [block for member in members for block in blocks(member, round_to=round_to, max_ratio=max_ratio)]
        order.sort(key=lambda block: block.score)  # stable, and ascending within a candidate already
        for block in order:
            if removed + block.channels / 2 >= ratio * initial:
                break
            removed += block.channels
            chosen.setdefault(block.candidate, []).extend(block.units)
    return {name: tuple(sorted(units)) for name, units in chosen.items()}


def choose_until(
    candidates: Sequence[Candidate],
    *,
    goal: float,
    left: Callable[[Units], float],
    round_to: int,
    max_ratio: float,
) -> Units:
    """Return the units that go so that what is ``left`` of something is nearest to ``goal``.

    ``left`` gives the share that stays when these units go; it falls as more do. Every scope loses the same share of
    its channels, as in ``choose``: the share is what is searched for, by bisection.
    """

    def chosen(ratio: float) -> Units:
        return choose(candidates, ratio=ratio, round_to=round_to, max_ratio=max_ratio)

    trials: list[Units] = [{}, chosen(max_ratio)]
    if left(trials[1]) >= goal:
        return trials[1]
    low, high = 0.0, max_ratio
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        trials.append(chosen(middle))
        low, high = (middle, high) if left(trials[-1]) > goal else (low, middle)
    # Where the share is crossed several scopes may lose a block at once: one after the other comes nearer.
    between, upper = dict(chosen(low)), chosen(high)
    for name, units in upper.items():
        if between.get(name) != units:
            between = {**between, name: units}
            trials.append(between)
    return min(trials, key=lambda units: abs(left(units) - goal))
