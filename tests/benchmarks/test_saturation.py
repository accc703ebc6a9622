from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from distill.benchmarks import compare, measure, resolve_target
from distill.benchmarks.onnx_file.saturation import saturating_share
from distill.benchmarks.settings import BenchmarkSettings

SAFE, RISKY, OPPOSED = [64, 64], [127, 127], [127, -127]
Weights = np.ndarray[Any, Any]
UNSIGNED = np.uint8(0)


def graph(nodes: list[Any], constants: dict[str, Any], x: int = TensorProto.FLOAT) -> ModelProto:
    made = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", x, None)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    imports = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(made, opset_imports=imports, ir_version=8)


def paired(operator: str, weight: Weights, zero: Any = UNSIGNED, **attributes: int) -> ModelProto:
    """A product between QuantizeLinear and DequantizeLinear, with a scale of 1 everywhere but at its end."""
    largest = 255 * 127 * weight.size / len(weight) / 200
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "one", "zx"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "one", "zx"], ["d"]),
        helper.make_node("DequantizeLinear", ["w", "one"], ["dw"]),
        helper.make_node(operator, ["d", "dw"], ["product"], **attributes),
        helper.make_node("QuantizeLinear", ["product", "large", "zx"], ["qy"]),
        helper.make_node("DequantizeLinear", ["qy", "large", "zx"], ["y"]),
    ]
    return graph(nodes, {"one": np.float32(1), "large": np.float32(largest), "zx": zero, "w": weight})


def integer(operator: str, inputs: list[str], domain: str = "") -> Callable[[Weights], ModelProto]:
    def build(weight: Weights) -> ModelProto:
        constants = {"s": np.float32(1), "zx": np.uint8(0), "zw": np.int8(0), "w": weight}
        nodes = [
            helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "qs", "qz"]),
            helper.make_node(operator, inputs, ["y"], domain=domain),
        ]
        return graph(nodes, constants)

    return build


COLUMNS = {
    "MatMul between pairs": lambda w: paired("MatMul", w),
    "Gemm between pairs": lambda w: paired("Gemm", w),
    "QLinearMatMul": integer("QLinearMatMul", ["q", "s", "zx", "w", "s", "zw", "s", "zx"]),
    "MatMulInteger": integer("MatMulInteger", ["q", "w", "qz", "zw"]),
    "MatMulIntegerToFloat": integer("MatMulIntegerToFloat", ["q", "w", "qs", "s", "qz", "zw"], "com.microsoft"),
    "DynamicQuantizeMatMul": integer("DynamicQuantizeMatMul", ["x", "w", "s", "zw"], "com.microsoft"),
    "QGemm": integer("QGemm", ["q", "s", "zx", "w", "s", "zw"], "com.microsoft"),
}


@pytest.mark.parametrize("form", COLUMNS)
def test_the_share_is_that_of_neighbours_in_the_sum_that_overflow(form: str) -> None:
    rows = np.array([SAFE, RISKY, OPPOSED, [-128, -1]], np.int8)
    assert saturating_share(COLUMNS[form](np.ascontiguousarray(rows.T))) == 0.5
    assert saturating_share(COLUMNS[form](np.full((2, 3), 64, np.int8))) == 0


def test_rows_of_a_transposed_gemm_are_its_outputs() -> None:
    rows = np.array([SAFE, RISKY, OPPOSED, [-128, -1]], np.int8)
    assert saturating_share(paired("Gemm", rows, transB=1)) == 0.5


def test_signed_activations_and_unsigned_weights_add_up_exactly() -> None:
    weight = np.full((2, 2), 127, np.int8)
    assert saturating_share(paired("MatMul", weight, np.int8(0))) == 0
    assert saturating_share(COLUMNS["MatMulInteger"](weight.astype(np.uint8))) == 0


def test_a_product_inside_a_branch_counts() -> None:
    inner = paired("MatMul", np.full((2, 1), 127, np.int8)).graph
    del inner.input[:]
    branch = [helper.make_node("If", ["c"], ["y"], then_branch=inner, else_branch=inner)]
    assert saturating_share(graph(branch, {"c": np.array(True)})) == 1


def neighbours_in_a_row() -> Weights:
    """Two channels of two columns each: large weights lie side by side in a row, and never in two channels."""
    weight = np.zeros((2, 2, 1, 2), np.int8)
    weight[:, 0] = 127
    return weight


def neighbours_in_channels() -> Weights:
    return np.ascontiguousarray(neighbours_in_a_row().transpose(0, 3, 2, 1))


CONVOLUTIONS = {
    "dense": (np.full((4, 4, 3, 3), 127, np.int8), 1, True),
    "grouped": (np.full((8, 2, 3, 3), 127, np.int8), 4, True),
    "depthwise": (np.full((8, 1, 3, 3), 127, np.int8), 8, False),
    "two outputs for each channel": (np.full((16, 1, 3, 3), 127, np.int8), 8, True),
    "7 bits": (np.full((4, 4, 3, 3), 64, np.int8), 1, False),
    "neighbours in a row": (neighbours_in_a_row(), 1, False),
    "neighbours in channels": (neighbours_in_channels(), 1, True),
}


@pytest.mark.parametrize("kind", CONVOLUTIONS)
def test_convolutions_add_neighbouring_channels(kind: str) -> None:
    weight, groups, overflows = CONVOLUTIONS[kind]
    model = paired("Conv", weight, group=groups)
    assert (saturating_share(model) > 0) is overflows
    x = np.full((1, weight.shape[1] * groups, 6, 6), 255, np.float32)
    exact = answer(model, x, ort.GraphOptimizationLevel.ORT_DISABLE_ALL)
    # Where the processor saturates it does so just in the files that are said to.
    assert abs(answer(model, x) - exact) <= 0.01 * exact or overflows


def answer(model: ModelProto, x: Weights, level: Any = ort.GraphOptimizationLevel.ORT_ENABLE_ALL) -> float:
    options = ort.SessionOptions()
    options.graph_optimization_level = level
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return float(session.run(None, {"x": x})[0].max())


def test_a_file_that_saturates_is_named_where_it_is_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if resolve_target(None).name != "x86":
        pytest.skip("U8S8 kernels are those of x86")
    timing = sys.modules["distill.benchmarks.timing.measure"]
    path = tmp_path / "somebody_elses.onnx"
    onnx.save(paired("MatMul", np.full((2, 2), 127, np.int8)), path)
    rows = {"x": np.ones((1, 2), np.float32)}
    settings = BenchmarkSettings(session_pairs=2, seconds_per_pair=0.05)
    target = resolve_target("x86")
    for flags, warned in ((frozenset({"avx2"}), True), (frozenset({"avx2", "avx_vnni"}), False)):
        monkeypatch.setattr(timing, "cpu_flags", lambda flags=flags: flags)
        alone = measure(path, target, 1, settings=settings, rows=rows)
        assert any("somebody_elses.onnx: 100 % of" in text for text in alone.warnings) is warned
    found = compare(path, path, target, 1, settings=settings, baseline_rows=rows, candidate_rows=rows)
    assert not any("VNNI" in text for text in found.candidate.warnings)
