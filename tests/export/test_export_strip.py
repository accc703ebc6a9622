from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from distill.export import run_onnx, simplify, strip, to_bytes
from distill.export.stripping import _short_names

FLOAT = TensorProto.FLOAT


def model_of(nodes, constants=(), *, shape=("batch", 4), out=None, opset=18, functions=(), domains=()):
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", FLOAT, shape)],
        [helper.make_tensor_value_info("logits", FLOAT, out)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants],
    )
    imports = [helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in domains)]
    return helper.make_model(graph, opset_imports=imports, functions=list(functions), ir_version=10)


def test_everything_that_is_not_the_computation_goes(make_core):
    proto = make_core((4,))
    proto.producer_name, proto.doc_string = "somebody", "a story"
    proto.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    helper.set_model_props(proto, {"pkg.torch.stack": "/home/me", "labels": "kept"})
    proto.graph.initializer.append(numpy_helper.from_array(np.ones(1000, np.float32), "unused"))
    proto.graph.value_info.append(helper.make_tensor_value_info("flat", FLOAT, ["batch", 4]))
    before = to_bytes(proto)
    slim = strip(proto)
    assert to_bytes(proto) == before
    assert [(entry.key, entry.value) for entry in slim.metadata_props] == [("labels", "kept")]
    assert not slim.producer_name and not slim.doc_string and not slim.graph.value_info
    assert [entry.domain for entry in slim.opset_import] == [""]
    assert all(not node.name and not node.doc_string for node in slim.graph.node)
    assert [len(tensor.name) for tensor in slim.graph.initializer] == [1]
    x = np.random.default_rng(1).normal(size=(3, 4)).astype(np.float32)
    np.testing.assert_array_equal(run_onnx(slim, [{"x": x}]), run_onnx(proto, [{"x": x}]))
    assert to_bytes(strip(slim)) == to_bytes(slim)


def test_equal_constants_are_kept_once_and_constants_of_other_type_or_shape_stay():
    one, same, column = np.ones(4, np.float32), np.ones(4, np.float32), np.ones((1, 4), np.float32)
    nodes = [
        helper.make_node("Add", ["x", "one"], ["a"]),
        helper.make_node("Add", ["a", "same"], ["b"]),
        helper.make_node("Constant", [], ["written"], value_floats=[1.0] * 4),
        helper.make_node("Mul", ["b", "written"], ["c"]),
        helper.make_node("Identity", ["c"], ["d"]),
        helper.make_node("Add", ["d", "column"], ["logits"]),
        helper.make_node("Relu", ["a"], ["unread"]),
    ]
    slim = strip(model_of(nodes, [("one", one), ("same", same), ("column", column)]))
    assert sorted(len(tensor.dims) for tensor in slim.graph.initializer) == [1, 2]
    assert [node.op_type for node in slim.graph.node] == ["Add", "Add", "Mul", "Add"]
    np.testing.assert_array_equal(run_onnx(slim, [{"x": np.zeros((1, 4), np.float32)}]), [[3.0] * 4])


def test_nested_graphs_keep_their_meaning():
    def branch(op, name):
        return helper.make_graph(
            [helper.make_node(op, ["doubled", "shared"], [name])],
            name,
            [],
            [helper.make_tensor_value_info(name, FLOAT, None)],
        )

    nodes = [
        helper.make_node("Add", ["x", "x"], ["doubled"]),
        helper.make_node("ReduceSum", ["x"], ["total"], keepdims=0),
        helper.make_node("Greater", ["total", "zero"], ["positive"]),
        helper.make_node(
            "If", ["positive"], ["logits"], then_branch=branch("Add", "p"), else_branch=branch("Sub", "q")
        ),
    ]
    proto = model_of(nodes, [("zero", np.float32(0)), ("shared", np.float32(1)), ("twin", np.float32(1))])
    slim = strip(proto)
    for value, expected in ((1.0, 3.0), (-1.0, -3.0)):
        got = run_onnx(slim, [{"x": np.full((1, 4), value, np.float32)}])
        np.testing.assert_array_equal(got, np.full((1, 4), expected))
    assert b"doubled" not in to_bytes(slim)


