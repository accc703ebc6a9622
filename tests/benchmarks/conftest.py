from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from distill.benchmarks import BenchmarkSettings, Target, resolve_target

Save = Callable[..., Path]


@pytest.fixture
def save(tmp_path: Path) -> Save:
    """Write a graph as a small file that any onnxruntime reads."""

    def write(
        nodes: list[onnx.NodeProto],
        inputs: list[onnx.ValueInfoProto],
        outputs: list[onnx.ValueInfoProto],
        initializers: list[onnx.TensorProto] | None = None,
        name: str = "model.onnx",
        domains: tuple[str, ...] = ("",),
    ) -> Path:
        graph = helper.make_graph(nodes, "g", inputs, outputs, initializers or [])
        opsets = [helper.make_opsetid(domain, {"": 13, "ai.onnx.ml": 2}.get(domain, 1)) for domain in domains]
        onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=7), tmp_path / name)
        return tmp_path / name

    return write


def tensor(name: str, kind: int, shape: list[int | str | None] | None) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


@pytest.fixture
def conv(save: Save) -> Callable[..., Path]:
    """A chain of 3x3 convolutions: `x` float32 [n, 2, 6, 6]."""

    def make(layers: int = 1, name: str = "conv.onnx", batch: int | str = "n") -> Path:
        rng = np.random.default_rng(0)
        nodes, weights, previous = [], [], "x"
        for i in range(layers):
            # Small enough that a long chain does not overflow.
            weights.append(numpy_helper.from_array(0.2 * rng.standard_normal((2, 2, 3, 3)).astype(np.float32), f"w{i}"))
            nodes.append(helper.make_node("Conv", [previous, f"w{i}"], [f"c{i}"], pads=[1] * 4))
            previous = f"c{i}"
        shape = [batch, 2, 6, 6]
        inputs, outputs = [tensor("x", TensorProto.FLOAT, shape)], [tensor(previous, TensorProto.FLOAT, shape)]
        return save(nodes, inputs, outputs, weights, name)

    return make


@pytest.fixture
def here() -> Target:
    """This machine's own processor."""
    return resolve_target(None, "cpu")


@pytest.fixture
def quick() -> BenchmarkSettings:
    """Enough to run the whole protocol, too little to believe the figures."""
    return BenchmarkSettings(session_pairs=2, seconds_per_pair=0.05)
