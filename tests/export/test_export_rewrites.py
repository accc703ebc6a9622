"""Graphs that mislead a rewrite by names, by counts of outputs or by what a file says of itself."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import ModelProto, TensorProto, helper, numpy_helper, parser
from torch import nn
from torch.nn import functional

from distill.errors import UserError
from distill.export import FeaturesPreprocess, export_onnx, run_onnx, simplify, strip, to_bytes
from distill.export.canonical import freeze_defaults

BOTH = pytest.mark.parametrize("rewrite", [strip, simplify])


def parsed(body: str, *, opset: int = 18, header: str = "", ir: int = 10) -> ModelProto:
    """Read a model from text: inputs, outputs, constants and nodes; ``header`` names more domains."""
    return parser.parse_model(f'<ir_version: {ir}, opset_import: ["" : {opset}{header}]> g {body}')


def ran(model: ModelProto, **feed: Any) -> list[np.ndarray]:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL  # it believes what a file states
    opened = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return list(opened.run(None, feed))


def same(model: ModelProto, rewrite: Any, **feed: Any) -> ModelProto:
    """Rewrite a model, require the same answers, and return it."""
    slim = rewrite(model)
    onnx.checker.check_model(slim)
    assert [v.name for v in slim.graph.input] == [v.name for v in model.graph.input]
    assert [v.name for v in slim.graph.output] == [v.name for v in model.graph.output]
    for one, two in zip(ran(model, **feed), ran(slim, **feed), strict=True):
        np.testing.assert_allclose(two, one, rtol=1e-6, atol=1e-6)
    return slim


X = np.arange(12, dtype=np.float32).reshape(2, 6) - 5
LAST_UNREAD = {
    "Split by number": "a, b, c = Split <axis: int = 1, num_outputs: int = 3> (x) y = Add (a, b)",
    "Split by sizes": """s = Constant <value_ints: ints = [2, 2, 2]> ()
        a, b, c = Split <axis: int = 1> (x, s)
        y = Add (a, b)""",
    "If": """on = Constant <value: tensor = bool {1}> ()
        y, c = If (on) <then_branch: graph = t () => (float[b, n] p, float[b, n] q) { p = Neg (x) q = Abs (x) },
                        else_branch: graph = e () => (float[b, n] p, float[b, n] q) { p = Abs (x) q = Neg (x) }>""",
    "Loop": """n = Constant <value_int: int = 3> ()
        y, c = Loop (n, , x) <body: graph = l (int64 i, bool on, float[b, n] s)
                              => (bool go, float[b, n] r, float[b, n] q)
                              { go = Identity (on) r = Add (s, x) q = Neg (s) }>""",
    "Scan": """n = Constant <value_floats: floats = [0.0, 0.0, 0.0, 0.0, 0.0, 0.0]> ()
        z, c = Scan <num_scan_inputs: int = 1, body: graph = l (float[n] s, float[n] v) => (float[n] r, float[n] q)
                     { r = Add (s, v) q = Neg (s) }> (n, x)
        y = Add (x, z)""",
    "TopK": "k = Constant <value_ints: ints = [2]> () y, c = TopK (x, k)",
}  # fmt: skip


@BOTH
@pytest.mark.parametrize("name", LAST_UNREAD)
def test_an_output_that_is_no_option_stays_though_nobody_reads_it(name: str, rewrite: Any) -> None:
    model = parsed(f"(float[b, 6] x) => (float[b, m] y) {{ {LAST_UNREAD[name]} }}")
    slim = same(model, rewrite, x=X)
    multiple = [len(node.output) for node in model.graph.node if len(node.output) > 1]
    assert [len(node.output) for node in slim.graph.node if len(node.output) > 1] == multiple


@BOTH
def test_outputs_of_an_operator_that_the_standard_does_not_know_stay(rewrite: Any) -> None:
    model = parsed("(float[b, 6] x) => (float[b, m] y) { y, c = own.Halve (x) }", header=', "own" : 1')
    assert [len(node.output) for node in rewrite(model).graph.node] == [2]


@BOTH
@pytest.mark.parametrize(
    "nodes",
    [
        "y, mask = Dropout (x)",
        "g = Constant <value_floats: floats = [1.0]> () y, mean, deviation = LayerNormalization (x, g)",
        "r = Unsqueeze (x, one) p, where = MaxPool <kernel_shape: ints = [2]> (r) y = Squeeze (p, one)",
    ],
)
def test_an_optional_last_output_goes_where_nobody_reads_it(nodes: str, rewrite: Any) -> None:
    model = parsed(f"(float[b, 6] x) => (float[b, m] y) <int64[1] one = {{1}}> {{ {nodes} }}")
    assert all(len(node.output) == 1 for node in same(model, rewrite, x=X).graph.node)


@BOTH
def test_names_that_come_again_in_and_beside_nested_graphs_are_kept_apart(rewrite: Any) -> None:
    """Both branches define t, and so does a copy that comes later outside and is read inside other branches."""
    model = parsed("""(float[b, 6] x) => (float[b, m] y) <bool on = {1}> {
        p = If (on) <then_branch: graph = t () => (float[b, n] u) { t = Neg (x) u = Exp (t) },
                     else_branch: graph = e () => (float[b, n] u) { t = Abs (x) u = Identity (t) }>
        t = Identity (p)
        q = If (on) <then_branch: graph = t () => (float[b, n] v) { v = Neg (t) },
                     else_branch: graph = e () => (float[b, n] w) { w = Abs (t) }>
        y = Add (q, t)
    }""")
    assert "Identity" not in [node.op_type for node in same(model, rewrite, x=X).graph.node]


def test_stripping_twice_is_stripping_once_with_many_constants_inside() -> None:
    nodes = [helper.make_node("Add", [f"t{i}" if i else "x", f"c{i}"], [f"t{i + 1}"]) for i in range(60)]
    stored = [numpy_helper.from_array(np.float32(60 - i), f"c{i}") for i in range(60)]
    end = [helper.make_tensor_value_info("t60", TensorProto.FLOAT, None)]
    both = {f"{which}_branch": helper.make_graph(nodes, which, [], end) for which in ("then", "else")}
    model = parsed("(float[b, 6] x, bool on) => (float[b, m] y) { y = Relu (x) }")
    model.graph.node[0].CopyFrom(helper.make_node("If", ["on"], ["y"], **both))
    model.graph.initializer.extend(stored)
    slim = same(model, strip, x=X, on=np.array(True))
    assert to_bytes(strip(slim)) == to_bytes(slim)


def test_a_half_of_gelu_that_is_an_output_stays_what_it_is() -> None:
    body = "<float r = {1.4142135}, float one = {1.0}, float half = {0.5}> "
    body += "{ s = Div (x, r) e = Erf (s) a = Add (e, one) h = Mul (half, a) y = Mul (x, h) }"
    inner = same(parsed(f"(float[b, 6] x) => (float[b, 6] y) {body}"), simplify, x=X)
    assert [list(node.input) for node in inner.graph.node[-2:]] == [["x", "a"], ["h", "half"]]
    shown = same(parsed(f"(float[b, 6] x) => (float[b, 6] y, float[b, 6] h) {body}"), simplify, x=X)
    assert [list(node.input) for node in shown.graph.node[-2:]] == [["half", "a"], ["x", "h"]]


@pytest.mark.parametrize("place", ["value_info", "output"])
def test_shapes_that_a_file_states_wrongly_fix_no_batch(place: str) -> None:
    """Who opens the batch of the inputs often leaves the shapes behind them as they were."""
    model = parsed("""(float[b, 6] x) => (float[b, 2, 3] y, float[b, 6] r)
        <int64[2] rest = {2, 3}, int64[1] zero = {0}, int64[1] one = {1}> {
        r = Relu (x) s = Shape (r) n = Slice (s, zero, one) t = Concat <axis: int = 0> (n, rest) y = Reshape (r, t)
    }""")  # fmt: skip
    stated = helper.make_tensor_value_info("r", TensorProto.FLOAT, [1, 6])
    if place == "output":
        model.graph.output[1].CopyFrom(stated)
    else:
        del model.graph.output[1]
        model.graph.value_info.append(stated)
    slim = same(model, simplify, x=X)
    assert "Concat" not in [node.op_type for node in slim.graph.node]


def test_a_mean_of_integers_stays_and_one_of_no_rows_works() -> None:
    header = "(int32[b, 2, 3, 4] x) => (int32[b, 2] y) <int64[2] axes = {2, 3}>"
    means = parsed(f"{header} {{ y = ReduceMean <keepdims: int = 0> (x, axes) }}")
    numbers = np.arange(48, dtype=np.int32).reshape(2, 2, 3, 4)
    assert [node.op_type for node in same(means, simplify, x=numbers).graph.node] == ["ReduceMean"]
    floats = parsed(f"{header.replace('int32', 'float')} {{ y = ReduceMean <keepdims: int = 0> (x, axes) }}")
    slim = same(floats, simplify, x=numbers.astype(np.float32))
    assert ran(slim, x=np.zeros((0, 2, 3, 4), np.float32))[0].shape == (0, 2)


def test_words_are_equal_only_where_each_is() -> None:
    model = parsed("(float[b, 6] x) => (bool[k] y) { y = Equal (one, two) }", opset=19)
    for name, words in (("one", [b"a\0b", b"c"]), ("two", [b"a", b"b\0c"])):
        model.graph.initializer.append(helper.make_tensor(name, TensorProto.STRING, [2], words))
    assert len(strip(model).graph.initializer) == 2
    model.graph.initializer[1].string_data[:] = [b"a\0b", b"c"]
    assert len(strip(model).graph.initializer) == 1
    model.graph.initializer[1].string_data[:] = [b"\xff", b"\xfe"]  # not UTF-8
    assert len(strip(model).graph.initializer) == 2


def test_minus_zero_is_not_zero() -> None:
    model = parsed(
        "(float[b, 6] x) => (float[b, 6] y) { p = Shrink <bias: float = -0.0> (x) y = Shrink <bias: float = 0.0> (p) }"
    )
    assert [len(node.attribute) for node in strip(model).graph.node] == [1, 0]
    body = "{ q = Div (x, p) r = Div (x, n) y = Max (q, r) }"
    zeros = parsed(f"(float[b, 6] x) => (float[b, 6] y) <float p = {{0.0}}, float n = {{-0.0}}> {body}")
    assert len(strip(zeros).graph.initializer) == 2


@BOTH
def test_an_input_with_a_default_value_stays_one(rewrite: Any) -> None:
    body = "<float c = {0.5}, float half = {0.5}> { p = Mul (x, c) y = Mul (p, half) }"
    model = parsed(f"(float[b, 6] x, float c) => (float[b, 6] y) {body}")
    slim = same(model, rewrite, x=X)
    np.testing.assert_array_equal(ran(slim, x=X, c=np.array(3, np.float32))[0], X * 1.5)
    freeze_defaults(slim)
    assert [value.name for value in slim.graph.input] == ["x"]
    np.testing.assert_array_equal(ran(slim, x=X)[0], X * 0.25)


@BOTH
def test_in_old_files_every_constant_is_an_input_and_none_has_to_be(rewrite: Any) -> None:
    model = parsed("(float[b, 6] x, float c) => (float[b, 6] y) <float c = {0.5}> { y = Mul (x, c) }", opset=8, ir=3)
    slim = strip(rewrite(model))
    onnx.checker.check_model(slim)
    assert [value.name for value in slim.graph.input] == ["x"]
    np.testing.assert_array_equal(ran(slim, x=X)[0], X * 0.5)


@BOTH
@pytest.mark.parametrize("opset", [18, 13])
def test_an_operator_of_the_files_own_is_not_taken_for_one_of_the_standard(opset: int, rewrite: Any) -> None:
    """A function named Identity doubles; of another opset than the model's it cannot be inlined."""
    twice = helper.make_node("Sub", ["p", "n"], ["q"]) if opset == 18 else helper.make_node("Neg", ["p"], ["q"])
    nodes = [helper.make_node("Neg", ["p"], ["n"]), twice]
    own = helper.make_function("own", "Identity", ["p"], ["q", "n"], nodes, [helper.make_opsetid("", opset)])
    model = parsed("(float[b, 6] x) => (float[b, 6] y) { p, n = own.Identity (x) y = Relu (p) }", header=', "own" : 1')
    model.functions.append(own)
    slim = same(model, rewrite, x=X)
    assert len(slim.functions) == (0 if opset == 18 else 1)


