"""Everything that a user of `quantize` can get wrong: the exit code, words that help, and nothing lost or left over."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from quantize_corpus import CASES, PLAIN, Wrong
from small_graphs import QUICK, graph, rows, typed


def contents(folder: Path) -> dict[str, bytes]:
    """Return every file of a folder, hidden ones too, and what links lead to."""
    return {str(one.relative_to(folder)): one.read_bytes() for one in sorted(folder.rglob("*")) if one.is_file()}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give the current folder, which holds a model, rows and a file of an earlier run, and a folder for what passes."""
    folder = tmp_path / "place"
    folder.mkdir()
    (tmp_path / "passing").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "passing"))
    monkeypatch.chdir(folder)
    onnx.save(graph(), "m.onnx")
    np.savez("rows.npz", x=rows())
    Path("q.onnx").write_text("of an earlier run")
    return folder


def passing(folder: Path) -> list[Path]:
    return list((folder.parent / "passing").iterdir())


@pytest.mark.parametrize("case", [pytest.param(case, id=case.name) for case in CASES])
def test_what_is_wrong_is_told_at_once_and_nothing_is_lost(
    case: Wrong, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if case.prepare is not None:
        case.prepare()
    if not case.late:  # hours of work must not have begun
        monkeypatch.setattr(
            "distill.single_stage.quantize_model.choose", lambda *_, **__: pytest.fail("began to quantise")
        )
    before = contents(place)
    code = typed(*case.words, *(() if "--seconds" in case.words else QUICK))
    said, err = capsys.readouterr()
    assert code == 2, err
    assert [word for word in case.says if word not in err] == [], err
    assert "Traceback" not in err
    assert said == ""
    assert contents(place) == before
    assert passing(place) == []


def test_the_corpus_is_large_and_its_names_differ() -> None:
    assert len({case.name for case in CASES}) == len(CASES) >= 70


def test_a_folder_that_cannot_be_written_is_told_at_once(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "access", lambda path, _: Path(path) != place)  # root may write anywhere
    assert typed(*PLAIN) == 2
    assert "--out q.onnx: no permission" in capsys.readouterr().err


@pytest.mark.parametrize("words", [("--max-drop", "0.5"), ("--max-drop", "0.5", "--record", "r.json")])
@pytest.mark.parametrize("where", ["distill.single_stage.quantize_model.choose", "distill.files.os.replace"])
def test_ctrl_c_leaves_nothing(
    where: str, words: tuple[str, ...], place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    before = contents(place)
    monkeypatch.setattr("distill.single_stage.quantize_model.why_unmeasurable", lambda _: "not here")
    monkeypatch.setattr(where, interrupt)
    assert typed(*PLAIN, *words) == 130
    assert "interrupted" in capsys.readouterr().err
    assert contents(place) == before
    assert passing(place) == []


def test_a_disk_that_fills_up_leaves_the_earlier_file(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(number: int) -> None:
        raise OSError(28, "No space left on device", "q.onnx")

    before = contents(place)
    monkeypatch.setattr("distill.single_stage.quantize_model.why_unmeasurable", lambda _: "not here")
    monkeypatch.setattr("distill.files.os.fsync", full)
    assert typed(*PLAIN, "--max-drop", "0.5") == 2
    monkeypatch.undo()
    assert "the disk is full" in capsys.readouterr().err
    assert contents(place) == before


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (("none.onnx", *PLAIN[1:]), 2, "none.onnx: does not exist"),
        ((*PLAIN, "--record", "no/r.json"), 2, "--record no/r.json"),
        (PLAIN[:3], 2, "--out"),
    ],
)
def test_the_process_ends_with_the_same_code(words: tuple[str, ...], code: int, says: str, place: Path) -> None:
    before = contents(place)
    held = subprocess.run(
        [sys.executable, "-m", "distill", "quantize", *words], capture_output=True, text=True, check=False
    )
    assert (held.returncode, held.stdout) == (code, "")
    assert says in held.stderr
    assert "Traceback" not in held.stderr
    assert contents(place) == before
