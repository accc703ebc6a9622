"""Where verbs write what an option asks for: through links and pipes, over nothing that is read, never by deleting."""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from distill.cli import main

QUICK = ("--seconds", "0.02", "--pairs", "2")
BENCH = ("bench", "model.onnx", *QUICK)
QUANTIZE = ("quantize", "model.onnx", "--data", "rows.npz", "--max-drop", "1", "--sensitivity")


def typed(*words: object) -> int:
    with pytest.raises(SystemExit) as ended:
        main(list(map(str, words)))
    assert isinstance(ended.value.code, int)
    return ended.value.code


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give the current folder, which holds a model and rows."""
    monkeypatch.chdir(tmp_path)
    for name in ("GITHUB_ACTIONS", "GITHUB_STEP_SUMMARY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("distill.single_stage.quantize_model.why_unmeasurable", lambda _: "not timed")
    rng = np.random.default_rng(0)
    weight = numpy_helper.from_array(rng.standard_normal((32, 3)).astype(np.float32), "w")
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", size]) for name, size in (("x", 32), ("y", 3)))
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "g", [x], [y], [weight])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), "model.onnx")
    np.savez("rows.npz", x=rng.standard_normal((60, 32)).astype(np.float32), labels=np.arange(60) % 3)
    return tmp_path


def contents() -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(Path().rglob("*")) if path.is_file()}


@contextmanager
def pipes(*names: str) -> Iterator[dict[str, bytes]]:
    """Make pipes that are read to their end."""
    read: dict[str, bytes] = {}
    threads = []
    for name in names:
        os.mkfifo(name)
        threads.append(threading.Thread(target=lambda name=name: read.update({name: Path(name).read_bytes()})))
        threads[-1].daemon = True
        threads[-1].start()
    yield read
    for thread in threads:
        thread.join(timeout=20)
        assert not thread.is_alive()


def test_pipes_are_written_through_and_stay() -> None:
    with pipes("a", "b", "c") as read:
        assert typed(*BENCH, "--max-p50-ms", "9999", "--out", "a", "--junit", "b", "--summary", "c") == 0
    assert read["a"].startswith(b'{\n "at"')
    assert read["b"].startswith(b"<?xml")
    assert b"| model |" in read["c"]
    with pipes("d", "e", "f") as read:
        assert typed(*QUANTIZE, "--out", "d", "--record", "e", "--plot", "f") == 0
    onnx.checker.check_model(onnx.load_model_from_string(read["d"]))
    assert read["e"].startswith(b"{")
    assert read["f"].startswith(b"<svg")
    assert all(stat.S_ISFIFO(os.lstat(name).st_mode) for name in "abcdef")


def test_a_refused_pipe_is_neither_opened_nor_removed(capsys: pytest.CaptureFixture[str]) -> None:
    """Nobody reads it: what opens it would wait for ever."""
    os.mkfifo("pipe")
    assert typed("bench", "none.onnx", "--out", "pipe", "--junit", "pipe") == 2
    assert typed("quantize", "none.onnx", "--data", "rows.npz", "--out", "pipe") == 2
    os.mkfifo("base.json")
    assert typed(*BENCH, "--save-baseline", "base.json") == 2
    assert "is no regular file" in capsys.readouterr().err
    assert stat.S_ISFIFO(os.lstat("pipe").st_mode)
    assert stat.S_ISFIFO(os.lstat("base.json").st_mode)


@pytest.mark.parametrize(
    "words", [(*BENCH, "--out"), (*BENCH, "--junit"), (*QUANTIZE, "--out"), (*QUANTIZE, "--record")]
)
@pytest.mark.parametrize("there", [True, False])
def test_a_link_is_followed_and_stays(words: tuple[str, ...], there: bool) -> None:
    Path("far").mkdir()
    if there:
        Path("far/file").write_text("before")
        Path("far/file").chmod(0o600)
    Path("link").symlink_to("far/file")
    model = ("--out", "q.onnx") if words[-1] == "--record" else ()
    assert typed(*words, "link", *model) == 0
    assert Path("link").is_symlink()
    assert not Path("far/file").read_bytes().startswith(b"before")
    assert {path.name for path in Path("far").iterdir()} == {"file"}
    if there:
        assert stat.S_IMODE(Path("far/file").stat().st_mode) == 0o600


def _link(name: str, to: str) -> Callable[[], object]:
    return lambda: Path(name).symlink_to(to)


@pytest.mark.parametrize(
    ("words", "says", "lay"),
    [
        ((*BENCH, "--out", "folder"), "--out folder: is a folder", lambda: None),
        ((*BENCH, "--junit", "link"), "--junit link: is a folder", _link("link", "folder")),
        ((*BENCH, "--out", "link"), "the folder", _link("link", "none/file")),
        ((*BENCH, "--out", "link"), "symbolic links", _link("link", "link")),
        ((*BENCH, "--out", "x", "--junit", "./x"), "--junit x: is what --out writes", lambda: None),
        ((*BENCH, "--out", "x", "--summary", "link"), "--summary link: is what --out writes", _link("link", "x")),
        ((*BENCH, "--out", "b.json", "--save-baseline", "b.json"), "is what --out writes", lambda: None),
        ((*BENCH, "--out", "b.onnx", "--save-baseline", "b.json"), "is what --out writes", lambda: None),
        ((*BENCH, "--out", "model.onnx"), "--out model.onnx: is the model itself", lambda: None),
        ((*BENCH, "--junit", "link"), "--junit link: is the model itself", _link("link", "model.onnx")),
        ((*BENCH, "--out", "hard"), "is the model itself", lambda: os.link("model.onnx", "hard")),
        ((*BENCH, "--inputs", "rows.npz", "--out", "rows.npz"), "is what --inputs reads", lambda: None),
        ((*BENCH, "--baseline", "kept", "--out", "kept"), "is what --baseline reads", lambda: None),
        ((*BENCH, "--save-baseline", "base.json"), "base.model is there already", lambda: Path("base.model").mkdir()),
        (
            ("bench", "model.onnx", "--export-runner", "kept/bundle"),
            "no folder",
            lambda: None,
        ),
        ((*QUANTIZE, "--out", "folder"), "--out folder: is a folder", lambda: None),
        ((*QUANTIZE, "--out", "x", "--record", "link"), "is what --out writes", _link("link", "x")),
        ((*QUANTIZE, "--out", "link"), "--out link: is the model itself", _link("link", "model.onnx")),
    ],
)
def test_what_cannot_be_written_is_told_before_and_nothing_is_touched(
    words: tuple[str, ...],
    says: str,
    lay: Callable[[], object],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for began in ("distill.verbs.bench_tasks.bench", "distill.single_stage.quantize_model.choose"):
        monkeypatch.setattr(began, lambda *_, **__: pytest.fail("began to work"))
    Path("folder").mkdir()
    Path("kept").write_text("mine")
    lay()
    before = contents()
    assert typed(*words) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert says in said
    assert "Traceback" not in said
    assert contents() == before


def test_an_earlier_result_stays_until_a_new_one_takes_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("r.json", "j.xml"):
        Path(name).write_text("of an earlier run")
    assert typed("bench", "none.onnx", "--out", "r.json", "--junit", "j.xml") == 2
    assert {Path(name).read_text() for name in ("r.json", "j.xml")} == {"of an earlier run"}
    assert typed(*BENCH, "--out", "r.json", "--junit", "j.xml") == 0
    assert "of an earlier run" not in {Path(name).read_text() for name in ("r.json", "j.xml")}
