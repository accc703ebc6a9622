"""The groups are torch-pruning's own, found without going anywhere twice."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import pytest
import torch
import torch_pruning as tp
from prune_zoo import HARD, MAIN, make
from torch import Tensor, nn

from distill.prune.graph.dependency import Dependency
from distill.prune.graph.groups import ROOTS, Graph, prepare
from distill.prune.modules import at_batch

ALL = {**MAIN, **HARD}


def members(group: Any) -> dict[Any, set[int]]:
    """Return the indices by the node and the side of it that they go from."""
    found: dict[Any, set[int]] = defaultdict(set)
    for item in group:
        assert len(item.idxs) == len(item.root_idxs)
        found[item.dep.target, item.dep.handler] |= set(item.idxs)
    return dict(found)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("which", ["all", "some"])
def test_they_hold_what_torch_pruning_finds(name: str, which: str) -> None:
    case = ALL[name]
    graph = Graph(prepare(make(case)), at_batch(case.example(), 2), case.logits)._dependency
    assert isinstance(graph, Dependency)
    roots = [module for module in graph.module2node if isinstance(module, ROOTS)]
    assert roots
    for module in roots:
        pruner = graph.get_pruner_of_module(module)
        width = pruner.get_out_channels(module)
        asked = list(range(width)) if which == "all" else [0, width - 1]
        with graph._reads_shapes():
            theirs = tp.DependencyGraph.get_pruning_group(graph, module, pruner.prune_out_channels, asked)
        found = members(graph.get_pruning_group(module, pruner.prune_out_channels, asked))
        # What channels are lost in is not passed: all that such a group is for is that it is kept.
        lost = any(node in graph.lost for node, _ in found)
        assert found == members(theirs) or (lost and found.keys() <= members(theirs).keys())


def test_shortcuts_that_join_some_channels_are_done_in_time() -> None:
    """As in ReXNet: torch-pruning sends each of 2^n lists of indices on."""

    class Partial(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Conv2d(8 + 2 * n, 10 + 2 * n, 1) for n in range(24))
            self.head = nn.Linear(56, 3)

        def forward(self, x: Tensor) -> Tensor:
            for layer in self.layers:
                y = torch.relu(layer(x))
                x = torch.cat([y[:, : x.shape[1]] + x, y[:, x.shape[1] :]], 1)
            answer: Tensor = self.head(x.mean((2, 3)))
            return answer

    model = prepare(Partial())
    graph = Graph(model, ((torch.randn(2, 8, 4, 4),), {}), lambda output: output)
    stream = next(
        group for group in graph.groups() if any(one.name == "head" and one.side == "in" for one in group.members)
    )
    assert (stream.width, stream.unprunable) == (56, None)
    readers = {member.name for member in stream.members if member.side == "in"}
    assert readers >= {f"layers.{n}" for n in range(1, 24)}
