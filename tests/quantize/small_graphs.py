"""Graphs of a few nodes, written by hand, and the verb `quantize` as it is typed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from distill.cli import main

QUICK = ("--pairs", "2", "--seconds", "0.05")
FEATURES, CLASSES = 6, 3
Quantize = Callable[..., int]


def typed(*words: object) -> int:
    """Run the verb in this process and return its exit code."""
    with pytest.raises(SystemExit) as ended:
        main(["quantize", *map(str, words)])
    assert isinstance(ended.value.code, int)
    return ended.value.code


def floats(name: str, *shape: int | str) -> ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, list(shape))


def weight(*shape: int, scale: float = 1.0, seed: int = 0) -> np.ndarray[Any, Any]:
    return (scale * np.random.default_rng(seed).normal(size=shape)).astype(np.float32)


def linear(scale: float = 1.0) -> dict[str, np.ndarray[Any, Any]]:
    return {"w": weight(FEATURES, CLASSES, scale=scale), "b": weight(CLASSES, seed=1)}


GEMM = helper.make_node("Gemm", ["x", "w", "b"], ["logits"])
X, LOGITS = floats("x", "batch", FEATURES), floats("logits", "batch", CLASSES)


def graph(
    nodes: Sequence[NodeProto] = (GEMM,),
    inputs: Sequence[ValueInfoProto] = (X,),
    outputs: Sequence[ValueInfoProto] = (LOGITS,),
    weights: dict[str, np.ndarray[Any, Any]] | None = None,
    opset: int = 17,
) -> ModelProto:
    """Make a graph; one linear layer where nothing else is said."""
    stored = [numpy_helper.from_array(value, name) for name, value in (weights or linear()).items()]
    body = helper.make_graph(list(nodes), "g", list(inputs), list(outputs), stored)
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(body, opset_imports=imports, ir_version=8)


def save_external(model: ModelProto, path: Path, location: str = "w.bin") -> None:
    """Write a model whose weights lie in a file beside it."""
    onnx.save(
        model, str(path), save_as_external_data=True, all_tensors_to_one_file=True, location=location, size_threshold=0
    )


def rows(count: int = 60, features: int = FEATURES, seed: int = 3) -> np.ndarray[Any, Any]:
    return weight(count, features, seed=seed)
