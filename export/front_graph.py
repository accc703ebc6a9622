"""Preprocessing that was exported with its model: cut off as a graph of its own, and put in front again."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from onnx import ModelProto, NodeProto, helper, version_converter

from distill.export.canonical import canonical
from distill.export.stripping import drop_dead, strip

from .graph import attribute, initializers, opset_of, output_names, refill, rename_all, replace_input, use_counts

DOMAIN, BOUNDARY = "distill", "Boundary"
"""The operator that the exporter writes where preprocessing ends; its attribute ``place`` numbers the tensors."""
BATCH = "batch"
_PREFIX = "preprocessed."  # the dot keeps it apart from the raw inputs, which are called as parameters are


def boundary_name(place: int) -> str:
    """Return what a graph behind preprocessing calls the tensor that comes at this place of the model's arguments."""
    return f"{_PREFIX}{place}"


def boundary_place(name: str) -> int:
    """Return at which place of the model's arguments the tensor of this name comes."""
    return int(name.removeprefix(_PREFIX))


@dataclass(frozen=True)
class Halves:
    """A model's graph, and that of the preprocessing in front of it, None for a model that has none."""

    core: ModelProto
    front: ModelProto | None = None

    @cached_property
    def whole(self) -> ModelProto:
        """The graph that takes the raw inputs, stripped."""
        return self.core if self.front is None else join(self.front, self.core)


def cut(proto: ModelProto) -> tuple[ModelProto, ModelProto | None] | None:
    """Return what lies in front of the boundaries and what lies behind them; None for a graph that has none.

    The second is None if it needs lengths of the raw inputs, beside the batch size, that no boundary shows.
    """
    front, core = canonical(proto), canonical(proto)
    marks = [node for node in front.graph.node if node.domain == DOMAIN and node.op_type == BOUNDARY]
    if not marks:
        return None
    types = {value.name: value.type for value in (*proto.graph.value_info, *proto.graph.output)}
    places = [helper.get_attribute_value(mark.attribute[0]) for mark in marks]
    values = [
        helper.make_value_info(boundary_name(place), types[mark.output[0]])
        for mark, place in zip(marks, places, strict=True)
    ]
    for graph in (front.graph, core.graph):
        for mark, value in zip([n for n in graph.node if n.domain == DOMAIN], values, strict=True):
            ends = [mark.input[0], value.name] if graph is front.graph else [value.name, mark.output[0]]
            mark.CopyFrom(helper.make_node("Identity", ends[:1], ends[1:]))
    refill(front.graph.output, values)
    raw = {value.name for value in core.graph.input}
    refill(core.graph.input, values)
    batched = next((v.name for v in values if v.type.tensor_type.shape.dim[:1][0].dim_param == BATCH), None)
    for node in core.graph.node:
        if batched is not None and node.input and node.input[0] in raw and _reads_batch(node):
            node.input[0] = batched
    for model in (front, core):
        drop_dead(model.graph)
    return front, None if raw & use_counts(core.graph).keys() else core


def _reads_batch(node: NodeProto) -> bool:
    return node.op_type == "Shape" and attribute(node, "start", 0) == 0 and attribute(node, "end") == 1


def join(front: ModelProto, core: ModelProto) -> ModelProto:
    """Return one graph of both, stripped: the front's outputs are the core's inputs of the same names.

    Neither is changed. Where the core needs a newer opset, the front is written in it.
    """
    if opset_of(front) < opset_of(core):
        front = version_converter.convert_version(front, opset_of(core))
    first, second = canonical(front), canonical(core)
    raw, outputs = {value.name for value in first.graph.input}, output_names(second.graph)
    rename_all(first.graph, lambda name: f"pre/{name}", keep=raw)
    rename_all(second.graph, lambda name: f"core/{name}", keep=outputs)
    for value in second.graph.input:
        replace_input(second.graph, value.name, "pre/" + value.name.removeprefix("core/"))
    refill(second.graph.input, first.graph.input)
    refill(second.graph.node, [*first.graph.node, *second.graph.node])
    refill(second.graph.initializer, [*initializers(first.graph).values(), *second.graph.initializer])
    del second.graph.value_info[:]
    imported = {entry.domain for entry in second.opset_import}
    second.opset_import.extend(entry for entry in first.opset_import if entry.domain not in imported)
    return strip(second)
