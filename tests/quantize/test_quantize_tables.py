from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from onnx import ModelProto, TensorProto, helper, numpy_helper
from torch import Tensor, nn

from distill.benchmarks.target import resolve_target
from distill.export import export_onnx, run_onnx, to_bytes
from distill.quantize import QuantizeSettings, quantize_onnx, to_blocks, to_dynamic
from distill.quantize.repair_loop import Loss, repair
from distill.quantize.weights import narrow_tables, round_rows, tables_of

WORDS, WIDTH = 2000, 32


class Bag(nn.Module):
    """Two lookups in one table, of words and of their neighbours, then two products."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(WORDS, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 64), nn.Linear(64, 4)

    def forward(self, ids: Tensor) -> Tensor:
        """Return logits [batch, 4] of ids [batch, length]."""
        pairs = self.embed(ids) + 0.5 * self.embed((ids + 1) % WORDS)
        answer: Tensor = self.down(torch.relu(self.up(pairs.mean(dim=1))))
        return answer


@pytest.fixture(scope="module")
def bag() -> ModelProto:
    torch.manual_seed(0)
    return export_onnx(Bag().eval(), args=(torch.zeros(2, 6, dtype=torch.int64),), input_names=["ids"])


@pytest.fixture(scope="module")
def feeds() -> list[dict[str, Any]]:
    return [{"ids": np.random.default_rng(0).integers(0, WORDS, (256, 6))}]


def static(core: ModelProto, feeds: list[dict[str, Any]], target: str = "x86") -> ModelProto:
    return quantize_onnx(core, target=resolve_target(target), calibration=feeds)[0]


WAYS: dict[str, Callable[..., ModelProto]] = {
    "static": static,
    "dynamic": lambda core, _: to_dynamic(core, target=resolve_target("x86"))[0],
    "int4": lambda core, _: to_blocks(core)[0],
}


def table_types(model: ModelProto) -> set[int]:
    return {one.data_type for one in model.graph.initializer if list(one.dims) == [WORDS, WIDTH]}


@pytest.mark.parametrize("way", WAYS)
def test_a_table_takes_a_quarter_and_answers_stay_close(way: str, bag: ModelProto, feeds: list[dict[str, Any]]) -> None:
    small = WAYS[way](bag, feeds)
    onnx.checker.check_model(small, full_check=True)
    assert table_types(small) == {TensorProto.INT8}
    assert len(to_bytes(small)) < 0.32 * len(to_bytes(bag))  # a quarter, the scales, and the graph itself
    one, other = run_onnx(bag, feeds), run_onnx(small, feeds)
    signal = 10 * np.log10((one**2).sum() / ((one - other) ** 2).sum())
    assert signal > (15 if way == "int4" else 30)


def test_lookups_return_the_rounded_rows(feeds: list[dict[str, Any]]) -> None:
    table = np.random.default_rng(1).normal(size=(WORDS, WIDTH)).astype(np.float32)
    model = lookup(table)
    assert narrow_tables(model.graph) == ["table"]
    rows, scales = round_rows(table)
    np.testing.assert_array_equal(run_onnx(model, feeds), (rows * scales)[feeds[0]["ids"]])


def lookup(table: np.ndarray, *, axis: int = 0, kind: int = TensorProto.INT64, readers: int = 1) -> ModelProto:
    nodes = [helper.make_node("Gather", ["table", "ids"], ["vectors"], axis=axis)]
    outputs = [helper.make_tensor_value_info("vectors", TensorProto.FLOAT, None)]
    if readers > 1:
        nodes.append(helper.make_node("MatMul", ["vectors", "table"], ["logits"]))
        outputs.append(helper.make_tensor_value_info("logits", TensorProto.FLOAT, None))
    ids = helper.make_tensor_value_info("ids", kind, ["n", "length"])
    graph = helper.make_graph(nodes, "g", [ids], outputs, [numpy_helper.from_array(table, "table")])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def test_ids_of_32_bits_and_negative_ones_work() -> None:
    table = np.random.default_rng(1).normal(size=(WORDS, WIDTH)).astype(np.float32)
    model = lookup(table, kind=TensorProto.INT32)
    narrow_tables(model.graph)
    ids = np.array([[0, -1, WORDS - 1]], np.int32)
    rows, scales = round_rows(table)
    np.testing.assert_array_equal(run_onnx(model, [{"ids": ids}]), (rows * scales)[ids])


def test_what_is_more_than_a_table_stays_float() -> None:
    square = np.ones((200, 200), np.float32)
    assert list(tables_of(lookup(square).graph)) == ["table"]
    assert not tables_of(lookup(square, readers=2).graph), "a product reads it, too"
    assert not tables_of(lookup(square, axis=1).graph), "its columns are looked up"
    assert not tables_of(lookup(square).graph, keep_float=["vectors"]), "it is to stay float"
    assert not tables_of(lookup(np.ones((16, 16), np.float32)).graph), "it is small"
    assert not tables_of(lookup(square.astype(np.float16)).graph), "it is small already"


def test_tensorrt_and_the_settings_can_leave_tables_in_float(bag: ModelProto, feeds: list[dict[str, Any]]) -> None:
    assert table_types(static(bag, feeds, "tensorrt")) == {TensorProto.FLOAT}
    kept = quantize_onnx(bag, QuantizeSettings(tables=False), target=resolve_target("x86"), calibration=feeds)[0]
    assert table_types(kept) == {TensorProto.FLOAT}


def test_a_budget_that_only_the_tables_miss_keeps_them_in_float(bag: ModelProto, feeds: list[dict[str, Any]]) -> None:
    def judge(model: ModelProto) -> Loss:
        return Loss(0.1 if TensorProto.INT8 in table_types(model) else 0.0, 0.0)

    done = repair(
        bag,
        QuantizeSettings(),
        target=resolve_target("x86"),
        calibration=feeds,
        rows=feeds,
        judge=judge,
        max_drop=0.01,
        timed=False,
    )
    assert done.attempts[-1].name.endswith("tables in float")
    assert not done.attempts[-1].floats and not done.sensitivity


@given(
    arrays.arrays(
        np.float32,
        arrays.array_shapes(min_dims=2, max_dims=2, max_side=12),
        elements=st.floats(-(2.0**100), 2.0**100, width=32),
    )
)
@settings(max_examples=60, deadline=None)
def test_no_value_moves_by_more_than_half_a_scale(table: np.ndarray) -> None:
    rows, scales = round_rows(table)
    moved = np.abs(rows.astype(np.float64) * scales - table.astype(np.float64))
    normal = np.abs(table).max(axis=1, keepdims=True) >= 127 * np.finfo(np.float32).tiny
    assert (moved <= np.where(normal, 0.5 * scales * (1 + 1e-6), 127 * np.finfo(np.float32).tiny)).all()
    assert (np.abs(rows.astype(int)) <= 127).all() and (scales > 0).all()
