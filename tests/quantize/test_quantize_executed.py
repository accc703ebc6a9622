from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper
from quantize_zoo import executed, normal

from distill.benchmarks import Target, resolve_target
from distill.benchmarks.timing.profile import FLOAT, INTEGER
from distill.errors import UserError
from distill.export import run_onnx
from distill.quantize import QuantizeSettings, quantize_onnx
from distill.quantize.integer_kernels import unfused_nodes
from distill.quantize.static import calibrate_graph, integer_graph

pytestmark = pytest.mark.skipif(resolve_target(None).name != "x86", reason="U8S8 kernels are those of x86")
WIDTH = 32
FOLLOWING = ("Relu", "Clip", "lower bound", "upper bound", "bias", "turned")
Node = Any


def chain(product: str, following: str) -> ModelProto:
    """Three products, `p0` to `p2`, with an operator behind the first two, `q0` and `q1`."""
    constants: dict[str, Any] = {"low": np.float32(0), "high": np.float32(1), "bias": normal(WIDTH)}
    nodes: list[Node] = []
    source = "x"
    for number in range(3):
        constants[f"w{number}"] = normal(WIDTH, WIDTH, seed=number) / np.float32(WIDTH**0.5)
        nodes.append(helper.make_node(product, [source, f"w{number}"], [f"p{number}"]))
        source = f"p{number}"
        if number < 2:
            nodes += follower(following, source, f"q{number}")
            source = f"q{number}"
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", WIDTH])],
        [helper.make_tensor_value_info(source, TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def follower(kind: str, source: str, output: str) -> list[Node]:
    if kind == "turned":
        there = helper.make_node("Transpose", [source], [f"{output}/t"], perm=[1, 0])
        return [there, helper.make_node("Transpose", [f"{output}/t"], [output], perm=[1, 0])]
    operator, *bounds = {
        "Relu": ("Relu",),
        "Clip": ("Clip", "low", "high"),
        "lower bound": ("Clip", "low"),
        "upper bound": ("Clip", "", "high"),
        "bias": ("Add", "bias"),
    }[kind]
    return [helper.make_node(operator, [source, *bounds], [output])]


KEPT = [(), ("p0",), ("p1",), ("p2",), ("p0", "p2"), ("q0",)]


@pytest.mark.parametrize(("product", "following"), list(itertools.product(("MatMul", "Gemm"), FOLLOWING)))
def test_what_counts_as_integer_runs_as_integer_whatever_stays_float(
    product: str, following: str, x86: Target, tmp_path: Path
) -> None:
    core, feed = chain(product, following), {"x": normal(64, WIDTH)}
    expected = run_onnx(core, [feed])
    for kept in KEPT:
        try:
            small, record = quantize_onnx(core, target=x86, calibration=[feed], keep_float=kept)
        except UserError as error:
            assert following == "turned" and "p2" in kept and "no layer is left" in str(error)
            continue
        ran = Counter(executed(small, {"x": feed["x"][:1]}, tmp_path))
        assert record.nodes_quantized == sum(ran[kind] for kind in INTEGER - {"QLinearAdd"}), (kept, ran)
        assert record.nodes_float == sum(ran[kind] for kind in FLOAT), (kept, ran)
        noise = np.square(run_onnx(small, [feed]) - expected).sum() / np.square(expected).sum()
        assert noise < 0.01, kept


def test_a_product_whose_pair_is_not_fused_is_named(x86: Target) -> None:
    core, feed = chain("Gemm", "turned"), {"x": normal(64, WIDTH)}
    ready = calibrate_graph(core, QuantizeSettings(), target=x86, calibration=[feed])
    graph, names = integer_graph(ready, QuantizeSettings(), keep_float=["p1"])
    before = graph.SerializeToString()
    first = next(node.name for node in ready.model.graph.node if "p0" in node.output)
    assert unfused_nodes(graph, names) == {first}
    assert graph.SerializeToString() == before
    whole, names = integer_graph(ready, QuantizeSettings())
    assert unfused_nodes(whole, names) == set()


def test_biases_have_no_zero_points_and_lose_nothing_without(resnet: ModelProto, x86: Target) -> None:
    feed = {"x": normal(64, 1, 28, 28)}
    small, _ = quantize_onnx(resnet, target=x86, calibration=[feed])
    constants = {tensor.name: tensor for tensor in small.graph.initializer}
    biases = [
        node
        for node in small.graph.node
        if node.op_type == "DequantizeLinear" and node.input[0] in constants
        if constants[node.input[0]].data_type == TensorProto.INT32
    ]
    assert biases and all(len(node.input) == 2 for node in biases)
    spelt = onnx.ModelProto.FromString(small.SerializeToString())
    for node in spelt.graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] in {one.input[0] for one in biases}:
            scale = numpy_helper.to_array(constants[node.input[1]])
            name = f"{node.input[0]}/zero"
            spelt.graph.initializer.append(numpy_helper.from_array(np.zeros_like(scale, np.int32), name))
            node.input.append(name)
    np.testing.assert_array_equal(run_onnx(small, [feed]), run_onnx(spelt, [feed]))


def test_depthwise_weights_keep_eight_bits_where_others_keep_seven(separable: ModelProto) -> None:
    feed = {"x": normal(64, 3, 16, 16)}
    for per_channel in (True, False):
        settings = QuantizeSettings(per_channel=per_channel, reduce_range=True)
        small, record = quantize_onnx(separable, settings, target=resolve_target("x86"), calibration=[feed])
        largest = {
            tuple(tensor.dims)[1]: np.abs(numpy_helper.to_array(tensor).astype(int)).max()
            for tensor in small.graph.initializer
            if tensor.data_type == TensorProto.INT8 and len(tensor.dims) == 4
        }
        assert largest.pop(1) == 127
        assert set(largest.values()) == {64}
        assert record.saturation_risk == 0
