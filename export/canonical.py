"""A form of ONNX graphs in which a name says which tensor is meant, so that a rewrite by names is right."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import count

from onnx import GraphProto, ModelProto, TensorProto, helper, inliner

from distill.errors import UserError

from .graph import STANDARD, all_graphs, all_nodes, attribute_graphs, copy_of, defined_names, rename_here, sort_nodes

_FIRST_IR_WITH_DEFAULTS = 4  # before, every constant had to be listed as an input too


def canonical(proto: ModelProto) -> ModelProto:
    """Return a copy of a model that computes the same, for rewrites to start from.

    Model-local functions are inlined. No two graphs of it, nested or side by side, define the same name. Nodes stand in
    the order of their data, and those of the standard have the domain "". Constants are no inputs, in files of IR
    versions below 4 either, which get version 4. What trains the model is left out. The model that is given is not
    changed.

    Raises:
        UserError: some values lie in another file, which has not been read.
    """
    _require_values(proto.graph)
    model = inliner.inline_local_functions(proto) if proto.functions else copy_of(proto)
    model.ClearField("training_info")
    _name_domain_once(model)
    if model.ir_version < _FIRST_IR_WITH_DEFAULTS:
        freeze_defaults(model)
        model.ir_version = _FIRST_IR_WITH_DEFAULTS
    _separate_scopes(model.graph)
    sort_nodes(model.graph)
    return model


def _name_domain_once(model: ModelProto) -> None:
    """Call the standard's domain "" everywhere, and import it once: the newest, as onnxruntime does, if repeated."""
    for node in all_nodes(model.graph):
        if node.domain == "ai.onnx":  # a domain that is set to "" takes bytes where one that is left out takes none
            node.domain = ""
    versions: dict[str, int] = {}
    for entry in model.opset_import:
        domain = "" if entry.domain in STANDARD else entry.domain
        versions[domain] = max(versions.get(domain, entry.version), entry.version)
    del model.opset_import[:]
    model.opset_import.extend(helper.make_opsetid(domain, version) for domain, version in versions.items())


def freeze_defaults(model: ModelProto) -> None:
    """Make constants, in place, of the values that inputs take where the caller gives none.

    Older exporters list every weight as such an input, and nothing can be done with weights that may change.
    """
    constants = {tensor.name for tensor in model.graph.initializer}
    for place in reversed(range(len(model.graph.input))):
        if model.graph.input[place].name in constants:
            del model.graph.input[place]


def _require_values(graph: GraphProto) -> None:
    for part in all_graphs(graph):
        for tensor in part.initializer:
            if tensor.data_location == TensorProto.EXTERNAL:
                raise UserError(
                    f"model: the values of {tensor.name!r} lie in a file of their own; load the model with them, as "
                    "onnx.load(path) does"
                )


def _separate_scopes(graph: GraphProto) -> None:
    """Rename in place what a nested graph defines under a name that another graph has, too.

    The standard allows that side by side, as in the two branches of an If, and before the outer name is defined.
    """
    if sum(1 for _ in all_graphs(graph)) == 1:
        return
    used = {name for part in all_graphs(graph) for name in defined_names(part)}
    seen: set[str] = set()

    def separate(part: GraphProto, outer: Mapping[str, str]) -> None:
        names = dict(outer)
        for name in dict.fromkeys(defined_names(part)):
            numbered = (f"{name}_{number}" for number in count(1))
            names[name] = next(free for free in numbered if free not in used) if name in seen else name
            used.add(names[name])
            seen.add(names[name])
        rename_here(part, lambda name: names.get(name, name))
        for node in part.node:
            for nested in attribute_graphs(node):
                separate(nested, names)

    separate(graph, {})
