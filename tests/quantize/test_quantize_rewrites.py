"""Graphs that mislead the rewrites before quantisation: what else reads a tensor, and what nobody can tell of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import ModelProto, numpy_helper, parser
from quantize_zoo import target

from distill.export import run_onnx
from distill.quantize import QuantizeSettings, quantize_onnx, to_blocks, to_dynamic, to_half
from distill.quantize.equalize import equalize
from distill.quantize.prepare import prepare, products_to_gemm
from distill.quantize.smooth import smooth

X86 = target("x86", reduce_range=True)  # whose sums are exact on every processor


def model_of(body: str, weights: dict[str, tuple[int, ...]], *, header: str = "", opset: int = 18) -> ModelProto:
    """Read a model from text and give it random weights by shape."""
    model = parser.parse_model(f'<ir_version: 10, opset_import: ["" : {opset}{header}]> g {body}')
    rng = np.random.default_rng(1)
    for name, shape in weights.items():
        model.graph.initializer.append(numpy_helper.from_array(rng.normal(size=shape).astype(np.float32), name))
    return model


def rows(*shape: int, seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def answers(model: ModelProto, x: np.ndarray[Any, Any]) -> list[np.ndarray[Any, Any]]:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return list(session.run(None, {"x": x}))


def alike(one: ModelProto, two: ModelProto, x: np.ndarray[Any, Any]) -> None:
    assert [value.name for value in one.graph.output] == [value.name for value in two.graph.output]
    for a, b in zip(answers(one, x), answers(two, x), strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-3, atol=1e-4)


def test_a_product_whose_result_is_an_output_stays_one() -> None:
    body = "(float[n, 5, 4] x) => (float[n, 5, 3] y, float[n, 5, 3] p) { p = MatMul (x, w) y = Add (p, b) }"
    core = model_of(body, {"w": (4, 3), "b": (3,)})
    prepared = prepare(core, fold_norms=True)
    products_to_gemm(prepared)
    onnx.checker.check_model(prepared)
    alike(core, prepared, rows(6, 5, 4))
    integer, _ = quantize_onnx(core, target=X86, calibration=[{"x": rows(8, 5, 4)}])
    assert [value.name for value in integer.graph.output] == ["y", "p"]
    for one, two in zip(answers(core, rows(8, 5, 4)), answers(integer, rows(8, 5, 4)), strict=True):
        assert np.abs(one - two).max() < 0.1 * np.abs(one).max()


@pytest.mark.parametrize(
    "reads",
    [
        "y = Mul (h, c)",  # another operator reads the bias
        "q = Gemm (h, v, c) y = Add (q, c)",
        "s = Constant <value: tensor = bool {1}> () "
        "y = If (s) <then_branch: graph = t () => (float[a, b] o) { o = Mul (h, c) }, "
        "else_branch: graph = e () => (float[a, b] p) { p = Add (h, c) }>",
    ],
)
def test_weights_that_something_else_reads_are_not_scaled_with_their_layer(reads: str) -> None:
    body = f"(float[n, 4] x) => (float[n, 4] y) {{ g = Gemm (x, w, c) r = Relu (g) h = Gemm (r, v, c) {reads} }}"
    core = model_of(body, {"w": (4, 4), "v": (4, 4), "c": (4,)})
    even, pairs = equalize(prepare(core, fold_norms=True))
    assert pairs >= 1
    alike(core, even, rows(9, 4))


def test_a_branch_reads_a_smoothed_normalisation_as_it_was() -> None:
    core = model_of(
        """(float[n, 4] x) => (float[n, 4] y) <bool s = {1}> {
            l = LayerNormalization (x, g, c) p = MatMul (l, w)
            q = If (s) <then_branch: graph = t () => (float[a, b] o) { o = Neg (l) },
                         else_branch: graph = e () => (float[a, b] o) { o = Abs (l) }>
            y = Add (p, q) }""",
        {"g": (4,), "c": (4,), "w": (4, 4)},
    )
    x = rows(12, 4)
    even, count = smooth(prepare(core, fold_norms=True), [{"x": x}], QuantizeSettings(samples=12))
    assert count == 1
    alike(core, even, x)


def test_behind_an_operator_of_onnxruntimes_own_types_are_known() -> None:
    """Without them its readers hang onnxruntime's quantiser: a split waits for a scale that nothing has."""
    core = model_of(
        """(float[n, 4] x) => (float[n, 3] y) {
            f = com.microsoft.FusedMatMul (x, w) m = MatMul (f, v)
            a, b = Split <axis: int = 1, num_outputs: int = 2> (m)
            y = MatMul (a, u) }""",
        {"w": (4, 6), "v": (6, 4), "u": (2, 3)},
        header=', "com.microsoft" : 1',
    )
    integer, record = quantize_onnx(core, target=X86, calibration=[{"x": rows(16, 4)}])
    assert record.nodes_quantized == 2
    expected = run_onnx(core, [{"x": rows(16, 4)}])
    assert np.abs(run_onnx(integer, [{"x": rows(16, 4)}]) - expected).max() < 0.1 * np.abs(expected).max()