def test_local_functions_are_inlined():
    body = [helper.make_node("Add", ["a", "a"], ["b"])]
    double = helper.make_function("mine", "Double", ["a"], ["b"], body, [helper.make_opsetid("", 18)])
    proto = model_of(
        [helper.make_node("Double", ["x"], ["logits"], domain="mine")], functions=[double], domains=["mine"]
    )
    slim = strip(proto)
    assert not slim.functions and [entry.domain for entry in slim.opset_import] == [""]
    np.testing.assert_array_equal(run_onnx(slim, [{"x": np.ones((1, 4), np.float32)}]), np.full((1, 4), 2.0))


def test_default_attributes_go_and_others_stay():
    weight = np.random.default_rng(0).normal(size=(2, 1, 3, 3)).astype(np.float32)
    written = {"auto_pad": "NOTSET", "group": 1, "dilations": [1, 1], "strides": [1, 1], "pads": [1, 1, 1, 1]}
    proto = model_of([helper.make_node("Conv", ["x", "w"], ["logits"], **written)], [("w", weight)], shape=(1, 1, 5, 5))
    slim = strip(proto)
    assert [entry.name for entry in slim.graph.node[0].attribute] == ["pads"]
    x = np.random.default_rng(1).normal(size=(1, 1, 5, 5)).astype(np.float32)
    np.testing.assert_array_equal(run_onnx(slim, [{"x": x}]), run_onnx(proto, [{"x": x}]))


def test_short_names_are_unique():
    names = [name for name, _ in zip(_short_names(), range(60_000), strict=False)]
    assert len(set(names)) == len(names) and max(map(len, names)) <= 3


@pytest.mark.parametrize("keep", [0, 1])
def test_a_spatial_mean_becomes_a_pool(keep):
    nodes = [helper.make_node("ReduceMean", ["x", "axes"], ["logits"], keepdims=keep)]
    proto = model_of(nodes, [("axes", np.asarray([-1, 2], np.int64))], shape=("batch", 3, 4, 5))
    simple = simplify(proto)
    assert simple.graph.node[0].op_type == "GlobalAveragePool"
    x = np.random.default_rng(1).normal(size=(2, 3, 4, 5)).astype(np.float32)
    np.testing.assert_allclose(run_onnx(simple, [{"x": x}]), x.mean((2, 3), keepdims=bool(keep)), atol=1e-6)


@pytest.mark.parametrize(
    ("axes", "shape"), [([1], ("batch", 3, 4, 5)), ([2], ("batch", 3, 4, 5)), ([1], ("batch", 3, 4))]
)
def test_another_mean_stays(axes, shape):
    proto = model_of(
        [helper.make_node("ReduceMean", ["x", "axes"], ["logits"])], [("axes", np.asarray(axes))], shape=shape
    )
    assert [node.op_type for node in simplify(proto).graph.node] == ["ReduceMean"]


def test_a_reshape_by_the_batch_size_gets_a_constant_target():
    nodes = [
        helper.make_node("Shape", ["x"], ["dims"]),
        helper.make_node("Slice", ["dims", "zero", "one"], ["n"]),
        helper.make_node("Slice", ["dims", "one", "two"], ["known"]),
        helper.make_node("Concat", ["n", "known", "two"], ["target"], axis=0),
        helper.make_node("Reshape", ["x", "target"], ["logits"]),
    ]
    constants = [(name, np.asarray([number])) for name, number in (("zero", 0), ("one", 1), ("two", 2))]
    simple = strip(simplify(model_of(nodes, constants, shape=("batch", 3, 2))))
    assert [node.op_type for node in simple.graph.node] == ["Reshape"]
    assert run_onnx(simple, [{"x": np.ones((5, 3, 2), np.float32)}]).shape == (5, 3, 2)


def gelu_of(half: float, *, twice: bool = False):
    """x times a half of one and erf, as PyTorch's exporter writes it; with `twice` the half is read by another, too."""
    nodes = [
        helper.make_node("Add", ["x", "bias"], ["y"]),
        helper.make_node("Div", ["y", "root"], ["scaled"]),
        helper.make_node("Erf", ["scaled"], ["erf"]),
        helper.make_node("Add", ["erf", "one"], ["above"]),
        helper.make_node("Mul", ["half", "above"], ["gate"]),
        helper.make_node("Mul", ["y", "gate"], ["gelu"]),
        helper.make_node("Add", ["gelu", "gate" if twice else "bias"], ["logits"]),
    ]
    values = {"root": 2**0.5, "one": 1.0, "half": half, "bias": np.linspace(-1, 1, 4)}
    return model_of(nodes, [(name, np.asarray(value, np.float32)) for name, value in values.items()])


