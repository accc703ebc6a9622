"""The verb `quantize` on files as strangers have them: names like ours, several outputs, states, endless loops."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper
from small_graphs import CLASSES, FEATURES, GEMM, LOGITS, X, floats, graph, linear, rows, typed, weight

from distill.benchmarks.target import resolve_target
from distill.export import read_metadata, run_onnx
from distill.export.graph import rename_here
from distill.quantize import quantize_onnx, to_blocks, to_dynamic, to_half
from distill.quantize.choose_precision import FLOAT, Candidate, decide
from distill.quantize.repair_loop import Loss

PLAIN = ("m.onnx", "--data", "rows.npz", "--out", "q.onnx", "--max-drop", "1")
# What onnxruntime's quantisers and ours call what they add, of tensors that the network below has.
NAMES = (
    *("x_scale", "x_zero_point", "x_QuantizeLinear_Output", "x_quantized", "w1_quantized", "w1_scale", "b1_quantized"),
    *("a_output_quantized", "w1_Q4", "w1_scales", "a/product", "a/w", "calibrate/ReduceMin/0", "probe/0", "flag/0"),
    *("x/16", "lost/0", "t0", "t1_scale", "n0", "new/t1_scale", "y_QuantizeLinear_Input", "wide/a/exact"),
)


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give the current folder, which holds rows; nothing is timed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("distill.single_stage.quantize_model.why_unmeasurable", lambda _: "not here")
    np.savez("rows.npz", x=rows())


def two_layers() -> ModelProto:
    nodes = [
        helper.make_node("Gemm", ["x", "w1", "b1"], ["a"]),
        helper.make_node("Relu", ["a"], ["r"]),
        helper.make_node("Gemm", ["r", "w2", "b2"], ["y"]),
    ]
    weights = {"w1": weight(FEATURES, 16), "b1": weight(16), "w2": weight(16, CLASSES), "b2": weight(CLASSES)}
    return graph(nodes, [X], [floats("y", "batch", CLASSES)], weights)


@pytest.mark.parametrize("taken", NAMES)
def test_a_tensor_of_the_users_may_be_called_as_ours_are(taken: str) -> None:
    """Each tensor in turn takes the name, and each precision answers as where none is called so."""
    plain = two_layers()
    feeds = [{"x": rows()}]
    target = resolve_target("x86")
    for renamed in ("x", "r", "y", "w2"):
        model = two_layers()
        rename_here(model.graph, lambda name, old=renamed: taken if name == old else name)  # type: ignore[misc]
        mine = [{taken if renamed == "x" else "x": rows()}]
        made = [quantize_onnx(m, target=target, calibration=f)[0] for m, f in ((plain, feeds), (model, mine))]
        pairs = [made, [to_dynamic(m, target=target)[0] for m in (plain, model)]]
        pairs += [[to_blocks(m)[0] for m in (plain, model)]]
        pairs += [[to_half(m, samples=f)[0] for m, f in ((plain, feeds), (model, mine))]]
        for expected, actual in pairs:
            np.testing.assert_array_equal(run_onnx(actual, mine), run_onnx(expected, feeds))


def beside() -> ModelProto:
    """Put integers first, then scores, then what is twice the scores."""
    nodes = [
        GEMM,
        helper.make_node("ArgMax", ["logits"], ["label"], axis=1, keepdims=0),
        helper.make_node("Add", ["logits", "logits"], ["twice"]),
    ]
    label = helper.make_tensor_value_info("label", TensorProto.INT64, ["batch"])
    return graph(nodes, outputs=[label, LOGITS, floats("twice", "batch", CLASSES)])


def test_any_output_is_judged_and_all_are_kept_in_their_order(capsys: Any) -> None:
    onnx.save(beside(), "m.onnx")
    assert typed(*PLAIN) == 2
    assert "judge another by --output NAME, of logits, twice" in capsys.readouterr().err
    assert typed(*PLAIN, "--output", "none") == 2
    assert "no output of the model, which has label, logits, twice" in capsys.readouterr().err
    for word in ("logits", "twice=classes"):
        assert typed(*PLAIN, "--precision", "int8", "--output", word) == 0
        said = " ".join(capsys.readouterr().out.split())
        assert f"output {word.partition('=')[0]} is judged" in said
        assert "moves outputs that are not judged" in said
        assert [value.name for value in onnx.load("q.onnx").graph.output] == ["label", "logits", "twice"]


def test_a_state_of_one_row_stands_for_all_and_a_number_is_given_once(capsys: Any) -> None:
    nodes = [
        helper.make_node("Mul", ["x", "gain"], ["louder"]),
        helper.make_node("Add", ["louder", "state"], ["sum"]),
        helper.make_node("Gemm", ["sum", "w", "b"], ["logits"]),
    ]
    onnx.save(graph(nodes, [X, floats("gain"), floats("state", "batch", FEATURES)]), "m.onnx")
    np.savez("rows.npz", x=rows(), gain=np.float32(2), state=rows(1, seed=5))
    assert typed(*PLAIN, "--precision", "int8") == 0
    assert "state is one row, which was taken for all 60" in " ".join(capsys.readouterr().out.split())
    assert [value.name for value in onnx.load("q.onnx").graph.input] == ["x", "gain", "state"]


def test_a_loop_without_an_end_is_stopped(capsys: Any) -> None:
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["again"]), helper.make_node("Add", ["h", "h"], ["h2"])],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            floats("h", "batch", FEATURES),
        ],
        [helper.make_tensor_value_info("again", TensorProto.BOOL, []), floats("h2", "batch", FEATURES)],
    )
    loop = helper.make_node("Loop", ["", "yes", "x"], ["looped"], body=body)
    layer = helper.make_node("Gemm", ["looped", "w", "b"], ["logits"])
    onnx.save(graph([loop, layer], weights=linear() | {"yes": np.array(True)}), "m.onnx")
    assert typed(*PLAIN, "--timeout", "0.5") == 5
    assert "did not end within 0.5 s and was stopped; --timeout gives it longer" in capsys.readouterr().err


def test_an_operator_of_another_library_is_named(capsys: Any) -> None:
    foreign = helper.make_node("Swirl", ["x"], ["s"], domain="my.ops")
    model = graph([foreign, helper.make_node("Gemm", ["s", "w", "b"], ["logits"])])
    model.opset_import.append(helper.make_opsetid("my.ops", 1))
    onnx.save(model, "m.onnx")
    assert typed(*PLAIN) == 2
    assert "onnxruntime has no my.ops::Swirl" in capsys.readouterr().err


def test_an_old_opset_is_converted_and_it_is_said(capsys: Any) -> None:
    onnx.save(graph(opset=9), "m.onnx")
    assert typed(*PLAIN, "--precision", "int8") == 0
    assert "opset 9 was converted to 13" in " ".join(capsys.readouterr().out.split())
    assert onnx.load("q.onnx").opset_import[0].version == 13


def test_json_is_one_document_and_the_smallest_is_float32_where_nothing_is_smaller(capsys: Any) -> None:
    onnx.save(graph(), "m.onnx")
    assert typed(*PLAIN, "--json", "-q", "--objective", "size") == 0
    said, err = capsys.readouterr()
    document = json.loads(said)
    assert err == ""
    assert (document["chosen"], document["written"]) == (FLOAT, "q.onnx")
    assert read_metadata("q.onnx")["precision"] == FLOAT
    assert typed(*PLAIN, "--objective", "size") == 0
    assert "wrote q.onnx, which is the float32 model" in " ".join(capsys.readouterr().out.split())
    assert typed(*PLAIN, "--objective", "none") == 2
    assert "--objective none: must be one of latency, size" in capsys.readouterr().err


def test_the_smallest_within_the_budget_is_chosen_for_size() -> None:
    sizes = {FLOAT: (0.0, 400), "int8": (0.0, 100), "int4": (0.0, 60), "tiny": (0.5, 10)}
    candidates = [
        Candidate(name, ModelProto(), None, Loss(drop, drop), drop <= 0.01, size)
        for name, (drop, size) in sizes.items()
    ]
    assert decide(candidates, 0.01, "size")[0].name == "int4"