def test_nodes_without_inputs_are_no_obstacle() -> None:
    core = model_of(
        """(float[n, 4] x) => (float[n, 3] y) {
            r = RandomNormal <shape: ints = [1, 4], seed: float = 1.0> () z = Sub (r, r) a = Add (x, z)
            p = MatMul (a, w) q = Relu (p) y = MatMul (q, v) }""",
        {"w": (4, 6), "v": (6, 3)},
    )
    integer, record = quantize_onnx(core, target=X86, calibration=[{"x": rows(16, 4)}])
    assert record.nodes_quantized == 2 and np.isfinite(run_onnx(integer, [{"x": rows(3, 4)}])).all()


def test_weights_that_are_listed_as_inputs_are_constants() -> None:
    core = model_of("(float[n, 4] x, float[4, 3] w) => (float[n, 3] y) { y = MatMul (x, w) }", {"w": (4, 3)})
    integer, _ = quantize_onnx(core, target=X86, calibration=[{"x": rows(16, 4)}])
    small, _ = to_half(core)
    for made in (integer, small):
        assert [value.name for value in made.graph.input] == ["x"]
        assert np.abs(answers(core, rows(5, 4))[0] - answers(made, rows(5, 4))[0]).max() < 0.1


def test_what_a_function_of_the_file_computes_is_quantised() -> None:
    core = model_of(
        "(float[n, 4] x) => (float[n, 3] y) { h = own.Layer (x, w) r = Relu (h) y = MatMul (r, v) }",
        {"w": (4, 6), "v": (6, 3)},
        header=', "own" : 1',
    )
    body = onnx.helper.make_node("MatMul", ["p", "q"], ["o"])
    imports = [onnx.helper.make_opsetid("", 18)]
    core.functions.append(onnx.helper.make_function("own", "Layer", ["p", "q"], ["o"], [body], imports))
    assert quantize_onnx(core, target=X86, calibration=[{"x": rows(16, 4)}])[1].nodes_quantized == 2


def test_noise_like_a_tensor_is_of_its_type() -> None:
    core = model_of(
        """(float[n, 4] x) => (float[n, 3] y) {
            p = MatMul (x, w) r = RandomNormalLike <seed: float = 1.0> (p) y = Add (p, r) }""",
        {"w": (4, 3)},
    )
    small, _ = to_half(core)
    assert answers(small, rows(8, 4))[0].shape == (8, 3)


def test_sixteen_bits_stop_at_sequences_and_at_graphs_of_integers() -> None:
    through = model_of(
        """(float[n, 4] x) => (float[n, 1] y) <int64 i = {0}> {
            p = MatMul (x, w) s = SplitToSequence <axis: int = -1> (p) q = SequenceAt (s, i) y = Mul (q, c) }""",
        {"w": (4, 3), "c": (1,)},
    )
    small, _ = to_half(through, samples=[{"x": rows(8, 4)}])
    np.testing.assert_allclose(answers(small, rows(8, 4))[0], answers(through, rows(8, 4))[0], rtol=0.02, atol=0.02)
    largest = "p = MatMul (x, w) y = ArgMax <axis: int = 1, keepdims: int = 0> (p)"
    positions = model_of(f"(float[n, 4] x) => (int64[n] y) {{ {largest} }}", {"w": (4, 3)})
    small, record = to_half(positions, samples=[{"x": rows(8, 4)}])
    assert [value.name for value in small.graph.output] == ["y"] and not record.warnings


@pytest.mark.parametrize("name", ["x86", "arm"])
def test_an_output_in_front_of_a_rectifier_keeps_its_negative_numbers(name: str) -> None:
    core = model_of(
        "(float[n, 4] x) => (float[n, 3] p, float[n, 2] y) { p = Gemm (x, w, c) h = Relu (p) y = Gemm (h, v) }",
        {"w": (4, 3), "c": (3,), "v": (3, 2)},
    )
    integer, _ = quantize_onnx(core, target=target(name, reduce_range=True), calibration=[{"x": rows(64, 4)}])
    expected, found = (answers(model, rows(64, 4))[0] for model in (core, integer))
    assert expected.min() < -1
    assert np.abs(found - expected).max() < 0.1 * np.abs(expected).max()


