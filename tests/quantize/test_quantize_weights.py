from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from quantize_zoo import executed, normal, saturates, target
from torch import nn

from distill.errors import UserError
from distill.export import export_onnx, parity, run_onnx, to_bytes
from distill.quantize.weights import to_blocks, to_dynamic

HERE = target("x86", reduce_range=saturates())
WAYS: dict[str, tuple[Callable[..., Any], str]] = {
    "dynamic int8": (partial(to_dynamic, target=HERE), "DynamicQuantizeMatMul"),
    "int8 weights": (lambda core, **rest: to_blocks(core, bits=8, **rest), "MatMulNBits"),
    "int4 weights": (lambda core, **rest: to_blocks(core, bits=4, **rest), "MatMulNBits"),
}


@pytest.fixture(scope="module")
def encoder() -> Any:
    """One layer of an encoder, with products of constant weights (four) and of two activations (two)."""
    torch.manual_seed(0)
    model = nn.TransformerEncoderLayer(64, 4, 128, batch_first=True, norm_first=True).eval()
    return export_onnx(model, args=(torch.randn(2, 12, 64),), input_names=["x"])


@pytest.mark.parametrize("way", WAYS)
def test_products_run_on_integer_weights_and_are_close(encoder: Any, way: str, tmp_path: Path) -> None:
    convert, kernel = WAYS[way]
    small, record = convert(encoder)
    feed = {"x": normal(3, 12, 64)}
    assert (record.precision, record.nodes_quantized, record.samples) == (way, 4, 0)
    ran = Counter(executed(small, feed, tmp_path))
    assert ran[kernel] + ran["MatMulIntegerToFloat"] == 4
    found = parity(run_onnx(encoder, [feed]), run_onnx(small, [feed]), atol=1, rtol=1)
    assert found.mean_abs < (0.05 if "4" in way else 0.02)
    assert record.file_bytes == len(to_bytes(small)) < (0.3 if "4" in way else 0.45) * len(to_bytes(encoder))


@pytest.mark.parametrize("way", WAYS)
def test_a_gemm_is_a_product_too_and_named_outputs_stay_float(mlp: Any, way: str, tmp_path: Path) -> None:
    convert, _ = WAYS[way]
    feed = {"x": normal(5, 20)}
    small, record = convert(mlp)
    assert record.nodes_quantized == 3
    np.testing.assert_allclose(run_onnx(small, [feed]), run_onnx(mlp, [feed]), atol=0.1)
    kept, record = convert(mlp, keep_float=[mlp.graph.output[0].name])
    assert (record.nodes_quantized, record.nodes_float) == (2, 1)
    assert "MatMul" in executed(kept, feed, tmp_path) or "Gemm" in executed(kept, feed, tmp_path)


@pytest.mark.parametrize("way", WAYS)
def test_what_has_no_products_or_is_quantised_already_is_refused(mlp: Any, separable: Any, way: str) -> None:
    convert, _ = WAYS[way]
    with pytest.raises(UserError, match="quantised already"):
        convert(to_dynamic(mlp, target=HERE)[0])
    kept = [node.output[0] for node in separable.graph.node]
    with pytest.raises(UserError, match="nothing to quantise"):
        convert(separable, keep_float=kept)


@pytest.mark.parametrize("way", WAYS)
def test_equal_calls_give_equal_bytes_and_leave_the_graph_alone(mlp: Any, way: str) -> None:
    convert, _ = WAYS[way]
    before = to_bytes(mlp)
    assert to_bytes(convert(mlp)[0]) == to_bytes(convert(mlp)[0])
    assert to_bytes(mlp) == before
