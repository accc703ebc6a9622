from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import ModelProto, TensorProto
from quantize_graphs import graph_of, node, operators
from quantize_zoo import normal
from torch import nn
from torch.nn import functional

from distill.errors import UserError
from distill.export import export_onnx, parity, run_onnx
from distill.quantize import to_half
from distill.quantize.half import emulate
from distill.quantize.half.magnitudes import HEADROOM, magnitudes
from distill.quantize.half.operands import element_types

LARGEST, SMALLEST = 65504, 2.0**-14


def kept(record) -> dict[str, str]:
    return {one.output: one.why for one in record.islands}


def agrees(core: ModelProto, half: ModelProto, x: np.ndarray, *, share: float = 0.01) -> bool:
    """Whether a GPU's fp16 answers would lie within a share of the largest float32 one."""
    feed = {"x": x}
    return parity(run_onnx(core, [feed]), run_onnx(emulate(half), [feed]), atol=1e-7, rtol=share).ok


def scaled(k: float) -> ModelProto:
    """Values of about k between two products, from constants that fp16 holds."""
    nodes = [
        node("MatMul", "x w", "a"),
        node("MatMul", "a up", "a2"),
        node("MatMul", "a2 up", "b"),
        node("Neg", "b", "c"),
        node("MatMul", "c down", "d2"),
        node("MatMul", "d2 down", "d"),
        node("MatMul", "d w", "y"),
    ]
    eye = np.eye(4, dtype=np.float32)
    return graph_of(nodes, {"w": normal(4, 4), "up": eye * k**0.5, "down": eye * k**-0.5})


@given(rows=st.lists(st.integers(1, 5), min_size=1, max_size=4), seed=st.integers(0, 99))
@settings(max_examples=15, deadline=None)
def test_magnitudes_are_those_of_all_samples_in_any_batches(rows: Sequence[int], seed: int):
    nodes = [node("Mul", "x k", "a"), node("Reciprocal", "a", "b"), node("ReduceMean", "a axes", "y", keepdims=1)]
    core = graph_of(nodes, {"k": -30.0, "axes": np.asarray([1], np.int64)}, y=("n", 1))
    x = normal(sum(rows), 4, seed=seed)
    x[0, 0] = 0
    batches = [{"x": part} for part in np.split(x, np.cumsum(rows)[:-1])]
    found = magnitudes(core, element_types(core), batches)
    a = np.abs(np.float32(-30) * x)
    assert found["a"].largest == a.max() and found["a"].smallest == a[a > 0].min()
    np.testing.assert_allclose(found["y"].summed, a.astype(np.float64).sum(axis=1).max(), rtol=1e-6)
    assert found["x"].largest == np.abs(x).max() and np.isinf(found["x"].smallest)
    assert np.isfinite(found["b"].largest)  # 1 / 0 does not count


@pytest.mark.parametrize("opset", [13, 18])
def test_probes_are_written_as_each_opset_has_them(opset):
    mean = node("ReduceMean", "x", "y", axes=[1]) if opset < 18 else node("ReduceMean", "x axes", "y")
    core = graph_of([mean], {"axes": np.asarray([1], np.int64)}, y=("n", 1), opset=opset)
    found = magnitudes(core, element_types(core), [{"x": np.full((2, 4), -8, np.float32)}])
    assert (found["y"].largest, found["y"].summed) == (8, 32)


def test_what_overflows_on_the_samples_stays_float32_and_the_record_says_so():
    core, x = scaled(1e6), normal(64, 4)
    blind, plain = to_half(core)
    assert not agrees(core, blind, x) and plain.islands == () and plain.samples == 0
    half, record = to_half(core, samples=[{"x": x}])
    onnx.checker.check_model(half, full_check=True)
    assert agrees(core, half, x)
    assert set(kept(record)) == {"b", "c", "d2"} and all("values up to" in why for why in kept(record).values())
    assert (record.nodes_quantized, record.nodes_float, record.float_operators) == (4, 2, {"MatMul": 2})
    assert record.samples == 64 and record.file_bytes == half.ByteSize()
    assert "2 MatMul, 1 Neg" in record.warnings[0] and "'b' has values up to" in record.warnings[0]
    assert asdict(record)["islands"][0]["output"] == "b"
    assert operators(half).count("Cast") == 4  # in, out, and on either side of the island


@pytest.mark.parametrize(("share", "stays"), [(1.05, True), (0.95, False)])
@pytest.mark.parametrize("end", [LARGEST / HEADROOM, SMALLEST * HEADROOM])
def test_a_margin_is_left_at_both_ends_of_the_range(end, share, stays):
    largest = end * share if end > 1 else end / share
    eye = np.eye(4, dtype=np.float32)
    core = graph_of([node("MatMul", "x eye", "a"), node("Neg", "a", "b"), node("MatMul", "b eye", "y")], {"eye": eye})
    x = np.full((2, 4), largest, np.float32)
    assert bool(to_half(core, samples=[{"x": x}])[1].islands) is stays


def test_samples_are_read_once_in_any_batches_and_no_further_than_512():
    core, read = scaled(1e6), []

    def stream():
        while True:
            read.append(1)
            yield {"x": normal(50, 4, seed=len(read))}

    half, record = to_half(core, samples=stream())
    assert record.samples == 512 and len(read) == 11
    parts = [{"x": part} for number in range(1, 12) for part in np.split(normal(50, 4, seed=number), 5)]
    assert to_half(core, samples=iter(parts))[1].islands == record.islands
    assert half.SerializeToString() == to_half(core, samples=stream())[0].SerializeToString()


