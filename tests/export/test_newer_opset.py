"""Files of opset 7 to 12, written as opset 13 has them: they answer the same, or are refused by the operator's name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from distill.errors import UserError
from distill.export import run_onnx, strip
from distill.export.canonical import canonical
from distill.export.newer_opset import with_opset

OPSETS = range(7, 13)
Case = Callable[[int], tuple[list[NodeProto], dict[str, Any]] | None]
node = helper.make_node


def old(nodes: list[NodeProto], constants: Mapping[str, Any], opset: int, shape: tuple[int, ...]) -> ModelProto:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", *shape])],
        [onnx.ValueInfoProto(name=nodes[-1].output[0])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=4)


def resize(opset: int, mode: str, *scales: float) -> tuple[list[NodeProto], dict[str, Any]] | None:
    stored = np.array([1, 1, *scales], np.float32)
    if opset < 9:
        return [node("Upsample", ["x"], ["y"], scales=stored, mode=mode)], {}
    name = "Upsample" if opset < 10 else "Resize"
    return ([node(name, ["x", "s"], ["y"], mode=mode)], {"s": stored}) if opset < 11 else None


def clip(opset: int) -> tuple[list[NodeProto], dict[str, Any]]:
    if opset < 11:
        return [node("Clip", ["x"], ["y"], min=-0.5, max=0.5)], {}
    return [node("Clip", ["x", "low", "high"], ["y"])], {"low": np.float32(-0.5), "high": np.float32(0.5)}


def padded(opset: int) -> tuple[list[NodeProto], dict[str, Any]]:
    pads = [0, 0, 1, 2, 0, 0, 1, 0]
    if opset < 11:
        return [node("Pad", ["x"], ["y"], pads=pads, mode="reflect")], {}
    return [node("Pad", ["x", "p"], ["y"], mode="reflect")], {"p": np.array(pads)}


def cut(opset: int) -> tuple[list[NodeProto], dict[str, Any]]:
    if opset < 10:
        return [node("Slice", ["x"], ["y"], starts=[1], ends=[3], axes=[2])], {}
    return [node("Slice", ["x", "s", "e", "a"], ["y"])], {"s": np.array([1]), "e": np.array([3]), "a": np.array([2])}


def branches(_: int) -> tuple[list[NodeProto], dict[str, Any]]:
    """Squeeze in both branches, whose axes become an input that each of them has to hold."""
    sides = {
        side: helper.make_graph(
            [node("Unsqueeze", [source], [side], axes=[0])],
            side,
            [],
            [helper.make_tensor_value_info(side, TensorProto.FLOAT, None)],
        )
        for side, source in (("then_branch", "x"), ("else_branch", "z"))
    }
    nodes = [
        node("Neg", ["x"], ["z"]),
        node("ReduceSum", ["x"], ["s"], keepdims=0),
        node("Greater", ["s", "zero"], ["c"]),
        node("If", ["c"], ["y"], **sides),
    ]
    return nodes, {"zero": np.float32(0)}


CASES: dict[str, Case] = {
    "clip": clip,
    "pad": padded,
    "slice": cut,
    "if": branches,
    # Softmax of the first axes taken together, which opset 13 has no more.
    "softmax": lambda _: ([node("Softmax", ["x"], ["y"])], {}),
    "log-softmax": lambda _: ([node("LogSoftmax", ["x"], ["y"], axis=2)], {}),
    "split": lambda _: ([node("Split", ["x"], ["a", "b"], axis=1, split=[1, 2]), node("Relu", ["b"], ["y"])], {}),
    "sum": lambda _: ([node("ReduceSum", ["x"], ["y"], axes=[2, 3], keepdims=0)], {}),
    "mean": lambda _: ([node("GlobalAveragePool", ["x"], ["p"]), node("Squeeze", ["p"], ["y"], axes=[2, 3])], {}),
    "norm": lambda _: (
        [node("BatchNormalization", ["x", "s", "s", "s", "s"], ["y"])],
        {"s": np.ones(3, np.float32)},
    ),
    "nearest": lambda opset: resize(opset, "nearest", 2.0, 2.0),
    "nearest-odd": lambda opset: resize(opset, "nearest", 1.6, 1.4),
    "linear": lambda opset: resize(opset, "linear", 2.0, 2.0),
    "linear-odd": lambda opset: resize(opset, "linear", 1.6, 1.4),
    "smaller": lambda opset: resize(opset, "nearest", 0.6, 0.5) if opset == 10 else None,
    # The converter counts its own tensors _v_1, _v_2, …
    "its-own-names": lambda _: (
        [
            node("Relu", ["x"], ["_v_1"]),
            node("ReduceSum", ["_v_1"], ["_v_2"], axes=[3], keepdims=0),
            node("Unsqueeze", ["_v_2"], ["_v_3"], axes=[1]),
            node("Squeeze", ["_v_3"], ["_v_5"], axes=[1]),
        ],
        {},
    ),
}


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("case", CASES)
def test_the_converted_file_answers_as_the_old_one(case: str, opset: int) -> None:
    made = CASES[case](opset)
    if made is None:
        return
    model = old(*made, opset, (3, 6, 6))
    model.metadata_props.add(key="whose", value="mine")
    before = model.SerializeToString()
    rows = [{"x": np.random.default_rng(0).normal(size=(4, 3, 6, 6)).astype(np.float32)}]
    newer = with_opset(model, 13)
    assert [(entry.domain, entry.version) for entry in newer.opset_import] == [("", 13)]
    assert [(entry.key, entry.value) for entry in newer.metadata_props] == [("whose", "mine")]
    assert [value.name for value in newer.graph.output] == [value.name for value in model.graph.output]
    np.testing.assert_allclose(run_onnx(newer, rows), run_onnx(model, rows), atol=1e-6)
    assert model.SerializeToString() == before


def test_constants_that_the_oldest_files_list_as_inputs_are_none_afterwards() -> None:
    model = old([node("Gemm", ["x", "w", "b"], ["y"])], {"w": np.eye(3, dtype=np.float32), "b": np.ones(3)}, 7, (3,))
    model.graph.initializer[1].CopyFrom(numpy_helper.from_array(np.ones(3, np.float32), "b"))
    model.ir_version = 3
    model.graph.input.extend(
        helper.make_tensor_value_info(tensor.name, TensorProto.FLOAT, tensor.dims) for tensor in model.graph.initializer
    )
    newer = with_opset(model, 13)
    assert [value.name for value in newer.graph.input] == ["x"]
    rows = [{"x": np.arange(6, dtype=np.float32).reshape(2, 3)}]
    np.testing.assert_array_equal(run_onnx(newer, rows), rows[0]["x"] + 1)


def test_operators_of_other_domains_stay() -> None:
    nodes = [node("Gelu", ["x"], ["a"], domain="com.microsoft"), node("Softmax", ["a"], ["y"], axis=1)]
    model = old(nodes, {}, 11, (8,))
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    rows = [{"x": np.random.default_rng(0).normal(size=(4, 8)).astype(np.float32)}]
    np.testing.assert_allclose(run_onnx(with_opset(model, 13), rows), run_onnx(model, rows), atol=1e-6)


def test_what_cannot_be_converted_is_named() -> None:
    untyped = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("s", "r", "t", "e")]
    body = helper.make_graph(
        [node("Add", ["s", "r"], ["t"]), node("Identity", ["t"], ["e"])], "body", untyped[:2], untyped[2:]
    )
    scan = node("Scan", ["lengths", "z", "x"], ["last", "y"], body=body, num_scan_inputs=1)
    with pytest.raises(UserError, match=r"cannot convert its Scan from opset 8 to 13; export it with opset 13"):
        with_opset(old([scan], {"z": np.zeros((1, 3), np.float32), "lengths": np.array([4])}, 8, (4, 3)), 13)


def test_the_standard_s_domain_takes_no_bytes_and_is_imported_once() -> None:
    model = old([node("Relu", ["x"], ["a"]), node("Neg", ["a"], ["y"], domain="ai.onnx")], {}, 13, (3,))
    model.opset_import.append(helper.make_opsetid("ai.onnx", 12))
    plain = canonical(model)
    assert [(entry.domain, entry.version) for entry in plain.opset_import] == [("", 13)]
    assert not plain.graph.node[0].HasField("domain")
    rows = [{"x": np.ones((2, 3), np.float32)}]
    np.testing.assert_array_equal(run_onnx(strip(model), rows), -rows[0]["x"])
