from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from distill.benchmarks import Target, make_inputs, profile, resolve_target
from distill.benchmarks.timing import profile as module
from distill.errors import NotMeasuredError

summarize = module.summarize
CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"


def ran(op: str, provider: str = CPU, shapes: list[list[int]] | None = None, name: str = "") -> list[Any]:
    return [name, op, provider, shapes or []]


def test_executed_operators_are_counted(conv: Callable[..., Path], here: Target, tmp_path: Path) -> None:
    path = conv(layers=3)
    before = sorted(tmp_path.iterdir())
    found = profile(path, here, make_inputs(path, 2))
    assert (found.integer, found.float_, found.integer_share, found.provider) == (0, 3, 0.0, CPU)
    assert sum(count for name, count in found.nodes.items() if "Conv" in name) == 3
    assert found.warnings == ()
    assert sorted(tmp_path.iterdir()) == before


def test_integer_kernels_are_seen(save: Callable[..., Path], here: Target) -> None:
    def constant(name: str, value: Any, dtype: Any) -> onnx.TensorProto:
        return numpy_helper.from_array(np.asarray(value, dtype), name)

    stored = [constant("scale", 0.1, np.float32), constant("zero", 0, np.uint8), constant("zero_w", 0, np.int8)]
    stored.append(constant("w", np.ones((4, 3)), np.int8))
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
        helper.make_node("QLinearMatMul", ["q", "scale", "zero", "w", "scale", "zero_w", "scale", "zero"], ["p"]),
        helper.make_node("DequantizeLinear", ["p", "scale", "zero"], ["y"]),
    ]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])]
    path = save(nodes, inputs, [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3])], stored)
    found = profile(path, here, make_inputs(path, 2))
    assert (found.integer, found.float_, found.integer_share) == (1, 0, 1.0)
    assert found.nodes[f"{CPU}/QLinearMatMul"] == 1


def test_an_addition_counts_when_it_joins_two_activations() -> None:
    residual, bias = ran("Add", shapes=[[1, 8, 4, 4], [1, 8, 4, 4]]), ran("Add", shapes=[[1, 8], [8]])
    found = summarize([ran("QLinearConv"), residual, bias, ran("Relu")], CPU, "m")
    assert (found.integer, found.float_, found.integer_share) == (1, 1, 0.5)


def test_nodes_that_ran_elsewhere_warn_and_all_of_them_elsewhere_is_not_measured() -> None:
    found = summarize([ran("Conv", CUDA), ran("Conv", CUDA), ran("Conv", CPU)], CUDA, "m")
    assert found.provider == CUDA
    assert found.warnings == (f"m: 1 of 3 compute nodes did not run on {CUDA}",)
    with pytest.raises(NotMeasuredError, match="all 2 compute nodes ran on CPUExecutionProvider"):
        summarize([ran("QLinearConv"), ran("QLinearConv"), ran("Memcpy", CUDA)], CUDA, "m")


def test_a_compiled_subgraph_has_no_integer_share() -> None:
    found = summarize([ran("TRTKernel_graph_0", "TensorrtExecutionProvider")], "TensorrtExecutionProvider", "m")
    assert (found.integer_share, found.provider) == (0.0, "TensorrtExecutionProvider")
    assert "compiled into one kernel" in found.warnings[0]


def test_a_call_that_fails_and_a_foreign_target_are_not_profiled(conv: Callable[..., Path], here: Target) -> None:
    path = conv()
    with pytest.raises(NotMeasuredError, match="a call failed"):
        profile(path, here, {"x": np.zeros((1, 1, 6, 6), np.float32)})
    foreign = resolve_target("arm" if here.name == "x86" else "x86")
    with pytest.raises(NotMeasuredError, match="the target is"):
        profile(path, foreign, make_inputs(path, 1))


def test_a_quantized_file_whose_nodes_ran_in_float_names_them() -> None:
    borders = [ran("QuantizeLinear"), ran("DequantizeLinear")]
    whole = summarize([*borders, ran("QLinearConv")], CPU, "m")
    assert module.unfused_warning(whole, "m") is None
    for before in ([], [ran("DequantizeLinear")], [ran("QuantizeLinear"), ran("MatMulIntegerToFloat")]):
        assert module.unfused_warning(summarize([*before, ran("Conv", name="c1")], CPU, "m"), "m") is None
    # What runs in front of the first pair is float on purpose.
    assert summarize([ran("FusedConv", name="stem"), *borders, ran("QLinearConv")], CPU, "m").unfused == ()
    half = summarize([*borders, ran("QLinearConv"), ran("Conv", name="c2"), ran("Gemm", name="head")], CPU, "m")
    assert half.unfused == ("c2", "head")
    warning = module.unfused_warning(half, "m")
    assert warning is not None
    assert "2 of 3 compute nodes ran in float" in warning
    assert "c2, head" in warning
