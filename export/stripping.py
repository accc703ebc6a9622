"""Reduce an ONNX graph to what a runtime needs, so that equal models give equal, small files."""

from __future__ import annotations

import string
from collections import defaultdict
from collections.abc import Iterable, Iterator
from itertools import count, product
from typing import Any

import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, defs, helper, numpy_helper

from distill.errors import UserError
from distill.export.canonical import canonical
from distill.export.graph import (
    STANDARD,
    all_graphs,
    all_nodes,
    copy_of,
    initializers,
    operator,
    opset_of,
    output_names,
    refill,
    remove_nodes,
    rename_all,
    replace_input,
    use_counts,
)

# Written by exporters and tools about themselves; they change between runs and say nothing about the model.
_TOOL_KEYS = ("pkg.", "onnx.", "onnxscript.")
# Attributes that the standard fills in by itself although its schema declares no default value.
_IMPLIED = {"dilations": 1, "strides": 1, "pads": 0, "output_padding": 0}
_WINDOWED = frozenset({"Conv", "ConvTranspose", "MaxPool", "AveragePool"})
_ML, _ML_VERSION = "ai.onnx.ml", 2  # the oldest with string LabelEncoder
# How many outputs these have says what they compute, although the standard calls each of them optional.
_COUNTED = frozenset({"BatchNormalization", "Attention"})
_IR_CONSTANTS = 4  # the first in which constants need not be inputs


def strip(proto: ModelProto, *, node_names: bool = False) -> ModelProto:
    """Return the same computation in as few bytes as we can write it, always the same bytes.

    Gone are documentation, stack traces, tool metadata, value_info, node names (unless they are asked for), unused or
    repeated constants, attributes that repeat their default, and operator domains that no node uses. Nodes stand in
    the order of their data. Tensors get short names; the names of the inputs and outputs stay, and so does metadata
    that does not come from a tool. The IR version is the lowest that the content allows. An input that has a default
    value keeps it, but in files of IR versions below 4, which list every constant as an input. The model that is given
    is not changed.

    Raises:
        UserError: some values lie in another file, which has not been read.
    """
    slim = canonical(proto)
    graph = slim.graph
    constants_to_initializers(graph)
    drop_identities(graph)
    drop_dead(graph)
    drop_unread_outputs(slim)
    merge_equal_initializers(graph)
    _drop_text(slim, node_names=node_names)
    _drop_default_attributes(slim)
    _pack_initializers(graph)
    _shorten_names(graph)
    _minimal_imports(slim)
    return slim


def to_bytes(proto: ModelProto) -> bytes:
    """Serialise a model, equal models to equal bytes.

    Raises:
        UserError: the model is larger than the 2 GB that one file may hold.
    """
    try:
        return bytes(proto.SerializeToString(deterministic=True))
    except Exception as error:  # which class depends on the protobuf backend
        raise UserError("model: an ONNX file without external data holds at most 2 GB; use a smaller model") from error


def constants_to_initializers(graph: GraphProto) -> None:
    """Turn Constant nodes that hold a tensor or numbers into initializers, where equal ones can be merged."""
    nodes = []
    for node in graph.node:
        tensor = constant_tensor(node)
        if tensor is not None:
            tensor.name = node.output[0]
            graph.initializer.append(tensor)
            nodes.append(node)
    remove_nodes(graph, nodes)


def constant_tensor(node: NodeProto) -> TensorProto | None:
    """Return the value of a Constant node, None for the sparse and string forms, and for any other node."""
    if operator(node) != "Constant" or not node.attribute:
        return None
    entry = node.attribute[0]
    value = helper.get_attribute_value(entry)
    if entry.name == "value":
        tensor: TensorProto = copy_of(value)
        return tensor
    kind = {"value_float": TensorProto.FLOAT, "value_int": TensorProto.INT64}.get(entry.name.removesuffix("s"))
    if kind is None:
        return None
    listed = entry.name.endswith("s")
    return helper.make_tensor("", kind, [len(value)] if listed else [], value if listed else [value])


def drop_identities(graph: GraphProto) -> None:
    """Remove Identity nodes, but for those that write an output of the graph or of a nested one."""
    outputs = {name for part in all_graphs(graph) for name in output_names(part)}
    identities = []
    for node in graph.node:
        if operator(node) == "Identity" and node.output[0] not in outputs:
            replace_input(graph, node.output[0], node.input[0])
            identities.append(node)
    remove_nodes(graph, identities)


