"""Small graphs written by hand, and oracles for their numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper


def node(operator: str, inputs: str, outputs: str, **attributes: Any) -> NodeProto:
    """Write a node with its operands as words: node("Add", "x b", "y")."""
    return helper.make_node(operator, inputs.split(), outputs.split(), **attributes)


def graph_of(
    nodes: Sequence[NodeProto],
    constants: Mapping[str, Any],
    *,
    x: Sequence[int | str] = ("n", 4),
    y: Sequence[int | str] | None = None,
    opset: int = 18,
) -> ModelProto:
    """Make a model from x to y; numbers among the constants become float32."""
    domains = sorted({one.domain for one in nodes} - {""})
    values = {name: np.asarray(v, None if isinstance(v, np.ndarray) else np.float32) for name, v in constants.items()}
    graph = helper.make_graph(
        list(nodes),
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, list(x))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, list(x if y is None else y))],
        [numpy_helper.from_array(value, name) for name, value in values.items()],
    )
    imports = [helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in domains)]
    return helper.make_model(graph, opset_imports=imports, ir_version=10)


def operators(model: ModelProto) -> list[str]:
    return [one.op_type for one in model.graph.node]
