"""Reduce an ONNX graph to what a runtime needs, so that equal models give equal, small files."""

from __future__ import annotations

import string
from collections.abc import Iterator
from itertools import count

import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, defs, helper, inliner, numpy_helper

from distill.errors import UserError

from .graph import (
    all_graphs,
    all_nodes,
    copy_of,
    initializers,
    opset_of,
    remove_nodes,
    rename_all,
    replace_input,
    sort_nodes,
    use_counts,
)

# Written by exporters and tools about themselves; they change between runs and say nothing about the model.
_TOOL_KEYS = ("pkg.", "onnx.", "onnxscript.")
# Attributes that the standard fills in by itself although its schema declares no default value.
_IMPLIED = {"dilations": 1, "strides": 1, "pads": 0, "output_padding": 0}
_WINDOWED = frozenset({"Conv", "ConvTranspose", "MaxPool", "AveragePool"})
_ML_VERSION = 2  # the oldest with string LabelEncoder


def strip(proto: ModelProto) -> ModelProto:
    """Return the same computation in as few bytes as we can write it, always the same bytes.

    Gone are documentation, stack traces, tool metadata, value_info, node names, unused or repeated constants,
    attributes that repeat their default, and operator domains that no node uses. Nodes stand in the order of their
    data. Tensors get short names; the names of the inputs and outputs stay, and so does metadata that does not come
    from a tool. The IR version is the lowest that the opsets allow. The model that is given is not changed.
    """
    slim = inliner.inline_local_functions(copy_of(proto)) if proto.functions else copy_of(proto)
    graph = slim.graph
    sort_nodes(graph)
    constants_to_initializers(graph)
    drop_identities(graph)
    drop_dead(graph)
    merge_equal_initializers(graph)
    _drop_text(slim)
    _drop_default_attributes(slim)
    _shorten_names(graph)
    _pack_initializers(graph)
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
    gone = []
    for node in graph.node:
        if node.op_type != "Constant" or not node.attribute:
            continue
        tensor = _tensor_of(node)
        if tensor is not None:
            tensor.name = node.output[0]
            graph.initializer.append(tensor)
            gone.append(node)
    remove_nodes(graph, gone)


def _tensor_of(node: NodeProto) -> TensorProto | None:
    """Return the value of a Constant node, None for the sparse and string forms."""
    entry = node.attribute[0]
    value = helper.get_attribute_value(entry)
    if entry.name == "value":
        tensor = TensorProto()
        tensor.CopyFrom(value)
        return tensor
    kinds = {"value_float": TensorProto.FLOAT, "value_int": TensorProto.INT64}
    lists = {"value_floats": TensorProto.FLOAT, "value_ints": TensorProto.INT64}
    if entry.name in kinds:
        return helper.make_tensor("", kinds[entry.name], [], [value])
    if entry.name in lists:
        return helper.make_tensor("", lists[entry.name], [len(value)], list(value))
    return None


def drop_identities(graph: GraphProto) -> None:
    """Remove Identity nodes; one that links an input or a constant straight to an output has to stay."""
    outputs = {value.name for value in graph.output}
    gone = []
    for node in graph.node:
        if node.op_type == "Identity" and node.output[0] not in outputs:
            replace_input(graph, node.output[0], node.input[0])
            for part in all_graphs(graph):
                for value in part.output:
                    if part is not graph and value.name == node.output[0]:
                        value.name = node.input[0]
            gone.append(node)
    remove_nodes(graph, gone)


def drop_dead(graph: GraphProto) -> None:
    """Remove nodes whose results nobody reads, then constants that nobody reads."""
    while True:
        used = use_counts(graph)
        dead = [node for node in graph.node if not any(used[name] for name in node.output if name)]
        if not dead:
            break
        remove_nodes(graph, dead)
    for node in graph.node:  # an optional last output that nobody reads costs its name
        while len(node.output) > 1 and not used[node.output[-1]]:
            node.output.pop()
    for part in all_graphs(graph):
        kept = [tensor for tensor in part.initializer if used[tensor.name]]
        if len(kept) != len(part.initializer):
            copies = [_copy_tensor(tensor) for tensor in kept]
            del part.initializer[:]
            part.initializer.extend(copies)
    names = set(initializers(graph))
    inputs = [value for value in graph.input if value.name not in names]  # pre-IR-4 graphs list constants as inputs
    if len(inputs) != len(graph.input):
        del graph.input[:]
        graph.input.extend(inputs)


def merge_equal_initializers(graph: GraphProto) -> None:
    """Keep one of all constants that have the same type, shape and bytes."""
    outputs = {value.name for value in graph.output}
    first: dict[tuple[int, tuple[int, ...], bytes], str] = {}
    renamed: dict[str, str] = {}
    for tensor in graph.initializer:
        key = (tensor.data_type, tuple(tensor.dims), _payload(tensor))
        if tensor.name not in outputs and first.setdefault(key, tensor.name) != tensor.name:
            renamed[tensor.name] = first[key]
    if renamed:
        for part in all_graphs(graph):
            for node in part.node:
                for index, name in enumerate(node.input):
                    if name in renamed:
                        node.input[index] = renamed[name]
        drop_dead(graph)