@BOTH
def test_values_that_were_not_read_are_asked_for(rewrite: Any) -> None:
    model = parsed("(float[b, 6] x) => (float[b, 6] y) <float c = {0.5}> { y = Mul (x, c) }")
    model.graph.initializer[0].data_location = TensorProto.EXTERNAL
    model.graph.initializer[0].external_data.add(key="location", value="/etc/passwd")
    with pytest.raises(UserError, match="'c' lie in a file of their own; load the model with them"):
        rewrite(model)


def test_a_constant_that_was_loaded_from_another_file_is_the_same_bytes(tmp_path: Any) -> None:
    model = parsed(
        "(float[b, 6] x) => (float[b, 6] y) <float[6] c = {1.0, 2.0, 3.0, 4.0, 5.0, 6.0}> { y = Mul (x, c) }"
    )
    onnx.save(strip(model), str(tmp_path / "m.onnx"), save_as_external_data=True, size_threshold=0)
    assert to_bytes(strip(onnx.load(str(tmp_path / "m.onnx")))) == to_bytes(strip(model))


@BOTH
def test_attributes_that_say_how_many_outputs_mean_what_they_did(rewrite: Any) -> None:
    """A batch normalisation of opset 13 with more than one output trains: its number of outputs is kept."""
    model = parsed(
        "(float[b, 2] x, float[2] c) => (float[b, 2] y) { y, m, v = BatchNormalization (x, c, c, c, c) }", opset=13
    )
    assert [len(node.output) for node in rewrite(model).graph.node] == [3]