def test_a_gelu_is_written_as_it_is_fused_and_computes_the_same(tmp_path):
    proto = gelu_of(0.5)
    simple = simplify(proto)
    x = np.random.default_rng(0).normal(size=(64, 4)).astype(np.float32) * 3
    plain = {"graph_optimization_level": ort.GraphOptimizationLevel.ORT_DISABLE_ALL}

    def session(model, **settings):
        options = ort.SessionOptions()
        for name, value in settings.items():
            setattr(options, name, value)
        return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])

    # Halving is exact: before anything is fused both are equal bit by bit.
    before, after = (session(model, **plain).run(None, {"x": x})[0] for model in (proto, simple))
    np.testing.assert_array_equal(before, after)
    session(simple, optimized_model_filepath=str(tmp_path / "fused.onnx"))
    operators = {node.op_type for node in onnx.load(str(tmp_path / "fused.onnx")).graph.node}
    assert operators & {"Gelu", "BiasGelu"} and "Erf" not in operators


@pytest.mark.parametrize("other", [{"half": 0.25}, {"half": 0.5, "twice": True}])
def test_what_only_looks_like_a_gelu_stays(other):
    proto = gelu_of(**other)
    assert [list(node.input) for node in simplify(proto).graph.node] == [list(node.input) for node in proto.graph.node]


@settings(max_examples=25, deadline=None)
@given(st.lists(st.sampled_from(["Relu", "Identity", "Add", "Mul", "Neg", "Dead"]), min_size=1, max_size=12), st.data())
def test_random_chains_compute_the_same_when_stripped(operators, data):
    nodes, last = [], "x"
    for number, op in enumerate(operators):
        inputs = [last, f"c{data.draw(st.integers(0, 2))}"] if op in ("Add", "Mul") else [last]
        nodes.append(helper.make_node("Neg" if op == "Dead" else op, inputs, [f"t{number}"]))
        last = last if op == "Dead" else f"t{number}"
    nodes.append(helper.make_node("Identity", [last], ["logits"]))
    constants = [(f"c{i}", np.float32(value)) for i, value in enumerate((2.0, 2.0, -3.0))]
    proto = model_of(nodes, constants, out=("batch", 4))
    slim = strip(proto)
    onnx.checker.check_model(slim)
    x = np.linspace(-2, 2, 8, dtype=np.float32).reshape(2, 4)
    np.testing.assert_array_equal(run_onnx(slim, [{"x": x}]), run_onnx(proto, [{"x": x}]))
    assert len(slim.graph.node) <= len(proto.graph.node)


def test_nodes_stand_in_the_order_of_their_data() -> None:
    """A graph with its nodes turned round, one of which reads from inside a branch, is put right; others stay."""
    branch = helper.make_graph(
        [helper.make_node("Add", ["b", "b"], ["inner"])], "then", [], [helper.make_tensor_value_info("inner", 1, None)]
    )
    nodes = [
        helper.make_node("Relu", ["x"], ["a"]),
        helper.make_node("Neg", ["a"], ["b"]),
        helper.make_node("If", ["flag"], ["c"], then_branch=branch, else_branch=branch),
        helper.make_node("Add", ["c", "a"], ["logits"]),
    ]
    inputs = [helper.make_tensor_value_info("x", 1, ["batch", 2]), helper.make_tensor_value_info("flag", 9, [])]
    outputs = [helper.make_tensor_value_info("logits", 1, ["batch", 2])]

    def build(order: list[onnx.NodeProto]) -> onnx.ModelProto:
        graph = helper.make_graph(order, "g", inputs, outputs)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])

    right, wrong = strip(build(nodes)), strip(build(nodes[::-1]))
    onnx.checker.check_model(wrong, full_check=True)
    assert [node.op_type for node in right.graph.node] == ["Relu", "Neg", "If", "Add"]
    assert [node.op_type for node in wrong.graph.node] == ["Relu", "Neg", "If", "Add"]