def _payload(tensor: TensorProto) -> bytes:
    if tensor.data_type == TensorProto.STRING:
        return b"\0".join(tensor.string_data)
    return numpy_helper.to_array(tensor).tobytes()


def _copy_tensor(tensor: TensorProto) -> TensorProto:
    twin = TensorProto()
    twin.CopyFrom(tensor)
    return twin


def _drop_text(proto: ModelProto) -> None:
    """Clear everything that explains the graph to people or names the tool that wrote it."""
    for field in ("doc_string", "producer_name", "producer_version", "domain", "model_version"):
        proto.ClearField(field)
    kept = sorted((e.key, e.value) for e in proto.metadata_props if not e.key.startswith(_TOOL_KEYS))
    del proto.metadata_props[:]
    helper.set_model_props(proto, dict(kept))
    for graph in all_graphs(proto.graph):
        for name in ("doc_string", "value_info", "quantization_annotation", "metadata_props"):
            graph.ClearField(name)
        graph.name = "g"
        for node in graph.node:
            for name in ("name", "doc_string", "metadata_props", "overload", "device_configurations"):
                if name in NodeProto.DESCRIPTOR.fields_by_name:
                    node.ClearField(name)
            for entry in node.attribute:
                entry.ClearField("doc_string")
        for value in (*graph.input, *graph.output):
            value.ClearField("doc_string")
            value.ClearField("metadata_props")
        for tensor in graph.initializer:
            tensor.ClearField("doc_string")
            tensor.ClearField("metadata_props")


def _drop_default_attributes(proto: ModelProto) -> None:
    """Remove attributes that say what the standard says anyway."""
    for node in all_nodes(proto.graph):
        known = _defaults(node, opset_of(proto, node.domain))
        kept = [entry for entry in node.attribute if not _is_default(node, entry, known)]
        if len(kept) != len(node.attribute):
            copies = [onnx.AttributeProto.FromString(entry.SerializeToString()) for entry in kept]
            del node.attribute[:]
            node.attribute.extend(copies)


def _defaults(node: NodeProto, version: int) -> dict[str, object]:
    try:
        schema = defs.get_schema(node.op_type, version, node.domain)
    except defs.SchemaError:  # an operator of a runtime's own domain
        return {}
    declared = {name: item.default_value for name, item in schema.attributes.items()}
    return {name: helper.get_attribute_value(value) for name, value in declared.items() if value.name}


def _is_default(node: NodeProto, entry: onnx.AttributeProto, known: dict[str, object]) -> bool:
    value = helper.get_attribute_value(entry)
    if entry.name in known:
        return bool(value == known[entry.name])
    if node.op_type in _WINDOWED and node.domain == "" and entry.name in _IMPLIED:
        return all(number == _IMPLIED[entry.name] for number in value)
    return False


def _short_names() -> Iterator[str]:
    """Yield a, b, …, aa, ab, …: the shortest names first."""
    letters, rest = string.ascii_letters, string.ascii_letters + string.digits
    yield from letters
    for length in count(1):
        for number in range(len(letters) * len(rest) ** length):
            name, left = "", number
            for _ in range(length):
                left, digit = divmod(left, len(rest))
                name = rest[digit] + name
            yield letters[left] + name


def _shorten_names(graph: GraphProto) -> None:
    """Rename every tensor but the graph's inputs and outputs, at all depths by one map, so scopes stay as they were."""
    kept = {value.name for value in (*graph.input, *graph.output)}
    names = (name for name in _short_names() if name not in kept)
    new: dict[str, str] = {}

    def short(name: str) -> str:
        if name not in new:
            new[name] = next(names)
        return new[name]

    rename_all(graph, short, keep=kept)


def _pack_initializers(graph: GraphProto) -> None:
    """Write numbers as raw bytes and put the constants in the order of their first use."""
    for part in all_graphs(graph):
        order = {name: place for place, name in enumerate(n for node in part.node for n in node.input)}
        tensors = sorted((_raw(tensor) for tensor in part.initializer), key=lambda t: (order.get(t.name, -1), t.name))
        del part.initializer[:]
        part.initializer.extend(tensors)


def _raw(tensor: TensorProto) -> TensorProto:
    if tensor.data_type == TensorProto.STRING or tensor.HasField("raw_data"):
        return _copy_tensor(tensor)
    return numpy_helper.from_array(numpy_helper.to_array(tensor), tensor.name)


def _minimal_imports(proto: ModelProto) -> None:
    """Import only the operator domains that are used, and take the lowest IR version that they allow."""
    used = {"" if node.domain == "ai.onnx" else node.domain for node in all_nodes(proto.graph)} | {""}
    versions = {domain: opset_of(proto, domain) or _ML_VERSION for domain in sorted(used)}
    del proto.opset_import[:]
    proto.opset_import.extend(helper.make_opsetid(domain, version) for domain, version in versions.items())
    standard = [entry for entry in proto.opset_import if entry.domain in ("", "ai.onnx.ml", "ai.onnx.training")]
    proto.ir_version = helper.find_min_ir_version_for(standard)