@pytest.mark.parametrize(
    ("samples", "says"),
    [
        ([{"z": normal(4, 4)}], r"inputs \['z'\]"),
        ([{"x": normal(4, 3)}], "refuses a batch"),
        ([{"x": np.full((4, 4), np.nan, np.float32)}], "NaN or infinite"),
    ],
)
def test_samples_that_do_not_fit_are_refused(samples, says):
    with pytest.raises(UserError, match=says):
        to_half(scaled(1.0), samples=samples)


def test_activations_that_all_lie_below_the_range_stay_float32():
    core, x = scaled(3e-8), normal(64, 4)
    blind, (half, record) = to_half(core)[0], to_half(core, samples=[{"x": x}])
    assert not agrees(core, blind, x) and agrees(core, half, x)
    assert kept(record)["c"].startswith("no value above")


def test_masks_of_minus_infinity_need_no_island_and_those_of_the_smallest_float_do():
    def attention(mask: float) -> ModelProto:
        nodes = [
            node("MatMul", "x w", "q"),
            node("Transpose", "q", "k", perm=[1, 0]),
            node("MatMul", "q k", "scores"),
            node("Add", "scores mask", "masked"),
            node("Softmax", "masked", "shares"),
            node("MatMul", "shares q", "y"),
        ]
        barred = np.triu(np.full((6, 6), mask, np.float32), 1)
        return graph_of(nodes, {"w": normal(4, 4), "mask": np.where(barred < 0, barred, 0)}, x=(6, 4))

    x = normal(6, 4)
    for mask, warnings in ((-np.inf, 0), (np.finfo(np.float32).min, 1)):
        half, record = to_half(attention(mask), samples=[{"x": x}])
        assert agrees(attention(mask), half, x) and len(record.warnings) == warnings, record.warnings
        assert ("masked" in kept(record)) is (warnings == 1)


class RMSNorm(nn.Module):
    def forward(self, x):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)


class Squares(nn.Module):
    def forward(self, x):
        centred = x - x.mean(-1, keepdim=True)
        return centred / torch.sqrt((centred * centred).mean(-1, keepdim=True) + 1e-5)


class Unit(nn.Module):
    def forward(self, x):
        return functional.normalize(x)


@pytest.mark.parametrize("norm", [RMSNorm(), Squares(), Unit(), nn.LayerNorm(16)])
def test_norms_are_islands_however_they_are_written(norm):
    """Squares of 3000 leave the range, and rows of zeros divide by an eps that fp16 does not have."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 16, bias=False), norm, nn.Linear(16, 4))
    core = export_onnx(model, args=(torch.randn(2, 4),), input_names=["x"])
    half, record = to_half(core)
    x = 3000 * normal(64, 4)
    x[5] = 0
    assert agrees(core, half, x)
    assert record.nodes_quantized == 2 and record.nodes_float == 0 and record.warnings == ()
    assert operators(half).count("Cast") == 4  # not one inside the norm


def test_sizes_are_computed_in_float32():
    """fp16 holds no odd number above 2048: a resize to 2049 pixels would give 2048."""
    nodes = [
        node("Shape", "x", "lengths"),
        node("Cast", "lengths", "floats", to=TensorProto.FLOAT),
        node("Mul", "floats scale", "scaled"),
        node("Cast", "scaled", "target", to=TensorProto.INT64),
        node("MatMul", "x w", "a"),
        node("Expand", "a target", "y"),
    ]
    core = graph_of(nodes, {"scale": np.asarray([1, 2049], np.float32), "w": normal(1, 1)}, x=("n", 1), y=("n", "m"))
    half, record = to_half(core)
    assert run_onnx(emulate(half), [{"x": normal(2, 1)}]).shape == (2, 2049)
    assert all(kept(record)[name] != "lies between nodes that stay float32" for name in ("floats", "scaled", "target"))


def test_integers_that_fp16_leaves_out_stay_float32():
    nodes = [
        node("Cast", "x", "count", to=TensorProto.INT64),
        node("Cast", "count", "position", to=TensorProto.FLOAT),
        node("Sub", "position start", "y"),
    ]
    core = graph_of(nodes, {"start": 4000.0})
    x = np.asarray([[4000, 4001, 4002, 4003]], np.float32)
    half, record = to_half(core, samples=[{"x": x}])
    assert kept(record)["position"] == kept(record)["y"] == "integers up to 4003"
    np.testing.assert_array_equal(run_onnx(emulate(half), [{"x": x}]), [[0, 1, 2, 3]])


def test_nodes_that_are_asked_for_stay_float32(mlp):
    gemm = next(one.output[0] for one in mlp.graph.node if one.op_type == "Gemm")
    half, record = to_half(mlp, keep_float=[gemm])
    assert kept(record)[gemm] == "asked for" and record.float_operators == {"Gemm": 1}
    assert sum(tensor.data_type == TensorProto.FLOAT for tensor in half.graph.initializer) >= 1


def test_cheap_nodes_between_islands_join_them_and_tables_do_not():
    nodes = [
        node("Cast", "x", "ids", to=TensorProto.INT64),
        node("Gather", "table ids", "words"),
        node("LayerNormalization", "words gain", "normed"),
        node("Transpose", "normed", "turned", perm=[0, 2, 1]),
        node("Softmax", "turned", "y", axis=1),
    ]
    core = graph_of(nodes, {"table": normal(9, 8), "gain": np.ones(8, np.float32)}, x=("n", 3), y=("n", 8, 3))
    half, record = to_half(core)
    assert kept(record)["turned"] == "lies between nodes that stay float32" and "words" not in kept(record)
    tables = [tensor for tensor in half.graph.initializer if len(tensor.dims) == 2]
    assert [tensor.data_type for tensor in tables] == [TensorProto.FLOAT16]
    assert operators(half).count("Cast") == 2  # to the indices, and behind the table
