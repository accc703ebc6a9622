"""Numbers in place of tensors' names, while a tool makes names of its own.

onnxruntime's quantisers call the scale of `x` `x_scale`, and onnx's converter of opsets counts `_v_1`, `_v_2`, …,
whether a tensor of the user's is called that already or not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from onnx import GraphProto, ModelProto

from .graph import all_graphs, copy_of, defined_names, free_prefix, rename_all


@dataclass(frozen=True)
class PlainNames:
    """The number of each tensor of a graph and its nested ones, by its name; a tool's new name is never a number."""

    numbers: Mapping[str, str]

    @classmethod
    def of(cls, graph: GraphProto) -> PlainNames:
        """Give each tensor its number, in the order in which they are defined."""
        names = dict.fromkeys(name for part in all_graphs(graph) for name in defined_names(part))
        return cls({name: f"t{number}" for number, name in enumerate(names)})

    def hide(self, model: ModelProto) -> ModelProto:
        """Return a copy of the model in which each tensor is called its number."""
        twin = copy_of(model)
        rename_all(twin.graph, lambda name: self.numbers.get(name, name))
        return twin

    def reveal(self, graph: GraphProto) -> None:
        """Give the tensors their names back, in place; what was added gets a name that none of them has."""
        names = {number: name for name, number in self.numbers.items()}
        prefix = free_prefix(self.numbers, "new")
        rename_all(graph, lambda name: names.get(name, f"{prefix}/{name}"))