def drop_dead(graph: GraphProto) -> None:
    """Remove nodes whose results nobody reads, then constants that nobody reads; inputs stay."""
    while True:
        used = use_counts(graph)
        dead = [node for node in graph.node if not any(used[name] for name in node.output if name)]
        if not dead:
            break
        remove_nodes(graph, dead)
    for part in all_graphs(graph):
        inputs = {value.name for value in part.input}  # an input's default value stays, read or not
        read = [tensor for tensor in part.initializer if used[tensor.name] or tensor.name in inputs]
        if len(read) != len(part.initializer):
            refill(part.initializer, read)


def drop_unread_outputs(model: ModelProto) -> None:
    """Remove the names of last outputs that nobody reads, where the operator's schema lets them be left out.

    Others count: how many outputs a Split has says how it splits, and those of an If, Loop or Scan belong to the
    outputs of their nested graphs. Of operators without a schema nothing is known, so they keep all.
    """
    used = use_counts(model.graph)
    for node in model.graph.node:
        if len(node.output) < 2 or used[node.output[-1]] or operator(node) in _COUNTED:
            continue
        schema = _schema_of(model, node)
        while schema is not None and len(node.output) > 1 and not used[node.output[-1]]:
            if not _is_optional(schema, len(node.output) - 1):
                break
            node.output.pop()


def _is_optional(schema: defs.OpSchema, place: int) -> bool:
    declared = schema.outputs
    return place < len(declared) and declared[place].option == defs.OpSchema.FormalParameterOption.Optional


def merge_equal_initializers(graph: GraphProto) -> None:
    """Keep one of all constants that have the same type, shape and bytes."""
    outputs = output_names(graph)
    first: dict[tuple[int, tuple[int, ...], bytes | tuple[bytes, ...]], str] = {}
    renamed: dict[str, str] = {}
    for tensor in initializers(graph).values():
        key = (tensor.data_type, tuple(tensor.dims), _payload(tensor))
        if tensor.name not in outputs and first.setdefault(key, tensor.name) != tensor.name:
            renamed[tensor.name] = first[key]
    for part in all_graphs(graph):
        for node in part.node:
            node.input[:] = [renamed.get(name, name) for name in node.input]
    drop_dead(graph)


def _payload(tensor: TensorProto) -> bytes | tuple[bytes, ...]:
    if tensor.data_type == TensorProto.STRING:
        return tuple(tensor.string_data)
    return numpy_helper.to_array(tensor).tobytes()


def _drop_text(proto: ModelProto, *, node_names: bool) -> None:
    """Clear everything that explains the graph to people or names the tool that wrote it."""
    for field in ("doc_string", "producer_name", "producer_version", "domain", "model_version"):
        proto.ClearField(field)
    entries = sorted((e.key, e.value) for e in proto.metadata_props if not e.key.startswith(_TOOL_KEYS))
    del proto.metadata_props[:]
    helper.set_model_props(proto, dict(entries))
    for graph in all_graphs(proto.graph):
        graph.name = "g"
        _clear(graph, "doc_string", "value_info", "quantization_annotation", "metadata_props")
        for value in (*graph.input, *graph.output):
            _clear(value, "doc_string", "metadata_props")
        _drop_node_text(graph.node, with_overloads=bool(proto.functions), names=node_names)
    for function in proto.functions:
        _clear(function, "doc_string", "value_info", "metadata_props")
        _drop_node_text(function.node, with_overloads=True, names=node_names)


def _drop_node_text(nodes: Iterable[NodeProto], *, with_overloads: bool, names: bool) -> None:
    for node in nodes:
        _clear(node, *(() if names else ("name",)), "doc_string", "metadata_props", "device_configurations")
        if not with_overloads:  # which name one of several functions
            _clear(node, "overload")
        for entry in node.attribute:
            _clear(entry, "doc_string")
            for tensor in (*([entry.t] if entry.HasField("t") else []), *entry.tensors):
                _clear(tensor, "name", "doc_string", "metadata_props")


def _clear(message: Any, *fields: str) -> None:
    """Clear fields, of which older versions of onnx lack some."""
    for field in fields:
        if field in message.DESCRIPTOR.fields_by_name:
            message.ClearField(field)


