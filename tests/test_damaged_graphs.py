"""ONNX files that are not whole: `bench` and `quantize` measure them, or say what is wrong with which file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from test_hostile_files import QUICK, typed
from wrong.damaged_graphs import BESIDE, DAMAGE, NARROW, WIDE, content

from distill.errors import NotMeasuredError

BENCH = ("bench", "m.onnx", *QUICK)
QUANTIZE = ("quantize", "m.onnx", "--data", "r.npz", "--out", "q.onnx", "--max-drop", "1", *QUICK)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Give the current folder, with rows for the model, and bytes that it may name."""
    monkeypatch.chdir(tmp_path)
    Path(BESIDE).write_bytes(np.linspace(-1, 1, WIDE * NARROW, dtype=np.float32).tobytes())
    rows = np.random.default_rng(0).standard_normal((60, WIDE)).astype(np.float32)
    np.savez("r.npz", x=rows, labels=np.arange(60) % NARROW)
    yield tmp_path


def ends(verb: tuple[str, ...], capfd: pytest.CaptureFixture[str]) -> int:
    code = typed(*verb)
    said = "".join(capfd.readouterr())
    assert code in (0, 2, 5), said
    assert "Traceback" not in said
    assert code == 0 or "m.onnx" in said or "r.npz" in said, said
    return code


def test_the_corpus_is_large() -> None:
    assert len(DAMAGE) >= 120


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_graph_is_read_or_refused(
    name: str, place: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """What reads well is as good as measured here: onnxruntime's own refusals have a test of their own."""

    def began(*_: object, **__: object) -> None:
        raise NotMeasuredError("m.onnx: began")

    monkeypatch.setattr("distill.benchmarks.verdict.bench.inspect_file", began)
    monkeypatch.setattr("distill.single_stage.quantize_model.choose", began)
    Path("m.onnx").write_bytes(content(name))
    for verb in (BENCH, QUANTIZE):
        assert ends(verb, capfd) in (2, 5), verb
    assert not Path("q.onnx").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_graph_is_measured_or_refused(name: str, place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    Path("m.onnx").write_bytes(content(name))
    for verb in (BENCH, QUANTIZE):
        assert ends(verb, capfd) == 0 or not Path("q.onnx").exists()


def test_a_name_that_is_not_utf8_is_refused(place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    whole = content("weight in two fields")
    assert b"MatMul" in whole
    Path("m.onnx").write_bytes(whole.replace(b"MatMul", b"MatMu\x8a"))
    for verb in (BENCH, QUANTIZE):
        assert ends(verb, capfd) == 2


WHOLE_ENOUGH = ("size '?' on axis 0", "weight in two fields", "1 branches within each other")


@pytest.mark.parametrize(
    "name", [*WHOLE_ENOUGH, "unknown entries", "twice", "type 99 of the weight", "a cycle", "opset 999"]
)
def test_what_onnxruntime_takes_is_measured(name: str, place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    Path("m.onnx").write_bytes(content(name))
    assert ends(BENCH, capfd) == (0 if name in WHOLE_ENOUGH else 2)
