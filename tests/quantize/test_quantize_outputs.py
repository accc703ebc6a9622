"""The verb `quantize` on files whose outputs are no logits [rows, classes]: judged by what they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper
from small_graphs import typed

from distill.export import run_onnx

WIDTH = 64


def detector(shift: float = 0.0) -> ModelProto:
    """One probability a row behind three layers."""
    rng = np.random.default_rng(0)
    sizes = [(WIDTH, WIDTH), (WIDTH, WIDTH), (WIDTH, 1)]
    weights = {f"w{i}": (rng.normal(size=s) / np.sqrt(s[0])).astype(np.float32) for i, s in enumerate(sizes)}
    weights["shift"] = np.float32(shift)
    nodes = [
        helper.make_node("MatMul", ["x", "w0"], ["a"]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("MatMul", ["b", "w1"], ["c"]),
        helper.make_node("Relu", ["c"], ["d"]),
        helper.make_node("MatMul", ["d", "w2"], ["e"]),
        helper.make_node("Sub", ["e", "shift"], ["z"]),
        helper.make_node("Sigmoid", ["z"], ["p"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", WIDTH])],
        [helper.make_tensor_value_info("p", TensorProto.FLOAT, ["n", 1])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize("labelled", [True, False])
def test_a_detector_that_int8_breaks_does_not_ship_as_unchanged(
    labelled: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """A few loud rows stretch the ranges until the others are lost in one step."""
    monkeypatch.chdir(tmp_path)
    x = np.random.default_rng(1).normal(size=(400, WIDTH)).astype(np.float32)
    quiet = run_onnx(detector(), [{"x": x}])[:, 0]
    model = detector(float(np.median(np.log(quiet / (1 - quiet)))))
    x[:20] *= 60
    right = run_onnx(model, [{"x": x}])[:, 0] > 0.5
    onnx.save(model, "wake.onnx")
    np.savez("wake.npz", x=x, **({"labels": right.astype(np.int64)} if labelled else {}))
    words = ("wake.onnx", "--data", "wake.npz", "--max-drop", 0, "--target", "arm", "--out", "q.onnx", "--record", "r")
    code = typed(*words)
    said = " ".join(capsys.readouterr().out.split())
    assert "judged as one yes or no a row (probabilities, above 0.5 is yes)" in said
    attempts = json.loads(Path("r").read_text())["attempts"]
    assert attempts[0]["drop"] > 0.1  # it was 0 by a maximum over one column
    if code == 0:
        after = run_onnx(onnx.load("q.onnx"), [{"x": x}])[:, 0] > 0.5
        assert (after == right).mean() > 0.99
    else:
        assert (code, Path("q.onnx").exists()) == (1, False)


def test_the_drop_of_scores_by_position_is_that_of_the_classes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    side = 12
    weights = {"w0": rng.normal(size=(16, 64)) / 4, "w1": rng.normal(size=(64, side)) / 8}
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "w0"], ["a"]),
            helper.make_node("Relu", ["a"], ["b"]),
            helper.make_node("MatMul", ["b", "w1"], ["y"]),
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", side, 16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", side, side])],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), "tags.onnx")
    x = rng.normal(size=(60, side, 16)).astype(np.float32)
    x[:, :, 0] *= 40
    tags = run_onnx(onnx.load("tags.onnx"), [{"x": x}]).argmax(2)
    np.savez("tags.npz", x=x, labels=tags)
    np.savez("bare.npz", x=x)
    words = ("--precision", "int8", "--target", "arm", "--max-drop", 1, "--out", "q.onnx", "--record", "r.json")
    assert typed("tags.onnx", "--data", "tags.npz", *words) == 0
    assert "judged as classes along axis 2, by accuracy" in " ".join(capsys.readouterr().out.split())
    changed = (run_onnx(onnx.load("q.onnx"), [{"x": x}]).argmax(2) != tags).mean()
    drops = {one["name"]: one["drop"] for one in json.loads(Path("r.json").read_text())["candidates"]}
    assert changed > 0.01
    assert min(abs(drop - changed) for drop in drops.values()) < 1e-6
    assert typed("tags.onnx", "--data", "bare.npz", *words) == 2
    assert "--output classes with --axis N" in capsys.readouterr().err
    assert typed("tags.onnx", "--data", "bare.npz", *words, "--axis", 2) == 0
    assert typed("tags.onnx", "--data", "bare.npz", *words, "--output", "classes") == 0
