"""The verb `bench` as it is typed: what it prints and writes, its exit codes, and what it refuses."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from distill.cli import main

Conv = Callable[..., Path]
Bench = Callable[..., int]
QUICK = ("--seconds", "0.05", "--pairs", "2")


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Bench:
    for name in ("GITHUB_ACTIONS", "GITHUB_STEP_SUMMARY"):
        monkeypatch.delenv(name, raising=False)

    def call(*words: object) -> int:
        with pytest.raises(SystemExit) as ended:
            main(["bench", *map(str, words)])
        assert isinstance(ended.value.code, int)
        return ended.value.code

    return call


def test_files_are_measured_and_the_table_is_printed(bench: Bench, conv: Conv, capsys: Any) -> None:
    assert bench(conv(layers=1, name="a.onnx"), conv(layers=50, name="b.onnx"), *QUICK) == 0
    said = capsys.readouterr().out
    assert "batch 1, 1 thread(s), 2 session pairs" in said
    assert all(word in said for word in ("p50", "int8", "baseline", "×"))


def test_json_is_the_only_thing_on_standard_output(bench: Bench, conv: Conv, capsys: Any, tmp_path: Path) -> None:
    assert bench(conv(), *QUICK, "--json", "--batch", "1,3", "--out", tmp_path / "deep" / "r.json") == 0
    found = json.loads(capsys.readouterr().out)
    assert [case["batch"] for case in found["cases"]] == [1, 3]
    assert json.loads((tmp_path / "deep/r.json").read_text()) == found
    assert {"schema", "machine", "fingerprint", "models", "cases"} <= found.keys()
    assert found["cases"][0]["pairs"][0]["turns"]


def test_a_gate_says_so_in_every_form(
    bench: Bench, conv: Conv, capsys: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "step.md"))
    slow, fast = conv(layers=120, name="slow.onnx"), conv(layers=1, name="fast.onnx")
    words = ("--baseline", fast, "--max-regression", "50%", "--junit", tmp_path / "j.xml", *QUICK)
    assert bench(slow, *words, "--out", tmp_path / "r.json") == 1
    said = capsys.readouterr().out
    assert "FAIL slow.onnx against fast.onnx" in said
    assert "::error title=distill bench::FAIL" in said
    suite = ElementTree.parse(tmp_path / "j.xml").getroot()
    assert (suite.get("tests"), suite.get("failures"), suite.get("errors")) == ("1", "1", "0")
    assert suite.find("testcase/failure") is not None
    summary = (tmp_path / "step.md").read_text()
    assert summary.startswith("### FAIL")
    assert "| slow |" in summary
    assert bench("--rejudge", tmp_path / "r.json", "--max-regression", "50%") == 1
    assert bench("--rejudge", tmp_path / "r.json", "--max-regression", "50%", "--accept", accepted(tmp_path, slow)) == 0
    assert bench("--rejudge", tmp_path / "r.json") == 1
    assert bench("--rejudge", tmp_path / "r.json", "--max-regression", "99900%") == 0
    assert bench("--rejudge", tmp_path / "r.json", "--max-regression", "99900%", "--max-p50-ms", "0.000001") == 1


def accepted(folder: Path, model: Path) -> Path:
    entry = {"sha256": hashlib.sha256(model.read_bytes()).hexdigest(), "reason": "twice the classes"}
    (folder / "accepted.json").write_text(json.dumps([entry]))
    return folder / "accepted.json"


def test_a_baseline_is_saved_kept_from_failures_and_used(bench: Bench, conv: Conv, tmp_path: Path, capsys: Any) -> None:
    stored = tmp_path / "main" / "base.json"
    fast, slow = conv(layers=1, name="fast.onnx"), conv(layers=120, name="slow.onnx")
    words = ("--baseline", stored, "--save-baseline", stored, "--max-regression", "50%", *QUICK)
    assert bench(fast, *words, "--strict") == 3
    assert "does not exist yet" in capsys.readouterr().out
    first = stored.read_bytes()
    assert stored.with_suffix(".onnx").read_bytes() == fast.read_bytes()
    assert bench(slow, *words) == 1
    assert stored.read_bytes() == first
    assert "left as it was" in capsys.readouterr().err
    sha256 = json.loads(first)["models"][0]["facts"]["sha256"]
    assert len(sha256) == 64
    assert bench(fast, "--baseline", stored, *QUICK) == 0
    assert "byte for byte the same" in capsys.readouterr().out


def test_a_slow_down_is_accepted_by_its_sha256_and_the_release_is_judged_beside_it(
    bench: Bench, conv: Conv, tmp_path: Path, capsys: Any
) -> None:
    fast, slow = conv(layers=1, name="fast.onnx"), conv(layers=120, name="slow.onnx")
    release = conv(layers=1, name="release.onnx")
    words = (slow, "--max-regression", "50%", *QUICK)
    assert bench(*words, "--baseline", fast, "--accept", accepted(tmp_path, slow)) == 0
    assert "twice the classes" in capsys.readouterr().out
    # Slow drift: each step is within the tolerance of the last, the sum is not.
    assert bench(*words, "--baseline", slow, "--release-baseline", release) == 1
    said = capsys.readouterr().out
    assert "PASS slow.onnx against slow.onnx" in said
    assert "FAIL slow.onnx against release.onnx" in said
    both = ("--baseline", slow, "--release-baseline", release, "--accept", accepted(tmp_path, slow))
    assert bench(*words, *both) == 0


def test_a_budget_alone_ends_with_its_verdict(bench: Bench, conv: Conv) -> None:
    assert bench(conv(), *QUICK, "--max-p50-ms", "1000") == 0
    assert bench(conv(), *QUICK, "--max-p50-ms", "0.000001") == 1


def test_inputs_of_the_users_own(bench: Bench, conv: Conv, tmp_path: Path, capsys: Any) -> None:
    np.savez(tmp_path / "rows.npz", x=np.zeros((3, 2, 6, 6), np.float32))
    assert bench(conv(), *QUICK, "--inputs", tmp_path / "rows.npz") == 0
    assert bench(conv(), *QUICK, "--data", tmp_path / "rows.npz") == 0  # as the other verbs call it
    np.savez(tmp_path / "wrong.npz", x=np.zeros((3, 9, 6, 6), np.float32))
    assert bench(conv(), *QUICK, "--inputs", tmp_path / "wrong.npz") == 2
    assert "the given rows have 9 on axis 1" in capsys.readouterr().err
    np.savez(tmp_path / "pickled.npz", x=np.array([{}], dtype=object))
    assert bench(conv(), *QUICK, "--inputs", tmp_path / "pickled.npz") == 2


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        ([], 2, "give one of MODEL"),
        (["none.onnx"], 2, "none.onnx: does not exist"),
        (["{conv}", "--batch", "0"], 2, "--batch 0: must be whole numbers"),
        (["{conv}", "--threads", "two"], 2, "--threads two"),
        (["{conv}", "--baseline", "{conv}", "--max-regression", "five"], 2, "--max-regression five: must be a share"),
        (["{conv}", "--baseline", "{conv}", "--max-regression", "-5%"], 2, "--max-regression -5%"),
        (["{conv}", "--baseline", "{conv}", "--max-regression", "5"], 2, "is 500 %; write 5% or 0.05"),
        (["{conv}", "--baseline", "{conv}", "--max-regression", "0%"], 2, "above 0"),
        (["{conv}", "--max-regression", "5%"], 2, "--max-regression: would be ignored beside MODEL"),
        (["{conv}", "--max-p50-ms", "0"], 2, "must be a number above 0"),
        (["{conv}", "{conv}", "--max-p50-ms", "1"], 2, "goes with one MODEL"),
        (["{conv}", "--strict"], 2, "nothing to judge"),
        (["{conv}", "--dim", "length"], 2, "--dim length: must be name=value"),
        (["{conv}", "--dim", "length=0"], 2, "--dim length=0"),
        (["{conv}", "--inputs", "none.npz"], 2, "--inputs none.npz: cannot be read"),
        (["{conv}", "--inputs", "rows.npy"], 2, "is a single array"),
        (["{conv}", "--inputs", "broken.npz"], 2, "must be an .npz of plain arrays"),
        (["{conv}", "--inputs", "text.npz"], 2, "must be an .npz of plain arrays, as np.savez"),
        (["{conv}", "--inputs", "empty.npz"], 2, "holds no arrays"),
        (["{conv}", "--provider", "Nonesuch"], 2, "--provider Nonesuch: onnxruntime knows"),
        (["{conv}", "--provider", "CoreML"], 5, "no CoreMLExecutionProvider"),
        (["{conv}", "--target", "toaster"], 2, "target='toaster'"),
        (["{conv}", "--provider", "cpu", "--target", "x86"], 2, "not both"),
        (["{conv}", "{conv}", "--baseline", "{conv}"], 2, "goes with one MODEL, 2 were given"),
        (["{conv}", "--baseline", "typo.onnx"], 2, "typo.onnx: the baseline does not exist"),
        (["{conv}", "--baseline", "broken.onnx"], 2, "broken.onnx: not an ONNX file"),
        (["{conv}", "--baseline", "broken.json"], 2, "broken.json: not the JSON"),
        (["{conv}", "--baseline", "other.json"], 2, "not that of `python -m distill bench`"),
        (["{conv}", "--baseline", "old.json"], 4, "its schema is 0"),
        (["{conv}", "--baseline", "old.json", "--if-incomparable", "warn"], 0, "its schema is 0"),
        (["{conv}", "--baseline", "damaged.json"], 2, "a damaged benchmark"),
        (["{conv}", "--baseline", "{conv}", "--if-incomparable", "maybe"], 2, "must be fail or warn"),
        (["{conv}", "--baseline-python", "x"], 2, "it goes with --baseline"),
        (["{conv}", "--baseline", "{conv}", "--baseline-python", "none"], 2, "--baseline-python none: does not exist"),
        (["{conv}", "--save-baseline", "base.txt"], 2, "must end in .json"),
        (["{conv}", "--save-baseline", "rows.json"], 2, "rows.onnx is there already"),
        (["{conv}", "--out", "folder"], 2, "--out folder: is a folder"),
        (["{conv}", "--junit", "rows.npy/j.xml"], 2, "rows.npy is no folder"),
        (["gone.onnx", "--out", "new/r.json", "--junit", "new/er/j.xml"], 2, "gone.onnx: does not exist"),
        (["{conv}", "--save-baseline", "new/base.txt"], 2, "must end in .json"),
        (["{conv}", "--export-runner", "dangling"], 2, "is not empty"),
        (["gone.onnx", "--export-runner", "new"], 2, "gone.onnx: does not exist"),
        (["/"], 2, "/: is a folder"),
        (["huge.onnx"], 2, "huge.onnx: is larger than the 2 GiB"),
        (["{conv}", "--baseline", "{conv}", "--accept", "false.yaml"], 2, "must be a list"),
        (["{conv}", "--shard", "1/2"], 2, "it goes with --manifest"),
        (["{conv}", "--rejudge", "other.json"], 2, "give one of"),
        (["{conv}", "--baseline", "{conv}", "--accept", "none.yaml"], 2, "--accept none.yaml: cannot be read"),
        (["{conv}", "--baseline", "{conv}", "--accept", "short.yaml"], 2, "entry 1 must have a sha256"),
        (["{conv}", "--export-runner", "rows.npy"], 2, "is not empty"),
        (["--rejudge", "old.json", "--export-runner", "new"], 2, "--export-runner: would be ignored beside --rejudge"),
        (["--manifest", "none.yaml"], 2, "--manifest none.yaml: cannot be read"),
        (["--manifest", "rows.npy"], 2, "--manifest rows.npy:"),
        (["--import", "none.json"], 2, "--import none.json: cannot be read"),
        (["--import", "broken.json"], 5, "is not a whole result of runner.py"),
        (["--import", "other.json"], 5, "but not a result of runner.py"),
        (["--import", "error.json"], 5, "does not say which"),
        (["--import", "half.json"], 2, "a damaged result"),
        (["{conv}", "--measure", "nosuchcommand"], 5, "`nosuchcommand` cannot be run"),
        (["{conv}", "--measure", 'ssh "board'], 2, "cannot be read as a command"),
        (["{conv}", "--timeout", "0.01"], 5, "did not end within 0.01 s"),
    ],
)
def test_wrong_words_and_files_end_with_their_code_and_the_mend(
    bench: Bench,
    conv: Conv,
    capsys: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    code: int,
    says: str,
) -> None:
    path = conv()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.onnx").write_bytes(path.read_bytes()[:40])
    (tmp_path / "broken.json").write_text('{"schema": 2, "mod')
    (tmp_path / "other.json").write_text('{"name": "package"}')
    (tmp_path / "old.json").write_text('{"schema": 0, "models": [], "cases": []}')
    (tmp_path / "damaged.json").write_text('{"schema": 2, "models": [{}], "cases": []}')
    (tmp_path / "short.yaml").write_text("- sha256: abc\n  reason: why\n")
    (tmp_path / "error.json").write_text('{"status": "error"}')
    (tmp_path / "half.json").write_text('{"status": "ok", "sent": {"facts": []}, "board": {}}')
    (tmp_path / "broken.npz").write_bytes(b"PK\x03\x04 and no more")
    (tmp_path / "rows.onnx").write_bytes(path.read_bytes())
    (tmp_path / "false.yaml").write_text("false")
    (tmp_path / "folder").mkdir()
    (tmp_path / "text.npz").write_text("rows of text")
    np.savez(tmp_path / "empty.npz")
    (tmp_path / "dangling").symlink_to("nowhere")
    with (tmp_path / "huge.onnx").open("wb") as file:
        file.truncate(2**31)
    np.save(tmp_path / "rows.npy", np.zeros(3))
    quick = QUICK if "{conv}" in words else ()
    assert bench(*(str(path) if word == "{conv}" else word for word in words), *quick) == code
    captured = capsys.readouterr()
    said = " ".join(f"{captured.out} {captured.err}".split())
    assert says in said
    assert "Traceback" not in said
    assert not (tmp_path / "new").exists()


def test_the_same_path_written_otherwise_is_measured(bench: Bench, conv: Conv, monkeypatch: pytest.MonkeyPatch) -> None:
    path = conv()
    monkeypatch.chdir(path.parent)
    assert bench(f"./{path.name}", *QUICK) == 0
    assert bench(f"./{path.name}", *QUICK, "--baseline", "none.json") == 0


def test_what_cannot_be_measured_is_told_in_every_form_and_keeps_no_baseline(
    bench: Bench, conv: Conv, save: Any, tmp_path: Path, capsys: Any
) -> None:
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 2, 6, 6]) for name in "xy")
    spoilt = save([helper.make_node("Log", ["x"], ["y"])], [x], [y], name="log.onnx")
    stored = tmp_path / "base.json"
    words = ("--baseline", stored, "--save-baseline", stored, "--junit", tmp_path / "j.xml", *QUICK)
    (tmp_path / "j.xml").write_text("of an earlier run")
    assert bench(spoilt, *words) == 5
    assert not stored.exists()
    assert ElementTree.parse(tmp_path / "j.xml").getroot().get("errors") == "1"
    assert "its outputs are not all finite" in " ".join(capsys.readouterr().out.split())
    assert bench(conv(), *words) == 0
    assert bench(spoilt, *words, "--out", tmp_path / "r.json") == 5
    assert ElementTree.parse(tmp_path / "j.xml").getroot().get("errors") == "1"
    assert bench("--rejudge", tmp_path / "r.json", "--max-regression", "9900%") == 5


def test_changed_inputs_are_incomparable_and_move_the_baseline_only_where_that_is_allowed(
    bench: Bench, conv: Conv, save: Any, tmp_path: Path
) -> None:
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 3]) for name in ("image", "y"))
    other = save([helper.make_node("Relu", ["image"], ["y"])], [x], [y], name="other.onnx")
    stored = tmp_path / "base.json"
    words = ("--baseline", stored, "--save-baseline", stored, *QUICK)
    assert bench(conv(), *words) == 0
    first = stored.read_bytes()
    assert bench(other, *words) == 4
    assert stored.read_bytes() == first
    assert bench(other, *words, "--if-incomparable", "warn") == 0
    assert stored.with_suffix(".onnx").read_bytes() == other.read_bytes()
    assert bench(other, *words) == 0


def test_a_baseline_with_external_data_keeps_them_to_itself(
    bench: Bench, conv: Conv, tmp_path: Path, capsys: Any
) -> None:
    def external(folder: str, layers: int) -> Path:
        (tmp_path / folder).mkdir()
        proto = onnx.load(conv(layers=layers))
        path = tmp_path / folder / "model.onnx"
        onnx.save(proto, path, save_as_external_data=True, location="w.bin", size_threshold=0)
        return path

    one, two = external("one", 1), external("two", 2)
    kept = tmp_path / "kept"
    assert bench(one, *QUICK, "--save-baseline", kept / "one.json") == 0
    assert bench(two, *QUICK, "--save-baseline", kept / "two.json") == 0
    for model, name in ((one, "one.json"), (two, "two.json")):
        capsys.readouterr()
        assert bench(model, *QUICK, "--baseline", kept / name, "--save-baseline", kept / name) == 0
        captured = capsys.readouterr()
        assert "byte for byte the same" in captured.out
        assert "left as it was" in captured.err
    assert bench(two, *QUICK, "--baseline", kept / "none.json", "--save-baseline", kept / "one.json") == 0
    assert bench(two, *QUICK, "--baseline", kept / "one.json") == 0


def test_a_model_in_a_cache_of_links_is_measured(bench: Bench, conv: Conv, tmp_path: Path) -> None:
    (tmp_path / "blobs").mkdir()
    (tmp_path / "snapshot").mkdir()
    onnx.save(
        onnx.load(conv()), tmp_path / "blobs/m.onnx", save_as_external_data=True, location="w.bin", size_threshold=0
    )
    (tmp_path / "blobs/m.onnx").rename(tmp_path / "blobs/abc")
    (tmp_path / "blobs/w.bin").rename(tmp_path / "blobs/def")
    (tmp_path / "snapshot/model.onnx").symlink_to("../blobs/abc")
    (tmp_path / "snapshot/w.bin").symlink_to("../blobs/def")
    assert bench(tmp_path / "snapshot/model.onnx", *QUICK) == 0
