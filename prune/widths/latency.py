"""Which widths buy the most time for the least importance on a device, by what its kernels cost at each width.

The choice is greedy, as in NetAdapt (arXiv 1804.03230) and HALP (arXiv 2110.10811): again and again that group is
narrowed, to that width, which saves the most seconds for what it loses. Costs are staircases, so a move may skip the
widths that save nothing, and never ends on one that is as slow as a wider one.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import accumulate, product
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from distill.prune.graph.groups import is_depthwise
from distill.prune.modules import Example, at_batch, hooked
from distill.prune.widths.layer_costs import LayerShape
from distill.prune.widths.selection import Candidate, blocks
from distill.prune.widths.sizes import Removed, Sizes

LayerCost = Callable[[Iterable[LayerShape]], Mapping[LayerShape, float]]
_STOPS = 8  # widths of a group that are looked at: each layer is timed at up to the square of it
_WIDER = 4  # blocks that a snapped width may be widened by
_EQUAL = 1.01  # times of kernels that differ less are one step of the stairs


@dataclass(frozen=True)
class Device:
    """What a device is asked.

    ``measure`` returns the seconds of one call of a model as it ships, exported and at batch ``batch``. ``layers``
    returns those of layers alone; without it they are taken to cost what they count in multiply-accumulates.
    """

    measure: Callable[[nn.Module], float]
    layers: LayerCost | None = None
    batch: int = 1


def shapes_of(model: nn.Module, example: Example, batch: int) -> dict[str, list[LayerShape]]:
    """Return the shapes that each Conv and Linear layer is called with, by its name, in order of the calls."""
    shapes: dict[str, list[LayerShape]] = {}

    def watch(name: str, module: nn.Module, inputs: tuple[Any, ...], _: Any) -> None:
        if inputs and isinstance(inputs[0], Tensor):
            shapes.setdefault(name, []).append(_shape(module, inputs[0], batch))

    args, kwargs = at_batch(example, batch)
    handles = (
        module.register_forward_hook(partial(watch, name))
        for name, module in model.named_modules()
        if isinstance(module, _ConvNd | nn.Linear) and not getattr(module, "transposed", False)
    )
    with hooked(handles), torch.no_grad():
        model(*args, **kwargs)
    return shapes


def _shape(module: Any, value: Tensor, batch: int) -> LayerShape:
    if isinstance(module, nn.Linear):
        rows = max(1, value.numel() // max(1, value.shape[-1]) // batch)
        return LayerShape("linear", module.in_features, module.out_features, (rows,), batch)
    kernel, dilation = tuple(module.kernel_size), tuple(module.dilation)
    same = tuple(d * (k - 1) // 2 for k, d in zip(kernel, dilation, strict=True))
    padding = tuple(module.padding) if not isinstance(module.padding, str) else same if module.padding == "same" else ()
    return LayerShape(
        "conv",
        module.in_channels,
        module.out_channels,
        tuple(value.shape[2:]),
        value.shape[0],
        kernel,
        tuple(module.stride),
        padding or tuple(0 for _ in kernel),
        dilation,
        0 if is_depthwise(module) else module.groups,
    )


@dataclass
class LayerCosts:
    """Seconds of the layers of one model at any widths of its groups."""

    shapes: Mapping[str, Sequence[LayerShape]]
    sizes: Sizes
    layers: LayerCost
    _timed: dict[LayerShape, float] = field(default_factory=dict)
    _seconds: dict[tuple[str, tuple[int, int]], float] = field(default_factory=dict)

    def prefetch(self, states: Iterable[tuple[str, Removed]]) -> None:
        """Have the layers of these (layer, counts) timed together, which a device does better than one by one."""
        wanted = dict.fromkeys(shape for name, removed in states for shape in self._at(name, removed))
        missing = [shape for shape in wanted if shape not in self._timed]
        if missing:
            self._timed |= self.layers(missing)

    def of_layer(self, name: str, removed: Removed) -> float:
        """Return the seconds of a layer when these units are removed."""
        if name not in self.shapes:
            return 0.0
        key = name, self.sizes.widths(name, removed)
        if key not in self._seconds:
            self.prefetch([(name, removed)])
            self._seconds[key] = sum(self._timed[shape] for shape in self._at(name, removed))
        return self._seconds[key]

    def of_group(self, group: str, removed: Removed) -> float:
        """Return the seconds of all layers that hold channels of a group."""
        return sum(self.of_layer(name, removed) for name in self.sizes.touched(group))

    def total(self, removed: Removed) -> float:
        """Return the seconds of all layers."""
        return sum(self.of_layer(name, removed) for name in self.shapes)

    def _at(self, name: str, removed: Removed) -> list[LayerShape]:
        if name not in self.shapes:
            return []
        into, out = self.sizes.widths(name, removed)
        return [_whole(shape.at(into, out)) for shape in self.shapes[name]]


def _whole(shape: LayerShape) -> LayerShape:
    """Round the widths of a grouped convolution to whole groups."""
    parts = shape.parts
    if parts < 2:
        return shape
    return shape.at(max(parts, shape.width_in // parts * parts), max(parts, shape.width_out // parts * parts))


@dataclass(frozen=True)
class Ladder:
    """A group's units in order of what they are worth, and the counts at which a cut may stop.

    ``harm[n]`` is what the model loses when the ``n`` cheapest units go: -log of the share of importance that stays,
    times what the group is worth beside others. So the last channels of a layer are the dearest, whatever their scores.
    """

    name: str
    ranked: tuple[int, ...]
    harm: tuple[float, ...]
    stops: tuple[int, ...]
    fine: tuple[int, ...]


def ladder(candidate: Candidate, weight: float, *, round_to: int, max_ratio: float) -> Ladder:
    """Describe how a candidate is narrowed; ``weight`` is its worth beside others."""
    parts = blocks(candidate, round_to=round_to, max_ratio=max_ratio)
    ranked = tuple(sorted(range(len(candidate.scores)), key=lambda unit: (candidate.scores[unit], unit)))
    total = sum(candidate.scores)
    removed = [0.0, *accumulate(candidate.scores[unit] for unit in ranked)]
    harm = tuple(-math.log(max(1e-9, 1 - share / total)) * weight if total else 0.0 for share in removed)
    fine = tuple(accumulate(len(part.units) for part in parts))
    left = len(candidate.scores)
    # Widths on multiples of a larger step are the likelier ends of a stair.
    step = round_to * math.ceil(len(fine) / _STOPS) if fine else round_to
    stops = [count for count in fine if (left - count) * candidate.unit % step == 0]
    stops += [fine[-1]] if fine and fine[-1] not in stops else []
    return Ladder(candidate.name, ranked, harm, tuple(stops), fine)


def choose_seconds(ladders: Sequence[Ladder], costs: LayerCosts, goal_s: float) -> dict[str, int]:
    """Return how many units of each group go so that the layers together take ``goal_s``, or the least they can."""
    _prefetch_all(ladders, costs)
    removed: dict[str, int] = {}
    total = costs.total(removed)
    while total > goal_s:
        move = _best_move(ladders, costs, removed)
        if move is None:
            return removed
        rungs, count, saved = move
        removed[rungs.name] = count
        total -= saved
    return given_back(ladders, costs, removed, goal_s)


def _best_move(
    ladders: Sequence[Ladder], costs: LayerCosts, removed: Mapping[str, int]
) -> tuple[Ladder, int, float] | None:
    """Find the narrowing that costs least harm for each second it saves."""
    best: tuple[float, Ladder, int, float] | None = None
    for rungs in ladders:
        now = removed.get(rungs.name, 0)
        before = costs.of_group(rungs.name, removed)
        for count in (stop for stop in rungs.stops if stop > now):
            saved = before - costs.of_group(rungs.name, {**removed, rungs.name: count})
            price = (rungs.harm[count] - rungs.harm[now]) / saved if saved > 0 else math.inf
            if price < (best[0] if best else math.inf):
                best = price, rungs, count, saved
    return None if best is None else best[1:]


def given_back(ladders: Sequence[Ladder], costs: LayerCosts, removed: Removed, goal_s: float) -> dict[str, int]:
    """Undo what turned out not to be needed, the most harmful first: last moves overshoot, and overtake early ones."""
    result = {name: count for name, count in removed.items() if count}
    if costs.total(result) > goal_s:
        return result
    for rungs in sorted(ladders, key=lambda rungs: -rungs.harm[result.get(rungs.name, 0)]):
        for count in (0, *rungs.stops):
            if count >= result.get(rungs.name, 0):
                break
            wider = {**result, rungs.name: count}
            if costs.total(wider) <= goal_s:
                result = wider
                break
    return {name: count for name, count in result.items() if count}


def _prefetch_all(ladders: Sequence[Ladder], costs: LayerCosts) -> None:
    """Have every layer timed at all widths that its groups may stop at: one group at a time, then two together."""
    stops = {rungs.name: (0, *rungs.stops) for rungs in ladders}
    of_layer = defaultdict[str, list[str]](list)
    for rungs in ladders:
        for name in costs.sizes.touched(rungs.name):
            of_layer[name].append(rungs.name)
    states: list[tuple[str, Removed]] = [(name, {}) for name in costs.shapes]
    for name, groups in of_layer.items():
        pair = groups[:2]
        states += [(name, dict(zip(pair, counts, strict=True))) for counts in product(*(stops[g] for g in pair))]
    costs.prefetch(states)


def snap(ladders: Sequence[Ladder], costs: LayerCosts, removed: Removed) -> dict[str, int]:
    """Widen each narrowed group to the widest count that costs no more: to the end of its step, or off a slow width."""
    result = {name: count for name, count in removed.items() if count}
    for rungs in ladders:
        if not (now := result.get(rungs.name, 0)):
            continue
        wider = [count for count in (0, *rungs.fine) if count < now][-_WIDER:]
        costs.prefetch(
            (layer, {**result, rungs.name: count})
            for count in (*wider, now)
            for layer in costs.sizes.touched(rungs.name)
        )
        limit = costs.of_group(rungs.name, result) * _EQUAL
        fits = [count for count in wider if costs.of_group(rungs.name, {**result, rungs.name: count}) <= limit]
        if fits:
            result[rungs.name] = min(fits)
    return {name: count for name, count in result.items() if count}


def by_macs(shapes: Iterable[LayerShape]) -> dict[LayerShape, float]:
    """Let layers cost what they count in multiply-accumulates, where a device cannot time them alone."""
    return {shape: shape.macs * 1e-9 for shape in shapes}


def seconds_of_layers(model: nn.Module, example: Example, device: Device | None) -> dict[str, float]:
    """Return what each layer takes alone on a device; empty where none can tell."""
    if device is None or device.layers is None:
        return {}
    shapes = shapes_of(model, example, device.batch)
    seconds = device.layers([shape for of_layer in shapes.values() for shape in of_layer])
    return {name: sum(seconds[shape] for shape in of_layer) for name, of_layer in shapes.items()}