def test_an_input_that_is_an_output_as_well_keeps_its_name_behind_preprocessing() -> None:
    model = parsed("(float[b, 2] x) => (float[b, 2] y, float[b, 2] x) { y = Neg (x) }")
    shipped = FeaturesPreprocess(fill=(0.0, 0.0), mean=(1.0, 1.0), scale=(2.0, 2.0)).prepend(model, input_name="x")
    assert [value.name for value in shipped.graph.output] == ["y", "x"]
    y, x = ran(shipped, features=np.array([[1.0, 2.0]], np.float32))
    np.testing.assert_array_equal([y[0], x[0]], [[0.0, -2.0], [0.0, 2.0]])


@pytest.mark.parametrize("kept", ["flat", "none"])
def test_pixels_go_in_raw_only_where_no_float_on_the_way_is_an_output(kept: str) -> None:
    from distill.export import ImagePreprocess

    outputs = "float[b, 3] y" + (", float[b, 12] flat" if kept == "flat" else "")
    model = parsed(f"""(float[b, 1, 3, 4] x) => ({outputs})
        <int64[2] s = {{-1, 12}}, float a = {{0.02}}, uint8 z = {{128}}, float[3] c = {{1.0, 2.0, 3.0}},
         int64[2] k = {{0, 3}}> {{
        flat = Reshape (x, s) q = QuantizeLinear (flat, a, z) d = DequantizeLinear (q, a, z)
        h = Gather <axis: int = 1> (d, k) w = ReduceSum <keepdims: int = 1> (h) y = Mul (w, c)
    }}""")  # fmt: skip
    front = ImagePreprocess(3, 4, 1, (128.0,), (0.02,))
    pixels = np.random.default_rng(0).integers(0, 256, (2, 3, 4, 1)).astype(np.uint8)
    shipped = front.prepend(model, input_name="x")
    onnx.checker.check_model(shipped, full_check=True)
    assert ("QuantizeLinear" in [node.op_type for node in shipped.graph.node]) == (kept == "flat")
    expected = ran(model, x=front.apply({"image": pixels}))
    for one, two in zip(expected, ran(shipped, image=pixels), strict=True):
        np.testing.assert_allclose(two, one, rtol=1e-5, atol=1e-5)


