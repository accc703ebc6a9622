"""Which operands of a node may hold 16-bit floats, by the operators' own schemas."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import onnx
from onnx import ModelProto, NodeProto, TensorProto, defs

from distill.errors import NotMeasuredError, UserError
from distill.export.graph import attribute, attribute_graphs, copy_of, initializers, opset_of, tensor_types
from distill.export.parity_check import session_of

_TYPE_NAMES: dict[int, str] = {TensorProto.FLOAT16: "tensor(float16)", TensorProto.BFLOAT16: "tensor(bfloat16)"}
_TYPES: dict[str, int] = {
    "tensor(float)": TensorProto.FLOAT,
    **{name: element for element, name in _TYPE_NAMES.items()},
}
_LATER_OPSETS = 30  # the search for an operator's first opset with a type goes no further


@dataclass(frozen=True)
class Operands:
    """The places of a node's inputs and outputs that can hold 16-bit floats instead of float32."""

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


def element_types(model: ModelProto) -> dict[str, int]:
    """Find the element type of each tensor of the main graph, name -> TensorProto.DataType; 0 where it is not known.

    Of operators that are onnxruntime's own, which the standard does not know, onnxruntime is asked.
    """
    types = {name: tensor.elem_type for name, tensor in tensor_types(model).items()}
    missing = [name for node in model.graph.node for name in node.output if name and name not in types]
    return types | (_asked(model, missing) if missing else {})


def _asked(model: ModelProto, names: Sequence[str]) -> dict[str, int]:
    """Ask onnxruntime for the types of tensors; it infers those of graph outputs that have none."""
    open_ended = copy_of(model)
    open_ended.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    try:
        outputs = session_of(open_ended).get_outputs()
    except (NotMeasuredError, UserError):  # a kernel that the CPU does not have
        return dict.fromkeys(names, 0)
    return {value.name: _TYPES.get(value.type, 0) for value in outputs}


def float_tensors(model: ModelProto, types: Mapping[str, int]) -> list[str]:
    """List the inputs and computed tensors that hold float32, in the order of their data."""
    constants, graph = initializers(model.graph), model.graph
    names = [value.name for value in graph.input] + [name for node in graph.node for name in node.output]
    return [name for name in names if types.get(name) == TensorProto.FLOAT and name not in constants]


def operands(node: NodeProto, types: Mapping[str, int], element: int, model: ModelProto) -> Operands | None:
    """Say which float32 operands of a node can become 16-bit floats, of the opset of ``model``; None where none can.

    A node that holds graphs stays float32 with them, and so does one that reads or writes a sequence or an optional:
    whoever takes the tensors out of it expects them as they were.
    """
    signature = _signature(node.op_type, opset_of(model, node.domain), node.domain)
    if signature is None or any(True for _ in attribute_graphs(node)):
        return None
    if not all(types.get(name) for name in (*node.input, *node.output) if name):
        return None
    inputs = _variables(signature.inputs, node.input, types)
    outputs = _variables(signature.outputs, node.output, types)
    narrow_inputs = tuple(place for place, variable in inputs if signature.allows(variable, element))
    bound = {variable for place, variable in inputs if place in narrow_inputs}
    narrow_outputs = tuple(place for place, variable in outputs if variable in bound)
    if node.op_type == "Cast" and node.domain in ("", "ai.onnx"):  # its output's type is an attribute
        # To integers it reads float32: an index above 2048 would be another one.
        return Operands(narrow_inputs, (0,)) if attribute(node, "to") == TensorProto.FLOAT else None
    return Operands(narrow_inputs, narrow_outputs) if narrow_inputs or narrow_outputs else None


def first_opset(operator: str, element: int) -> int | None:
    """Find the first opset of the standard in which some operand of an operator can be of a type, if any has it."""
    for version in range(1, _LATER_OPSETS):
        signature = _signature(operator, version, "")
        if signature is not None and any(_TYPE_NAMES[element] in allowed for allowed in signature.variables.values()):
            return version
    return None


@dataclass(frozen=True)
class _Signature:
    """The type variables of an operator's operands, and the types that each may stand for."""

    inputs: list[str]
    outputs: list[str]
    variables: Mapping[str, frozenset[str]]

    def allows(self, variable: str, element: int) -> bool:
        return _TYPE_NAMES[element] in self.variables.get(variable, frozenset())


@cache
def _signature(operator: str, version: int, domain: str) -> _Signature | None:
    """Read an operator's schema from the standard, or from onnxruntime; None where neither knows it."""
    schema: Any
    try:
        schema = defs.get_schema(operator, version, domain)
        sides = [[operand.type_str for operand in side] for side in (schema.inputs, schema.outputs)]
    except defs.SchemaError:
        schema = _runtime_schemas().get((domain, operator))
        if schema is None:
            return None
        sides = [[operand.typeStr for operand in side] for side in (schema.inputs, schema.outputs)]
    variables = {operand.type_param_str: frozenset(operand.allowed_type_strs) for operand in schema.type_constraints}
    return _Signature(sides[0], sides[1], variables)


@cache
def _runtime_schemas() -> dict[tuple[str, str], Any]:
    """List the newest schemas of onnxruntime's own operators."""
    from onnxruntime.capi import _pybind_state

    schemas = sorted(_pybind_state.get_all_operator_schema(), key=lambda schema: schema.since_version)
    return {(s.domain, s.name): s for s in schemas if s.domain not in ("", "ai.onnx", "ai.onnx.ml")}


def _variables(declared: list[str], names: Sequence[str], types: Mapping[str, int]) -> list[tuple[int, str]]:
    """List the float32 operands by place, with their type variables; a variadic last one stands for all that follow."""
    floats = [place for place, name in enumerate(names) if name and types.get(name) == TensorProto.FLOAT]
    return [(place, declared[min(place, len(declared) - 1)]) for place in floats]
