"""The verb `quantize` as it is typed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from quantize_zoo import normal

from distill.cli import main
from distill.export import run_onnx

Quantize = Callable[..., int]
QUICK = ("--pairs", "2", "--seconds", "0.05")


@pytest.fixture
def quantize() -> Quantize:
    def call(*words: object) -> int:
        with pytest.raises(SystemExit) as ended:
            main(["quantize", *map(str, words)])
        assert isinstance(ended.value.code, int)
        return ended.value.code

    return call


@pytest.fixture
def files(tmp_path: Path, mlp: onnx.ModelProto) -> Path:
    x = normal(300, 20)
    onnx.save(mlp, tmp_path / "m.onnx")
    np.savez(tmp_path / "rows.npz", x=x)
    np.savez(tmp_path / "labelled.npz", x=x, labels=run_onnx(mlp, [{"x": x}]).argmax(1))
    return tmp_path


def test_the_fastest_within_the_budget_is_written_and_told(quantize: Quantize, files: Path, capsys: Any) -> None:
    out, record = files / "q.onnx", files / "q.json"
    words = (files / "m.onnx", "--data", files / "labelled.npz", "--out", out, "--record", record, *QUICK)
    assert quantize(*words, "--max-drop", "0.05") == 0
    said = capsys.readouterr().out
    assert all(word in said for word in ("float32", "int8", "dynamic int8", "ships", f"wrote {out}"))
    written = json.loads(record.read_text())
    assert written["chosen"] in [one["name"] for one in written["candidates"]]
    assert all(one["ratio"]["low"] > 0 for one in written["candidates"] if one["within"])
    feed = {"x": normal(5, 20)}
    close = run_onnx(onnx.load(out), [feed]) - run_onnx(onnx.load(files / "m.onnx"), [feed])
    assert np.abs(close).max() < 0.1


def test_a_budget_that_nothing_keeps_ends_with_one_and_writes_nothing(
    quantize: Quantize, files: Path, capsys: Any
) -> None:
    # Labels that only the float network's own least certain answers agree with.
    x = normal(300, 20)
    logits = run_onnx(onnx.load(files / "m.onnx"), [{"x": x}])
    top = np.sort(logits, axis=1)
    close = np.argsort(top[:, -1] - top[:, -2])[:40]
    np.savez(files / "hard.npz", x=x[close])
    (files / "q.onnx").write_text("as it was")
    words = (files / "m.onnx", "--data", files / "hard.npz", "--out", files / "q.onnx", *QUICK)
    assert quantize(*words, "--max-drop", "0", "--precision", "int4") == 1
    assert (files / "q.onnx").read_text() == "as it was"
    assert "no other precision keeps the budget" in capsys.readouterr().out


def test_for_a_target_that_is_not_here_the_smallest_is_chosen(quantize: Quantize, files: Path, capsys: Any) -> None:
    words = (files / "m.onnx", "--data", files / "rows.npz", "--out", files / "q.onnx", "--max-drop", "0.1")
    assert quantize(*words, "--target", "tensorrt") == 0
    said = capsys.readouterr().out
    assert "nothing was timed" in said


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["none.onnx", "--data", "rows.npz", "--out", "q.onnx"], "none.onnx: does not exist"),
        (["m.onnx", "--data", "none.npz", "--out", "q.onnx"], "none.npz: cannot be read"),
        (["m.onnx", "--data", "rows.npz", "--out", "m.onnx"], "is the model itself"),
        (["m.onnx", "--data", "rows.npz", "--out", "no/q.onnx"], "does not exist"),
        (["m.onnx", "--data", "other.npz", "--out", "q.onnx"], "the model takes x"),
        (["m.onnx", "--data", "double.npz", "--out", "q.onnx"], "x is float64, the model takes float32"),
        (["m.onnx", "--data", "empty.npz", "--out", "q.onnx"], "every array needs the same number"),
        (["m.onnx", "--data", "uneven.npz", "--out", "q.onnx"], "every array needs the same number"),
        (["m.onnx", "--data", "wide.npz", "--out", "q.onnx"], "refuses"),
        (["m.onnx", "--data", "rows.npz", "--out", "q.onnx", "--labels", "z"], "--labels z: is not in"),
        (["m.onnx", "--data", "rows.npz", "--out", "q.onnx", "--precision", "int3"], "--precision int3"),
        (["m.onnx", "--data", "rows.npz", "--out", "q.onnx", "--calibration", "max"], "--calibration max"),
        (["text.onnx", "--data", "rows.npz", "--out", "q.onnx"], "not an ONNX file"),
    ],
)
def test_what_is_wrong_is_told_and_nothing_is_written(
    quantize: Quantize, files: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch, words: list[str], says: str
) -> None:
    monkeypatch.chdir(files)
    (files / "text.onnx").write_text("hello")
    np.savez("other.npz", image=normal(3, 20))
    np.savez("double.npz", x=normal(3, 20).astype(np.float64))
    np.savez("empty.npz", x=normal(3, 20)[:0])
    np.savez("uneven.npz", x=normal(3, 20), labels=np.zeros(4))
    np.savez("wide.npz", x=normal(3, 21))
    before = (files / "m.onnx").read_bytes()
    assert quantize(*words, *QUICK) == 2
    said = capsys.readouterr().err
    assert says in said
    assert "Traceback" not in said
    assert not (files / "q.onnx").exists()
    assert (files / "m.onnx").read_bytes() == before


def test_a_quantised_file_is_refused(quantize: Quantize, files: Path, capsys: Any) -> None:
    words = ("--data", files / "rows.npz", "--max-drop", "1", *QUICK)
    assert quantize(files / "m.onnx", *words, "--out", files / "q.onnx", "--precision", "dynamic") == 0
    from distill.quantize import to_dynamic

    onnx.save(to_dynamic(onnx.load(files / "m.onnx"))[0], files / "small.onnx")
    assert quantize(files / "small.onnx", *words, "--out", files / "q2.onnx") == 2
    assert "quantised already" in capsys.readouterr().err
