from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from quantize_zoo import normal
from torch import nn

from distill.errors import UserError
from distill.export import export_onnx, run_onnx
from distill.quantize.prepare import prepare
from distill.quantize.torch_graph import GraphModule
from distill.quantize.torch_operators import OPERATORS

SHAPES = {"resnet": (1, 28, 28), "separable": (3, 16, 16), "mlp": (20,), "pre_activation": (1, 12, 12)}


def both(core: onnx.ModelProto, *shape: int) -> tuple[np.ndarray, np.ndarray]:
    """Return a graph's answers in torch and in onnxruntime."""
    x = normal(6, *shape)
    return GraphModule(core)(torch.from_numpy(x)).detach().numpy(), run_onnx(core, [{"x": x}])


def alike(found: np.ndarray, expected: np.ndarray) -> bool:
    return found.shape == expected.shape and np.allclose(
        found, expected, rtol=1e-4, atol=1e-4 * max(1.0, float(np.abs(expected).max()))
    )


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("prepared", [False, True])
def test_networks_answer_as_in_onnxruntime(request: pytest.FixtureRequest, name: str, prepared: bool) -> None:
    core = request.getfixturevalue(name)
    graph = prepare(core, fold_norms=True) if prepared else core
    assert alike(*both(graph, *SHAPES[name]))
    weights = [value for value in GraphModule(graph).parameters() if value.ndim > 1]
    assert len(weights) >= sum(node.op_type in ("Conv", "Gemm") for node in core.graph.node) // 2


@pytest.mark.parametrize("before", [True, False])
def test_an_encoder_answers_as_in_onnxruntime(before: bool) -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True, norm_first=before, activation="gelu").eval()
    assert alike(*both(export_onnx(layer, args=(torch.randn(2, 7, 32),), input_names=["x"]), 7, 32))


def test_gradients_reach_every_weight_and_come_home_in_the_graph(resnet: Any) -> None:
    core = prepare(resnet, fold_norms=True)
    module = GraphModule(core)
    optimizer = torch.optim.SGD(module.parameters(), 0.01)
    module(torch.from_numpy(normal(4, 1, 28, 28))).square().mean().backward()
    assert all(value.grad is not None and bool(value.grad.any()) for value in module.parameters() if value.ndim > 1)
    optimizer.step()
    trained = module.written_into(core)
    feed = {"x": normal(3, 1, 28, 28, seed=1)}
    found = module(torch.from_numpy(feed["x"])).detach().numpy()
    np.testing.assert_allclose(run_onnx(trained, [feed]), found, rtol=1e-4, atol=1e-4)
    assert np.abs(run_onnx(core, [feed]) - found).max() > 1e-4


def test_every_tensor_is_seen_once(mlp: Any) -> None:
    module, seen = GraphModule(mlp), []
    module.observe = lambda name, value: seen.append(name) or value
    module.observe_weight = lambda name, value: 0 * value
    out = module(torch.from_numpy(normal(2, 20)))
    assert not out.detach().any()
    # The answer is read by no node.
    assert seen == ["x", *(name for node in mlp.graph.node[:-1] for name in node.output)]


def test_a_node_may_read_what_the_others_do_not(mlp: Any) -> None:
    module, x = GraphModule(mlp), torch.from_numpy(normal(2, 20))
    plain = module(x)
    module.observe = lambda name, value: 0 * value
    assert not torch.equal(module(x), plain)
    module.unobserved = {(node.name, name) for node in module.nodes for name in node.input}
    assert torch.equal(module(x), plain)


def single(node: Any, *shape: int, constants: dict[str, np.ndarray] | None = None) -> onnx.ModelProto:
    """A graph of one node, and enough around it to be a graph."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", *shape])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    stored = [onnx.numpy_helper.from_array(value, name) for name, value in (constants or {}).items()]
    graph = helper.make_graph([node], "g", [x], [y], stored)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


INT = np.int64
CASES: list[tuple[str, tuple[int, ...], dict[str, Any], dict[str, np.ndarray]]] = [
    ("AveragePool", (2, 7, 7), {"kernel_shape": [3, 3], "pads": [1, 0, 1, 1], "strides": [2, 1]}, {}),
    ("AveragePool", (2, 7, 7), {"kernel_shape": [3, 3], "pads": [1, 0, 1, 1], "count_include_pad": 1}, {}),
    ("MaxPool", (2, 7, 7), {"kernel_shape": [3, 2], "pads": [0, 1, 1, 0], "strides": [2, 2]}, {}),
    ("Conv", (4, 7, 7), {"group": 2, "pads": [0, 1, 2, 1], "strides": [2, 1], "dilations": [1, 2]},
     {"w": np.ones((6, 2, 3, 3), np.float32)}),
    ("Clip", (5,), {}, {"a": np.float32(-0.3), "b": np.float32(0.4)}),
    ("Slice", (6, 5), {}, {"s": np.array([4, 0], INT), "e": np.array([-10, 3], INT), "a": np.array([1, 2], INT),
                           "t": np.array([-2, 2], INT)}),
    ("Gather", (6, 5), {"axis": 1}, {"i": np.array([[0, -1], [2, 2]], INT)}),
    ("Reshape", (6, 4), {}, {"s": np.array([0, -1, 2], INT)}),
    ("Transpose", (6, 4), {"perm": [0, 2, 1]}, {}),
    ("ReduceMean", (6, 4), {"keepdims": 0}, {"a": np.array([-1], INT)}),
    ("ReduceSum", (6, 4), {}, {}),
    ("Unsqueeze", (6,), {}, {"a": np.array([0, -1], INT)}),
    ("Squeeze", (1, 6), {}, {"a": np.array([1], INT)}),
    ("Flatten", (3, 4), {"axis": 2}, {}),
    ("HardSigmoid", (5,), {"alpha": 0.3, "beta": 0.4}, {}),
    ("HardSwish", (5,), {}, {}),
    ("LeakyRelu", (5,), {"alpha": 0.2}, {}),
    ("Gelu", (5,), {"approximate": "tanh"}, {}),
    ("Softmax", (3, 5), {"axis": 1}, {}),
    ("Expand", (1, 5), {}, {"s": np.array([1, 4, 1], INT)}),
    ("LayerNormalization", (3, 5), {"axis": -1}, {"g": np.arange(5, dtype=np.float32), "b": np.ones(5, np.float32)}),
]  # fmt: skip


@pytest.mark.parametrize(("operator", "shape", "attributes", "constants"), CASES)
def test_operators_answer_as_in_onnxruntime(
    operator: str, shape: tuple[int, ...], attributes: dict[str, Any], constants: dict[str, np.ndarray]
) -> None:
    node = helper.make_node(operator, ["x", *constants], ["y"], **attributes)
    assert alike(*both(single(node, *shape, constants=constants), *shape))


@pytest.mark.parametrize("operator", ["Erf", "Exp", "Neg", "Relu", "Sigmoid", "Sqrt", "Tanh", "Identity"])
def test_functions_answer_as_in_onnxruntime(operator: str) -> None:
    module, x = GraphModule(single(helper.make_node(operator, ["x"], ["y"]), 9)), np.abs(normal(4, 9))
    expected = run_onnx(single(helper.make_node(operator, ["x"], ["y"]), 9), [{"x": x}])
    np.testing.assert_allclose(module(torch.from_numpy(x)).numpy(), expected, rtol=1e-5, atol=1e-6)


def test_other_operators_are_named() -> None:
    assert "Det" not in OPERATORS
    with pytest.raises(UserError, match="Det cannot be trained here"):
        GraphModule(single(helper.make_node("Det", ["x"], ["y"]), 3, 3))
