"""Graphs of older opsets, written as a newer one has them."""

from __future__ import annotations

import onnx
from onnx import ModelProto, NodeProto, helper, numpy_helper

from distill.errors import UserError
from distill.export.canonical import canonical
from distill.export.graph import all_graphs, all_nodes, operator, opset_of
from distill.export.plain_names import PlainNames
from distill.export.stripping import constant_tensor

_FIRST_RESIZE_WITH_MODES = 11


def with_opset(proto: ModelProto, opset: int) -> ModelProto:
    """Return an equal graph of a newer opset of the standard, canonical; the one that is given is not changed.

    onnx's own converter writes it, and knows nothing of operators of other domains, which stay as they are.

    Raises:
        UserError: the converter knows no such operator, or not this use of it; the message names it.
    """
    model = canonical(proto)
    old, plain = opset_of(model), PlainNames.of(model.graph)
    try:
        newer = onnx.version_converter.convert_version(plain.hide(model), opset)
    except Exception as error:  # RuntimeError and ConvertError, by what is missing
        standard = [node.op_type for node in all_nodes(model.graph) if not node.domain]
        changed = sorted({name for name in standard if _has_changed(name, old, opset)})
        named = [name for name in changed if name.lower() in str(error).lower()]
        raise UserError(
            f"model: onnx cannot convert its {', '.join(named or changed or ['graph'])} from opset {old} to {opset}; "
            f"export it with opset {opset} or newer"
        ) from error
    plain.reveal(newer.graph)
    if old < _FIRST_RESIZE_WITH_MODES:
        for before, after in zip(_resizes(model), _resizes(newer), strict=True):
            rounding = "ceil" if _is_smaller(model, before) else "floor"
            modes = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": rounding}
            after.attribute.extend(helper.make_attribute(key, value) for key, value in modes.items())
    return newer


def _resizes(model: ModelProto) -> list[NodeProto]:
    """List the nodes whose positions the converter lets be calculated otherwise than before, in order."""
    return [node for node in all_nodes(model.graph) if operator(node) in ("Upsample", "Resize")]


def _is_smaller(model: ModelProto, node: NodeProto) -> bool:
    """Whether a Resize of opset 10 makes an axis smaller; it then rounds up."""
    constants = {tensor.name: tensor for graph in all_graphs(model.graph) for tensor in graph.initializer}
    constants |= {n.output[0]: t for n in all_nodes(model.graph) if (t := constant_tensor(n)) is not None}
    scales = constants.get(node.input[1]) if operator(node) == "Resize" else None
    return scales is not None and bool((numpy_helper.to_array(scales) < 1).any())


def _has_changed(name: str, old: int, new: int) -> bool:
    """Whether an operator of the standard is another one in a newer opset, or is none in one of the two."""
    try:
        before, after = (onnx.defs.get_schema(name, opset) for opset in (old, new))
    except onnx.defs.SchemaError:
        return True
    return before.since_version != after.since_version
