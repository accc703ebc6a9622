from __future__ import annotations

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper


def tiny_core(shape: tuple[int, ...], *, classes: int = 3, name: str = "x") -> ModelProto:
    """Build flatten + matrix product by hand: a core graph that needs no torch and no time."""
    size = int(np.prod(shape))
    weight = np.random.default_rng(0).normal(size=(size, classes)).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("Flatten", [name], ["flat"], name="a long name", axis=1),
            helper.make_node("MatMul", ["flat", "weight"], ["logits"], doc_string="why"),
        ],
        "tiny",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", *shape])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", classes])],
        [numpy_helper.from_array(weight, "weight")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


@pytest.fixture(scope="session")
def make_core():
    return tiny_core
