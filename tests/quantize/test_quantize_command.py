"""The verb `quantize` as it is typed: what is written, what is told, what is warned of."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from quantize_zoo import normal
from small_graphs import CLASSES, FEATURES, GEMM, LOGITS, QUICK, floats, graph, linear, rows, save_external, typed

from distill.benchmarks import Report, bench, resolve_target
from distill.errors import UserError
from distill.export import run_onnx
from distill.quantize import to_blocks, to_dynamic
from distill.single_stage.quantize_model import quantize_model

PLAIN = ("m.onnx", "--data", "rows.npz", "--out", "q.onnx")


@pytest.fixture
def files(tmp_path: Path, mlp: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give the current folder, which holds a network and rows with and without labels."""
    x = normal(300, 20)
    monkeypatch.chdir(tmp_path)
    onnx.save(mlp, "m.onnx")
    np.savez("rows.npz", x=x)
    np.savez("labelled.npz", x=x, labels=run_onnx(mlp, [{"x": x}]).argmax(1))
    return tmp_path


@pytest.fixture
def untimed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let nothing be timed, so that the smallest that keeps the budget ships."""
    monkeypatch.setattr("distill.single_stage.quantize_model.why_unmeasurable", lambda _: "not here")


def warned(capsys: pytest.CaptureFixture[str]) -> str:
    """Return what was told, on one line."""
    return " ".join(capsys.readouterr().out.split())


def test_the_fastest_within_the_budget_is_written_and_told(files: Path, capsys: Any) -> None:
    words = ("m.onnx", "--data", "labelled.npz", "--out", "q.onnx", "--record", "q.json", *QUICK)
    assert typed(*words, "--max-drop", "0.05") == 0
    said = capsys.readouterr().out
    assert all(word in said for word in ("float32", "int8", "dynamic int8", "ships", "wrote q.onnx"))
    assert "candidate-" not in said
    written = json.loads(Path("q.json").read_text())
    assert written["chosen"] in [one["name"] for one in written["candidates"]]
    assert all(one["ratio"]["low"] > 0 for one in written["candidates"] if one["within"])
    feed = {"x": normal(5, 20)}
    close = run_onnx(onnx.load("q.onnx"), [feed]) - run_onnx(onnx.load("m.onnx"), [feed])
    assert np.abs(close).max() < 0.1


def test_a_budget_that_nothing_keeps_ends_with_one_and_writes_no_model(files: Path, capsys: Any) -> None:
    # Rows on which the float network is least certain.
    x = normal(300, 20)
    top = np.sort(run_onnx(onnx.load("m.onnx"), [{"x": x}]), axis=1)
    np.savez("hard.npz", x=x[np.argsort(top[:, -1] - top[:, -2])[:40]])
    Path("q.onnx").write_text("as it was")
    words = ("m.onnx", "--data", "hard.npz", "--out", "q.onnx", "--record", "q.json", *QUICK)
    assert typed(*words, "--max-drop", "0", "--precision", "int4") == 1
    assert Path("q.onnx").read_text() == "as it was"
    assert "no other precision keeps the budget" in capsys.readouterr().out
    assert json.loads(Path("q.json").read_text())["chosen"] == "float32"


def test_for_a_target_that_is_not_here_the_smallest_is_chosen(files: Path, capsys: Any) -> None:
    assert typed(*PLAIN, "--max-drop", "0.1", "--target", "tensorrt") == 0
    assert "nothing was timed" in capsys.readouterr().out


def test_a_quantised_file_is_refused(files: Path, capsys: Any) -> None:
    onnx.save(to_dynamic(onnx.load("m.onnx"), target=resolve_target("x86"))[0], "small.onnx")
    assert typed("small.onnx", *PLAIN[1:]) == 2
    assert "quantised already" in capsys.readouterr().err


@pytest.mark.usefixtures("untimed")
@pytest.mark.parametrize(("data", "lowest"), [("labelled.npz", -1.0), ("rows.npz", 0.0)])
def test_each_drop_has_its_interval(data: str, lowest: float, files: Path, capsys: Any) -> None:
    words = ("m.onnx", "--data", data, "--out", "q.onnx", "--record", "q.json", "--max-drop", "0.02")
    assert typed(*words) == 0
    said = warned(capsys)
    written = json.loads(Path("q.json").read_text())
    plain, *others = written["candidates"]
    assert plain["interval"] is None
    for one in [*others, *written["attempts"]]:
        low, high = one["interval"]
        assert lowest <= low <= one["drop"] <= high
        assert high - low > 0.01  # 150 rows are few
    first = others[0]
    assert f"{100 * first['drop']:.2f} pts" in said
    assert f"{100 * first['interval'][1]:.2f}]" in said


@pytest.mark.usefixtures("untimed")
@pytest.mark.parametrize(("budget", "warns"), [("0.02", True), ("0.2", False)])
def test_too_few_rows_to_tell_are_warned_of(budget: str, warns: bool, files: Path, capsys: Any) -> None:
    assert typed(*PLAIN, "--max-drop", budget) == 0
    said = warned(capsys)
    assert ("150 rows cannot tell whether the budget of 2 points holds" in said) is warns
    assert ("give more rows" in said) is warns


@pytest.mark.usefixtures("untimed")
@pytest.mark.parametrize("precision", ["int8", "dynamic"])
def test_weights_that_overflow_without_vnni_are_warned_of_and_the_option_mends_it(
    precision: str, files: Path, capsys: Any
) -> None:
    words = (*PLAIN, "--max-drop", "0.2", "--target", "x86", "--precision", precision, "--record", "q.json")
    assert typed(*words, "--full-range") == 0
    said = warned(capsys)
    assert "can overflow 16 bits on x86 processors without VNNI" in said
    assert "--reduce-range" in said
    assert {entry.key: entry.value for entry in onnx.load("q.onnx").metadata_props}["isa"] == "vnni"
    assert typed(*words, "--reduce-range") == 0
    assert "VNNI" not in warned(capsys)
    records = [one["record"] for one in json.loads(Path("q.json").read_text())["candidates"][1:]]
    assert all(one["reduce_range"] and not one["saturation_risk"] for one in records)
    assert "isa" not in {entry.key for entry in onnx.load("q.onnx").metadata_props}


@pytest.mark.usefixtures("untimed")
@pytest.mark.parametrize("budget", ["0.01", "1"])
@pytest.mark.parametrize(
    ("value", "says"), [(np.nan, "int4: its answers are NaN or infinite for 150 of 150 rows"), (0, "are all zero")]
)
def test_answers_that_are_none_do_not_ship_under_any_budget(
    value: float, says: str, budget: str, files: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(core: onnx.ModelProto) -> Any:
        model, record = to_blocks(core)
        for tensor in model.graph.initializer:
            if tensor.data_type == onnx.TensorProto.FLOAT:  # scales and biases
                tensor.CopyFrom(numpy_helper.from_array(np.full(tensor.dims, value, np.float32), tensor.name))
        return model, replace(record, precision="int4")

    monkeypatch.setattr("distill.quantize.choose_precision.to_blocks", broken)
    words = (*PLAIN, "--record", "q.json", "--max-drop", budget)
    assert typed(*words, "--precision", "int4") == 1
    said = warned(capsys)
    assert says in said
    assert "no answers" in said
    assert "q.onnx was not written: no other precision gives answers that can be used" in said
    assert not Path("q.onnx").exists()
    (_, lost) = json.loads(Path("q.json").read_text())["candidates"]
    assert (lost["drop"], lost["within"]) == (None, False)


def test_answers_that_are_none_on_the_target_alone_do_not_ship(
    files: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*words: Any) -> Report:
        found = bench(*words)
        return replace(found, models=(found.models[0], *(replace(one, finite=False) for one in found.models[1:])))

    monkeypatch.setattr("distill.single_stage.quantize_model.bench", broken)
    assert typed(*PLAIN, "--max-drop", "1", "--precision", "int8", *QUICK) == 1
    said = warned(capsys)
    assert "int8: its answers on CPUExecutionProvider are NaN or infinite, so it cannot ship" in said
    assert not Path("q.onnx").exists()


@pytest.mark.usefixtures("untimed")
@pytest.mark.parametrize(
    ("x", "says"),
    [
        (np.zeros((60, FEATURES), np.float32), "x is zero in every row"),
        (np.ones((60, FEATURES), np.float32), "all 60 rows are equal"),
        (np.ones((60, FEATURES), np.float32), "all 60 judged rows the same answer"),
        (np.abs(rows()) + 3, "all 60 judged rows the same answer (class 2), so a small drop proves nothing"),
        (rows(), "the rows that found the ranges also judge"),
    ],
)
def test_rows_that_prove_little_are_warned_of(x: Any, says: str, files: Path, capsys: Any) -> None:
    weights = {"w": np.eye(FEATURES, CLASSES, dtype=np.float32), "b": np.array([0, 0, 100], np.float32)}
    onnx.save(graph(weights=linear() if says.startswith("the rows") else weights), "small.onnx")
    np.savez("few.npz", x=x)
    assert typed("small.onnx", "--data", "few.npz", "--out", "q.onnx", "--max-drop", "0.5") == 0
    assert says in warned(capsys)


@pytest.mark.parametrize("timed", [True, False])
def test_subnormal_weights_of_the_float_file_are_warned_of(
    timed: bool, files: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not timed:
        monkeypatch.setattr("distill.single_stage.quantize_model.why_unmeasurable", lambda _: "not here")
    model = onnx.load("m.onnx")
    for tensor in model.graph.initializer:
        if len(tensor.dims) == 2:
            values = numpy_helper.to_array(tensor).copy()
            values[:, 0] = 1e-40
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    onnx.save(model, "m.onnx")
    assert typed(*PLAIN, "--max-drop", "0.5", "--precision", "int8", *QUICK) == 0
    said = warned(capsys)
    assert "float32: " in said
    assert "weights are subnormal (denormal) numbers" in said


@pytest.mark.usefixtures("untimed")
def test_only_the_first_of_several_outputs_is_judged_which_is_said(files: Path, capsys: Any) -> None:
    nodes = [GEMM, helper.make_node("Relu", ["logits"], ["positive"])]
    onnx.save(graph(nodes, outputs=[LOGITS, floats("positive", "batch", CLASSES)]), "two.onnx")
    np.savez("few.npz", x=rows())
    assert typed("two.onnx", "--data", "few.npz", "--out", "q.onnx", "--max-drop", "0.5") == 0
    assert "output logits is judged; --output NAME judges another: positive" in warned(capsys)
    assert [one.name for one in onnx.load("q.onnx").graph.output] == ["logits", "positive"]


def test_a_model_of_a_fixed_batch_is_timed_at_that_batch(files: Path, capsys: Any) -> None:
    fixed = graph(inputs=[floats("x", 4, FEATURES)], outputs=[floats("logits", 4, CLASSES)])
    onnx.save(fixed, "fixed.onnx")
    np.savez("few.npz", x=rows(61))
    assert typed("fixed.onnx", "--data", "few.npz", "--out", "q.onnx", "--max-drop", "0.5", *QUICK) == 0
    assert "nothing was timed" not in warned(capsys)


@pytest.mark.usefixtures("untimed")
@pytest.mark.parametrize("linked", [False, True])
def test_a_model_with_external_data_is_quantised_to_one_file(linked: bool, files: Path, capsys: Any) -> None:
    save_external(graph(), files / "out.onnx")
    if linked:  # as caches of models lay it out
        Path("blobs").mkdir()
        for name in ("out.onnx", "w.bin"):
            Path(name).rename(Path("blobs", name))
            Path(name).symlink_to(Path("blobs", name))
    np.savez("few.npz", x=rows())
    assert typed("out.onnx", "--data", "few.npz", "--out", "q.onnx", "--max-drop", "0.5") == 0
    feed = {"x": rows(5)}
    Path("w.bin").unlink()
    assert np.abs(run_onnx("q.onnx", [feed]) - run_onnx(graph(), [feed])).max() < 0.1


@pytest.mark.usefixtures("untimed")
def test_layers_are_measured_and_drawn_on_request(files: Path, capsys: Any) -> None:
    words = (*PLAIN, "--max-drop", "0.1", "--record", "q.json", "--plot", "p.svg")
    assert typed(*words) == 0
    assert "p.svg was not written: nothing called for measuring layers one by one; --sensitivity does" in warned(capsys)
    assert not Path("p.svg").exists()
    assert json.loads(Path("q.json").read_text())["sensitivity"] == []
    assert typed(*words, "--sensitivity") == 0
    said = warned(capsys)
    assert "layers alone in int8" in said
    assert "wrote p.svg" in said
    layers = json.loads(Path("q.json").read_text())["sensitivity"]
    assert len(layers) == 3
    assert all(one["divergence"] >= 0 for one in layers)
    assert all(one["name"] in Path("p.svg").read_text() for one in layers)


@pytest.mark.usefixtures("untimed")
def test_a_model_without_layers_to_measure_is_quantised_all_the_same(files: Path, capsys: Any) -> None:
    half = graph([helper.make_node("Add", ["x", "b"], ["logits"])], outputs=[floats("logits", "batch", FEATURES)])
    half.graph.initializer[1].CopyFrom(numpy_helper.from_array(rows(1)[0], "b"))
    onnx.save(half, "sum.onnx")
    np.savez("few.npz", x=rows())
    words = ("sum.onnx", "--data", "few.npz", "--out", "q.onnx", "--precision", "fp16", "--output", "numbers")
    assert typed(*words, "--sensitivity") == 0
    assert "--sensitivity: no layer could be measured: model: it has no Conv" in warned(capsys)


@pytest.mark.parametrize("drop", [float("nan"), -0.1, 1.5])
def test_a_budget_that_is_no_share_is_refused_from_python_too(drop: float, files: Path) -> None:
    with pytest.raises(UserError, match=r"--max-drop .*from 0 to 1"):
        quantize_model("m.onnx", data=Path("rows.npz"), out=Path("q.onnx"), max_drop=drop)
