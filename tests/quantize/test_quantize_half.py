from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper
from quantize_graphs import graph_of, node
from quantize_zoo import target

from distill.errors import UserError
from distill.export import parity, run_onnx, to_bytes
from distill.quantize import quantize, to_half


def normal(*shape: int):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def weights(model):
    return [tensor for tensor in model.graph.initializer if len(tensor.dims) > 1]


@pytest.mark.parametrize(("name", "shape"), [("mlp", (20,)), ("resnet", (1, 28, 28)), ("separable", (3, 16, 16))])
def test_fp16_halves_the_file_and_keeps_float32_at_the_borders(request, name, shape):
    core = request.getfixturevalue(name)
    before = to_bytes(core)
    half, record = quantize(core, target=target("cuda"))
    assert to_bytes(core) == before and to_bytes(quantize(core, target=target("cuda"))[0]) == to_bytes(half)
    onnx.checker.check_model(half, full_check=True)
    assert (record.precision, record.nodes_float, record.warnings) == ("fp16", 0, ())
    assert {tensor.data_type for tensor in weights(half)} == {TensorProto.FLOAT16}
    assert record.file_bytes == len(to_bytes(half)) < 0.6 * len(before)
    ends = (*half.graph.input, *half.graph.output)
    assert {value.type.tensor_type.elem_type for value in ends} == {TensorProto.FLOAT}
    x = normal(16, *shape)
    assert parity(run_onnx(core, [{"x": x}]), run_onnx(half, [{"x": x}]), atol=1e-3, rtol=1e-2).ok


def test_softmax_is_a_float32_island(pre_activation):
    half, _ = to_half(pre_activation)
    makers = {name: node for node in half.graph.node for name in node.output}
    softmax = next(node for node in half.graph.node if node.op_type == "Softmax")
    before = makers[softmax.input[0]]
    assert before.op_type == "Cast" and before.attribute[0].i == TensorProto.FLOAT
    x = normal(8, 1, 12, 12)
    assert parity(run_onnx(pre_activation, [{"x": x}]), run_onnx(half, [{"x": x}]), atol=1e-3, rtol=1e-2).ok


def test_a_tensor_that_two_islands_read_is_cast_once():
    """onnxruntime's own converter writes one cast twice, under one name, and no runtime loads that."""
    nodes = [node("MatMul", "x w", "a"), node("Softmax", "a", "s"), node("LayerNormalization", "a g", "n")]
    core = graph_of([*nodes, node("Add", "s n", "y")], {"w": normal(4, 4), "g": np.ones(4, np.float32)})
    half, _ = to_half(core)
    onnx.checker.check_model(half, full_check=True)
    x = normal(8, 4)
    assert parity(run_onnx(core, [{"x": x}]), run_onnx(half, [{"x": x}]), atol=1e-3, rtol=1e-2).ok


def test_constants_beyond_fp16_stay_float32_with_a_warning(mlp):
    core = onnx.ModelProto.FromString(mlp.SerializeToString())
    first = next(tensor for tensor in core.graph.initializer if list(tensor.dims) == [64, 20])
    first.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(first) * 1e6, first.name))
    half, record = to_half(core)
    assert record.nodes_float == 1 and "exceed fp16" in record.warnings[0]
    assert sorted(t.data_type for t in weights(half)) == [TensorProto.FLOAT, *[TensorProto.FLOAT16] * 2]
    x = normal(8, 20) * 1e-6
    assert parity(run_onnx(core, [{"x": x}]), run_onnx(half, [{"x": x}]), atol=1e-2, rtol=1e-2).ok


def test_tiny_weights_are_counted(mlp):
    core = onnx.ModelProto.FromString(mlp.SerializeToString())
    first = next(tensor for tensor in core.graph.initializer if list(tensor.dims) == [64, 20])
    first.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(first) * 1e-6, first.name))
    assert "below fp16's smallest" in to_half(core)[1].warnings[0]


def test_half_of_a_half_is_refused(mlp):
    half, _ = to_half(mlp)
    with pytest.raises(UserError, match="16-bit floats already"):
        to_half(half)
    with pytest.raises(UserError, match="16-bit floats already"):
        quantize(half, target=target("x86"), calibration=[{"x": normal(4, 20)}])
