"""The checks that every repair of static int8 must pass."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import torch
from onnx import ModelProto
from torch import nn

from distill.benchmarks import Target
from distill.export import export_onnx, run_onnx, to_bytes
from distill.quantize import QuantizeSettings, quantize_onnx
from distill.quantize.prepare import prepare
from distill.quantize.repairs import REPAIRS, name_of
from distill.types import Feed

X86 = Target("x86", "CPUExecutionProvider", "int8", "u8s8", reduce_range=True)
PLAIN = QuantizeSettings()


class Reader(nn.Module):
    """Has something for every repair: a table, a normalisation, products, and convolutions with a rectifier between."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.norm, self.up = nn.Embedding(1200, 16), nn.LayerNorm(16), nn.Linear(16, 24)
        self.first, self.second, self.head = nn.Conv1d(24, 16, 3, 1, 1), nn.Conv1d(16, 16, 1), nn.Linear(16, 4)

    def forward(self, ids):
        x = self.up(self.norm(self.table(ids))).transpose(1, 2)
        return self.head(self.second(torch.relu(self.first(x))).mean(2))


@pytest.fixture(scope="module")
def core() -> ModelProto:
    torch.manual_seed(0)
    return export_onnx(Reader(), args=(torch.zeros(2, 6, dtype=torch.int64),), input_names=["ids"])


@pytest.fixture(scope="module")
def feeds() -> list[Feed]:
    ids = np.random.default_rng(0).integers(0, 1200, (4, 32, 6))
    return [{"ids": batch} for batch in ids]


def variants(name: str, core: ModelProto) -> list[QuantizeSettings]:
    return [replace(PLAIN, **changes) for changes in REPAIRS[name].variants(PLAIN, core.graph)]  # type: ignore[arg-type]


@pytest.mark.parametrize("name", REPAIRS)
def test_it_is_named_by_the_setting_that_it_changes(name: str, core: ModelProto) -> None:
    assert name in {field.name for field in fields(QuantizeSettings)}
    settings = variants(name, core)
    assert settings, "the graph has something for every repair"
    assert all(getattr(one, name) != getattr(PLAIN, name) for one in settings)
    labels = [REPAIRS[name].label(one) for one in settings]
    assert REPAIRS[name].label(PLAIN) == ""
    assert all(labels)
    assert all(label in name_of(one) for label, one in zip(labels, settings, strict=True))


@pytest.mark.parametrize("name", [name for name, repair in REPAIRS.items() if repair.rewrite])
def test_its_rewrite_leaves_the_function_and_the_graph_that_is_given(
    name: str, core: ModelProto, feeds: list[Feed]
) -> None:
    rewrite: Any = REPAIRS[name].rewrite
    model = prepare(core, fold_norms=True)
    before, expected = to_bytes(model), run_onnx(model, feeds)
    assert to_bytes(rewrite(model, PLAIN, feeds, None)) == before, "nothing was asked for"
    for settings in variants(name, core):
        rewritten = rewrite(model, settings, feeds, None)
        assert to_bytes(rewritten) != before
        np.testing.assert_allclose(run_onnx(rewritten, feeds), expected, rtol=1e-3, atol=1e-4)
    assert to_bytes(model) == before


@pytest.mark.parametrize("name", REPAIRS)
def test_an_int8_graph_with_it_answers_nearly_as_float_and_has_equal_bytes_again(
    name: str, core: ModelProto, feeds: list[Feed]
) -> None:
    expected = run_onnx(core, feeds)
    for settings in variants(name, core)[:2]:
        small, again = (quantize_onnx(core, settings, target=X86, calibration=feeds)[0] for _ in range(2))
        assert to_bytes(small) == to_bytes(again)
        error = np.square(run_onnx(small, feeds) - expected).sum() / np.square(expected).sum()
        assert error < 0.05, settings


def test_no_two_repairs_share_a_rung() -> None:
    assert sorted(repair.rung for repair in REPAIRS.values()) == list(range(1, len(REPAIRS) + 1))