def test_a_branch_reads_what_a_rectifier_gives_and_not_what_it_reads() -> None:
    core = model_of(
        """(float[n, 4] x) => (float[n, 2] y, float[n, 3] z) <bool s = {1}> {
            p = Gemm (x, w, c) h = Relu (p) y = Gemm (h, v)
            z = If (s) <then_branch: graph = t () => (float[a, b] o) { o = Identity (h) },
                         else_branch: graph = e () => (float[a, b] o) { o = Neg (h) }> }""",
        {"w": (4, 3), "c": (3,), "v": (3, 2)},
    )
    integer, _ = quantize_onnx(core, target=target("x86", reduce_range=True), calibration=[{"x": rows(64, 4)}])
    assert answers(integer, rows(64, 4))[1].min() >= 0


@pytest.mark.parametrize("name", ["x86", "arm"])
def test_a_branch_finds_what_a_rectifier_reads(name: str) -> None:
    core = model_of(
        """(float[n, 4] x) => (float[n, 2] y, float[n, 3] z) <bool s = {1}> {
            p = Gemm (x, w, c) h = Relu (p) y = Gemm (h, v)
            z = If (s) <then_branch: graph = t () => (float[a, b] o) { o = Identity (p) },
                         else_branch: graph = e () => (float[a, b] o) { o = Neg (p) }> }""",
        {"w": (4, 3), "c": (3,), "v": (3, 2)},
    )
    integer, _ = quantize_onnx(core, target=target(name, reduce_range=True), calibration=[{"x": rows(64, 4)}])
    expected, found = (answers(model, rows(64, 4))[1] for model in (core, integer))
    assert expected.min() < -1
    assert np.abs(found - expected).max() < 0.1 * np.abs(expected).max()


def test_an_input_that_is_an_output_as_well_stays_both() -> None:
    core = model_of("(float[n, 4] x) => (float[n, 3] y, float[n, 4] x) { y = Gemm (x, w) }", {"w": (4, 3)})
    integer, _ = quantize_onnx(core, target=X86, calibration=[{"x": rows(64, 4)}])
    found = answers(integer, rows(64, 4))
    np.testing.assert_array_equal(found[1], rows(64, 4))
    assert found[0].shape == (64, 3)


def test_a_rectifier_that_is_zero_for_every_sample_stays_one() -> None:
    """Its range has no width, and a zero point that is not the lowest number would let negative ones pass."""
    core = model_of(
        """(float[n, 4, 1, 1] x) => (float[n, 3, 1, 1] y) <float[3] c = {-30, -30, -30}> {
            p = Conv (x, w, c) h = Relu (p) y = Conv (h, v) }""",
        {"w": (3, 4, 1, 1), "v": (3, 3, 1, 1)},
    )
    for name in ("x86", "arm"):
        integer, _ = quantize_onnx(core, target=target(name), calibration=[{"x": rows(64, 4, 1, 1)}])
        assert not answers(integer, rows(64, 4, 1, 1))[0].any()


def test_dynamic_products_behind_operators_of_onnxruntimes_own_are_integer() -> None:
    core = model_of(
        "(float[n, 4] x) => (float[n, 3] y) { f = com.microsoft.FusedMatMul (x, w) p = MatMul (f, v) y = Add (p, c) }",
        {"w": (4, 6), "v": (6, 3), "c": (3,)},
        header=', "com.microsoft" : 1',
    )
    small, record = to_dynamic(core, target=target("x86", reduce_range=True))
    expected, found = (answers(model, rows(64, 4))[0] for model in (core, small))
    assert record.nodes_quantized == 1
    assert np.abs(found - expected).max() < 0.1 * np.abs(expected).max()


@pytest.mark.parametrize("way", ["static", "dynamic", "blocks"])
def test_weights_that_are_listed_as_inputs_are_weights(way: str) -> None:
    core = model_of("(float[n, 32] x, float[32, 16] w) => (float[n, 16] y) { y = MatMul (x, w) }", {"w": (32, 16)})
    ways = {
        "static": lambda: quantize_onnx(core, target=X86, calibration=[{"x": rows(64, 32)}]),
        "dynamic": lambda: to_dynamic(core, target=X86),
        "blocks": lambda: to_blocks(core, block=16),
    }
    small, record = ways[way]()
    assert [value.name for value in small.graph.input] == ["x"]
    assert record.nodes_quantized == 1
