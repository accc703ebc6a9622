from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, version_converter
from onnx.reference import ReferenceEvaluator
from quantize_graphs import graph_of, node, operators
from quantize_zoo import normal

from distill.errors import UserError
from distill.export import parity, run_onnx
from distill.quantize import to_half
from distill.quantize.half import emulate
from distill.quantize.half.operands import element_types

BF16 = TensorProto.BFLOAT16


def network(k: float = 1.0) -> ModelProto:
    nodes = [
        node("Gemm", "x w b", "h", transB=1),
        node("Relu", "h", "r"),
        node("Mul", "r k", "large"),
        node("LayerNormalization", "large gain", "n"),
        node("MatMul", "n v", "z"),
        node("Softmax", "z", "shares"),
        node("MatMul", "shares v", "y"),
    ]
    constants = {"w": normal(4, 4), "b": normal(4), "gain": np.ones(4, np.float32), "v": normal(4, 4, seed=2), "k": k}
    return graph_of(nodes, constants)


def distance(one: np.ndarray, two: np.ndarray) -> float:
    return float(np.abs(one.astype(np.float64) - two).max() / np.abs(one).max())


def test_a_bfloat_graph_is_valid_with_float32_ends_and_norms():
    core = network()
    core.metadata_props.add(key="labels", value="[]")
    before = core.SerializeToString()
    half, record = to_half(core, kind="bf16")
    assert core.SerializeToString() == before
    onnx.checker.check_model(half, full_check=True)
    assert {value.type.tensor_type.elem_type for value in (*half.graph.input, *half.graph.output)} == {
        TensorProto.FLOAT
    }
    assert [(entry.key, entry.value) for entry in half.metadata_props] == [("labels", "[]")]
    types = element_types(half)
    for one in half.graph.node:
        wide = one.op_type in ("LayerNormalization", "Softmax")
        if one.op_type != "Cast":
            assert {types[name] for name in (*one.input, *one.output)} == {TensorProto.FLOAT if wide else BF16}
    assert (record.precision, record.nodes_quantized, record.nodes_float, record.warnings) == ("bf16", 3, 0, ())
    assert [one.operator for one in record.islands] == ["LayerNormalization", "Softmax"]
    assert half.SerializeToString() == to_half(core, kind="bf16")[0].SerializeToString()


@pytest.mark.parametrize("k", [1.0, 1e6, 1e-6])
def test_answers_keep_bfloats_digits_whatever_the_range(k):
    """8 binary digits, in all of float32's range: fp16 needs islands where bfloat16 needs none."""
    core, x = network(k), normal(64, 4)
    half, record = to_half(core, kind="bf16", samples=[{"x": x}])
    float32 = run_onnx(core, [{"x": x}])
    assert distance(float32, run_onnx(emulate(half), [{"x": x}])) < 8 * 2.0**-8
    assert distance(float32, ReferenceEvaluator(half).run(None, {"x": x})[0]) < 8 * 2.0**-8
    assert len(record.islands) == 2 and record.samples == 64
    assert len(to_half(core, samples=[{"x": x}])[1].islands) > 2 or k == 1


def test_a_cancellation_that_8_digits_do_not_survive_is_an_island():
    nodes = [node("MatMul", "x w", "a"), node("Add", "a c", "b"), node("Sub", "b c", "d"), node("MatMul", "d w", "y")]
    core, x = graph_of(nodes, {"w": normal(4, 4), "c": 1000.0}), normal(64, 4)
    half, record = to_half(core, kind="bf16", samples=[{"x": x}])
    assert {one.output for one in record.islands} == {"b", "d"}
    assert distance(run_onnx(core, [{"x": x}]), run_onnx(emulate(half), [{"x": x}])) < 0.05


def test_a_convolution_needs_opset_22(resnet):
    older, _ = to_half(graph_of([node("MatMul", "x w", "y")], {"w": normal(4, 4)}, opset=12), kind="bf16")
    assert older.opset_import[0].version == 13  # the first that has bf16
    half, record = to_half(resnet, kind="bf16")
    assert record.float_operators["Conv"] == 9 and "opset 18 has no bf16 for them, opset 22 has" in record.warnings[0]
    alone = graph_of([node("Conv", "x w", "y")], {"w": normal(1, 1, 1, 1)}, x=("n", 1, 4, 4))
    with pytest.raises(UserError, match="opset 18 has no bf16 for Conv; export with opset 22"):
        to_half(alone, kind="bf16")
    newer = version_converter.convert_version(resnet, 22)
    half, record = to_half(newer, kind="bf16")
    onnx.checker.check_model(half, full_check=True)
    assert record.nodes_quantized == 13 and record.nodes_float == 0
    assert {one.operator for one in record.islands} == {"GlobalAveragePool"}
    x = normal(8, 1, 28, 28)
    assert parity(run_onnx(newer, [{"x": x}]), run_onnx(emulate(half), [{"x": x}]), atol=0, rtol=0.05).ok


def test_operators_without_a_bfloat_kernel_stay_float32():
    nodes = [node("MatMul", "x w", "a"), node("LeakyRelu", "a", "b"), node("MatMul", "b w", "y")]
    half, record = to_half(graph_of(nodes, {"w": normal(4, 4)}), kind="bf16")
    assert [(one.operator, one.why) for one in record.islands] == [("LeakyRelu", "has no bfloat16 kernel")]
    assert operators(half) == ["Cast", "MatMul", "Cast", "LeakyRelu", "Cast", "MatMul", "Cast"]


def test_a_bfloat_graph_is_not_converted_again():
    half, _ = to_half(network(), kind="bf16")
    with pytest.raises(UserError, match="16-bit floats already"):
        to_half(half)