class PaddedPool(nn.Module):
    """Pools what is below zero everywhere, with zeros around it."""

    def __init__(self, pool: nn.Module, padding: tuple[int, ...]) -> None:
        super().__init__()
        self.pool, self.padding = pool, padding

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.pool(functional.pad(-1 - x.abs(), self.padding)).flatten(1)


PADDED_POOLS = {
    "max": (PaddedPool(nn.MaxPool2d(2, 1, ceil_mode=True), (0, 1, 0, 1)), (3, 7, 7)),
    "max that pads too": (PaddedPool(nn.MaxPool2d(3, 2, 1), (1, 1, 1, 1)), (3, 7, 7)),
    "max that is narrower": (PaddedPool(nn.MaxPool2d(2, 1), (2, 0, 2, 0)), (3, 7, 7)),
    "max of lines": (PaddedPool(nn.MaxPool1d(3, 2), (1, 1)), (3, 7)),
    "mean that is narrower": (PaddedPool(nn.AvgPool2d(3, 2, 1), (2, 0, 2, 0)), (3, 7, 7)),
    "mean that rounds up": (PaddedPool(nn.AvgPool2d(3, 2, 1, ceil_mode=True), (1, 1, 1, 1)), (3, 10, 10)),
}


@pytest.mark.parametrize("case", PADDED_POOLS)
def test_zeros_in_front_of_a_pool_take_part_in_it_once_onnxruntime_has_optimized(case: str) -> None:
    model, shape = PADDED_POOLS[case]
    x = torch.randn(2, *shape)
    proto = export_onnx(model, args=(x,), input_names=["x"])
    np.testing.assert_allclose(run_onnx(proto, [{"x": x.numpy()}]), model(x).numpy(), rtol=1e-6, atol=1e-6)


def test_a_graph_that_onnxruntime_optimizes_wrongly_is_refused_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distill.export.onnx_export.keep_padding", lambda proto: None)
    model, shape = PADDED_POOLS["max"]
    with pytest.raises(UserError, match=r"away .* the graph is right, but onnxruntime [\d.]+ computes something else"):
        export_onnx(model, args=(torch.randn(2, *shape),), input_names=["x"])