def _drop_default_attributes(proto: ModelProto) -> None:
    """Remove attributes that say what the standard says anyway."""
    for node in all_nodes(proto.graph):
        defaults = _defaults(_schema_of(proto, node))
        entries = [entry for entry in node.attribute if not _is_default(node, entry, defaults)]
        if len(entries) != len(node.attribute):
            refill(node.attribute, entries)


def _schema_of(proto: ModelProto, node: NodeProto) -> defs.OpSchema | None:
    """Find what the standard says of a node's operator; None for one of a runtime's own, or of the file's."""
    if any((node.domain, node.op_type) == (function.domain, function.name) for function in proto.functions):
        return None
    try:
        return defs.get_schema(node.op_type, opset_of(proto, node.domain), node.domain)
    except defs.SchemaError:
        return None


def _defaults(schema: defs.OpSchema | None) -> dict[str, object]:
    declared = {name: item.default_value for name, item in schema.attributes.items()} if schema else {}
    return {name: helper.get_attribute_value(value) for name, value in declared.items() if value.name}


def _is_default(node: NodeProto, entry: onnx.AttributeProto, defaults: dict[str, object]) -> bool:
    value = helper.get_attribute_value(entry)
    if entry.name in defaults:
        return repr(value) == repr(defaults[entry.name])  # 0.0 equals -0.0, which is another number
    if operator(node) in _WINDOWED and entry.name in _IMPLIED:
        return all(number == _IMPLIED[entry.name] for number in value)
    return False


def _short_names() -> Iterator[str]:
    """Yield a, b, …, aa, ab, …: the shortest names first."""
    for length in count():
        yield from map("".join, product(string.ascii_letters, *[string.ascii_letters + string.digits] * length))


def _shorten_names(graph: GraphProto) -> None:
    """Rename every tensor but the graph's inputs and outputs, at all depths by one map, so scopes stay as they were."""
    fixed = {value.name for value in (*graph.input, *graph.output)}
    names = (name for name in _short_names() if name not in fixed)
    new = defaultdict[str, str](lambda: next(names))
    rename_all(graph, new.__getitem__, keep=fixed)


def _pack_initializers(graph: GraphProto) -> None:
    """Write numbers as raw bytes and put the constants in the order of their first use, at any depth."""
    order: dict[str, int] = {}
    for part in all_graphs(graph):
        for name in (name for node in part.node for name in node.input):
            order.setdefault(name, len(order))
    for part in all_graphs(graph):
        refill(part.initializer, sorted(map(_raw, part.initializer), key=lambda tensor: order.get(tensor.name, -1)))


def _raw(tensor: TensorProto) -> TensorProto:
    if tensor.data_type == TensorProto.STRING or tensor.HasField("raw_data"):
        packed = copy_of(tensor)
    else:
        packed = numpy_helper.from_array(numpy_helper.to_array(tensor), tensor.name)
    _clear(packed, "doc_string", "metadata_props", "data_location", "external_data")
    return packed


def _minimal_imports(proto: ModelProto) -> None:
    """Import only the operator domains that are used, and take the lowest IR version that the content allows."""
    used = {"" if node.domain in STANDARD else node.domain for node in all_nodes(proto.graph)} | {""}
    used |= {entry.domain for function in proto.functions for entry in function.opset_import}
    versions = {domain: opset_of(proto, domain) or (_ML_VERSION if domain == _ML else 1) for domain in sorted(used)}
    del proto.opset_import[:]
    proto.opset_import.extend(helper.make_opsetid(domain, version) for domain, version in versions.items())
    standard = [entry for entry in proto.opset_import if entry.domain in ("", _ML, "ai.onnx.training")]
    proto.ir_version = max(_IR_CONSTANTS, _lowest_ir_version(proto, standard))


def _lowest_ir_version(proto: ModelProto, standard: list[onnx.OperatorSetIdProto]) -> int:
    """Return the IR version that came with the opsets; the file's own where it holds what came at another time."""
    tensors = (tensor for part in all_graphs(proto.graph) for tensor in part.initializer)
    if proto.functions or any(tensor.data_type >= TensorProto.FLOAT8E4M3FN for tensor in tensors):
        return int(proto.ir_version)
    try:
        return int(helper.find_min_ir_version_for(standard))
    except ValueError:  # an opset that is newer than the installed onnx
        return int(proto.ir_version)
