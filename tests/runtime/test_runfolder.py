from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distill import files
from distill.errors import UserError
from distill.intervals import Estimate
from distill.runtime.folder import CHECKPOINT, RunFolder, digest, file_sha256, sources, versions, write_text
from distill.sealed_files import AlteredError, read_sealed, sealed_array, write_sealed


class KilledError(Exception):
    """Stands for a kill."""


@pytest.fixture
def folder(tmp_path: Path) -> Any:
    with RunFolder.hold(tmp_path / "run") as held:
        yield held


def maker(text: str, calls: list[str] | None = None) -> Any:
    def build(place: Path) -> dict[str, Any]:
        if calls is not None:
            calls.append(text)
        (place / "made.txt").write_text(text)
        return {"text": text, "pair": (1, 2)}

    return build


def test_a_stage_is_made_once(folder: RunFolder) -> None:
    calls: list[str] = []
    first = folder.stage("01-teacher", "key", maker("a", calls))
    again = folder.stage("01-teacher", "key", maker("b", calls))
    assert calls == ["a"]
    assert first == (folder.stages / "01-teacher", {"text": "a", "pair": [1, 2]}, False)
    assert again == (first[0], first[1], True)
    assert (first[0] / "made.txt").read_text() == "a"


def test_another_key_replaces_it(folder: RunFolder) -> None:
    folder.stage("01-teacher", "key", maker("a"))
    place, facts, reused = folder.stage("01-teacher", "other", maker("b"))
    assert (facts["text"], reused) == ("b", False)
    assert (place / "made.txt").read_text() == "b"
    assert [one.name for one in folder.stages.iterdir()] == ["01-teacher"]


def test_a_half_made_stage_is_not_there_and_is_made_again(folder: RunFolder) -> None:
    def killed(place: Path) -> dict[str, Any]:
        (place / "made.txt").write_text("half")
        (place / CHECKPOINT).write_text("epoch 3")
        raise KilledError

    with pytest.raises(KilledError):
        folder.stage("01-teacher", "key", killed)
    assert not (folder.stages / "01-teacher").exists()
    seen = []

    def resumed(place: Path) -> dict[str, Any]:
        seen.append((place / CHECKPOINT).read_text())
        (place / "checkpoint.tmp").write_text("torn")
        return maker("whole")(place)

    place, _, reused = folder.stage("01-teacher", "key", resumed)
    assert seen == ["epoch 3"]
    assert not reused
    assert (place / "made.txt").read_text() == "whole"
    assert {one.name for one in place.iterdir()} == {"made.txt", "stage.json"}


def test_what_a_killed_attempt_with_another_key_left_is_not_used(folder: RunFolder) -> None:
    def killed(place: Path) -> dict[str, Any]:
        (place / CHECKPOINT).write_text("epoch 3")
        raise KilledError

    with pytest.raises(KilledError):
        folder.stage("01-teacher", "old", killed)

    def fresh(place: Path) -> dict[str, Any]:
        assert list(place.iterdir()) == []
        return {}

    folder.stage("01-teacher", "new", fresh)
    assert [one.name for one in folder.stages.iterdir()] == ["01-teacher"]


@pytest.mark.parametrize("step", ["rmtree", "rename"])
def test_a_kill_while_a_stage_is_replaced_loses_nothing(
    folder: RunFolder, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.stage("01-teacher", "old", maker("old"))

    def kill(*args: Any, **options: Any) -> None:
        raise KilledError

    with monkeypatch.context() as patch:
        if step == "rename":  # as on a system that cannot let two folders change places
            patch.setattr(files, "_exchanged", lambda path, other: False)
        patch.setattr(*((shutil, "rmtree") if step == "rmtree" else (Path, "rename")), kill)
        with pytest.raises(KilledError):
            folder.stage("01-teacher", "new", maker("new"))
    calls: list[str] = []
    place, facts, _ = folder.stage("01-teacher", "new", maker("again", calls))
    assert calls == []
    assert facts["text"] == (place / "made.txt").read_text() == "new"


@pytest.mark.parametrize("text", ["", "{", "[]", '{"facts": {}}'])
def test_a_stage_whose_note_is_broken_is_made_again(folder: RunFolder, text: str) -> None:
    place, _, _ = folder.stage("01-teacher", "key", maker("a"))
    (place / "stage.json").write_text(text)
    assert folder.stage("01-teacher", "key", maker("b"))[1]["text"] == "b"


def test_a_memo_is_found_out_once(folder: RunFolder) -> None:
    values = iter([{"a": (1,)}, {"a": (2,)}, {"a": (3,)}])
    assert folder.memo("m", "key", lambda: next(values), dict) == {"a": [1]}
    assert folder.memo("m", "key", lambda: next(values), dict) == {"a": [1]}
    assert folder.memo("m", "other", lambda: next(values), dict) == {"a": [2]}
    (folder.memos / "m-key.json").write_text('{"a":')
    assert folder.memo("m", "key", lambda: next(values), dict) == {"a": [3]}


def test_a_memo_of_another_form_is_found_out_again_although_it_is_sealed(folder: RunFolder) -> None:
    assert folder.memo("m", "key", lambda: Estimate(1.0, 0.5, 2.0), Estimate) == Estimate(1.0, 0.5, 2.0)
    for values in (
        {"value": "1", "low": 0.0, "high": 1.0},
        {"value": 1.0},
        {},
        {"value": 1, "low": 0, "high": 1, "x": 1},
    ):
        write_sealed(folder.memos / "m-key.json", values)
        assert folder.memo("m", "key", lambda: Estimate(3.0, 3.0, 3.0), Estimate).value == 3.0
        folder.note("n", values)
        assert folder.noted("n", Estimate) is None
    assert sum("m-key.json is damaged" in text and "found out again" in text for text in folder.repairs) >= 3


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "run.json"
    write_text(path, "first")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_text(path, "second")
    assert path.read_text() == "first"


def test_a_published_folder_is_replaced_whole_or_not_at_all(folder: RunFolder) -> None:
    def one(place: Path) -> None:
        (place / "a").write_text("1")

    def other(place: Path) -> None:
        (place / "b").write_text("2")

    def killed(place: Path) -> None:
        (place / "c").write_text("3")
        raise KilledError

    folder.publish("deploy", one)
    folder.publish("deploy", other)
    with pytest.raises(KilledError):
        folder.publish("deploy", killed)
    assert [entry.name for entry in (folder.path / "deploy").iterdir()] == ["b"]


def test_one_process_at_a_time_holds_a_folder(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom pathlib import Path\nfrom distill.runtime.folder import RunFolder\n"
        "with RunFolder.hold(Path(sys.argv[1])):\n    print('held', flush=True)\n    sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "run")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(UserError, match=r"in use by another run.*--out"), RunFolder.hold(tmp_path / "run"):
            pass
        other.kill()
        other.wait()
    with RunFolder.hold(tmp_path / "run"):  # a killed process leaves no lock behind
        pass


def test_the_lock_is_given_back_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(KilledError), RunFolder.hold(tmp_path):
        raise KilledError
    with RunFolder.hold(tmp_path):
        pass


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"run folder .*file/run.*--out"), RunFolder.hold(tmp_path / "file" / "run"):
        pass


def test_digests() -> None:
    assert digest({"a": 1, "b": [2]}) == digest({"b": [2], "a": 1})
    assert len({digest(1), digest("1"), digest([1]), digest(1, 1), digest(None)}) == 5


def test_a_change_of_a_source_changes_its_hash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "some_pkg_of_mine"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "inner.py").write_text("A = 1")
    monkeypatch.syspath_prepend(tmp_path)
    found = sources("some_pkg_of_mine")
    assert sources("some_pkg_of_mine.inner") != found
    (package / "inner.py").write_text("A = 2")
    sources.cache_clear()
    assert sources("some_pkg_of_mine") != found


def test_a_file_of_a_package_counts_by_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, inside in (("pkg_flat", "a.py"), ("pkg_deep", "sub/a.py")):
        place = tmp_path / name / inside
        place.parent.mkdir(parents=True)
        (tmp_path / name / "__init__.py").write_text("")
        place.write_text("A = 1")
    monkeypatch.syspath_prepend(tmp_path)
    assert sources("pkg_flat") != sources("pkg_deep")


def test_the_versions_that_decide_are_known() -> None:
    assert {"torch", "onnx", "torch-pruning"} <= set(versions())
    assert "onnxruntime" in versions() or "onnxruntime-gpu" in versions()


def test_the_hash_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "empty").write_bytes(b"")
    assert file_sha256(tmp_path / "empty") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


# What is not what was written ----------------------------------------------------------------------------------------


def linked(path: Path) -> None:
    """Put a link to equal bytes in place of a file."""
    twin = path.with_name("twin")
    shutil.copyfile(path, twin)
    path.unlink()
    path.symlink_to(twin)


def folded(path: Path) -> None:
    path.unlink()
    path.mkdir()
    (path / "inside").write_text("")


WAYS: dict[str, Callable[[Path], Any]] = {
    "missing": Path.unlink,
    "empty": lambda path: path.write_bytes(b""),
    "shorter": lambda path: path.write_bytes(path.read_bytes()[:-3] if len(path.read_bytes()) > 3 else b""),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"\0"),
    "equally long": lambda path: path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:]),
    "a link": linked,
    "a folder": folded,
}


@pytest.mark.parametrize("name", ["made.txt", "stage.json"])
@pytest.mark.parametrize("how", WAYS)
def test_a_stage_that_was_altered_is_made_again_and_told(folder: RunFolder, how: str, name: str) -> None:
    said: list[str] = []
    folder.say = said.append
    place, _, _ = folder.stage("01-teacher", "key", maker("a"))
    WAYS[how](place / name)
    _, facts, reused = folder.stage("01-teacher", "key", maker("a"))
    assert (facts["text"], reused) == ("a", False)
    assert (place / "made.txt").read_text() == "a"
    assert not (place / "made.txt").is_symlink()
    assert folder.stage("01-teacher", "key", maker("b"))[2]
    if (how, name) != ("missing", "stage.json"):
        assert said == folder.repairs
        assert said[0].startswith(str(place / name))
        assert said[0].endswith("the stage is made again")


def test_what_the_user_put_beside_our_files_stays(folder: RunFolder) -> None:
    place, _, _ = folder.stage("01-teacher", "key", maker("a"))
    (place / "notes.txt").write_text("mine")
    (place / "mine").mkdir()
    assert folder.stage("01-teacher", "key", maker("b"))[2]
    (place / "made.txt").write_text("x")
    assert not folder.stage("01-teacher", "key", maker("a"))[2]
    assert (place / "notes.txt").read_text() == "mine"
    assert (place / "mine").is_dir()
    assert [one.name for one in folder.stages.iterdir()] == ["01-teacher"]


@pytest.mark.parametrize("what", ["file", "link"])
def test_a_stage_or_what_builds_it_may_be_no_folder(folder: RunFolder, tmp_path: Path, what: str) -> None:
    for name in ("01-teacher", ".01-teacher-key"):
        path = folder.stages / name
        if what == "file":
            path.write_text("")
        else:
            (tmp_path / name).mkdir()
            path.symlink_to(tmp_path / name)
    place, _, reused = folder.stage("01-teacher", "key", maker("a"))
    assert not reused
    assert (place / "made.txt").read_text() == "a"
    assert not place.is_symlink()


@pytest.mark.parametrize("how", [way for way in WAYS if way != "missing"])
def test_a_memo_that_was_altered_is_found_out_again(folder: RunFolder, how: str) -> None:
    folder.memo("m", "key", lambda: {"a": 1}, dict)
    WAYS[how](folder.memos / "m-key.json")
    assert folder.memo("m", "key", lambda: {"a": 2}, dict) == {"a": 2}
    assert folder.memo("m", "key", lambda: {"a": 3}, dict) == {"a": 2}
    assert len(folder.repairs) == 1


@given(
    st.dictionaries(
        st.text(), st.recursive(st.none() | st.booleans() | st.floats() | st.integers() | st.text(), st.lists)
    )
)
def test_a_seal_holds_for_any_json_and_breaks_for_another(values: dict[str, Any]) -> None:
    with TemporaryDirectory() as place:
        path = Path(place, "a.json")
        plain = write_sealed(path, {"x": values})
        assert repr(read_sealed(path)) == repr(plain)
        path.write_text(path.read_text().replace('"x"', '"y"', 1))
        with pytest.raises(AlteredError):
            read_sealed(path)


@pytest.mark.parametrize("values", [np.zeros((2, 3), np.float16), np.zeros((0, 3), np.float32), np.array(3)])
@pytest.mark.parametrize("how", [way for way in WAYS if way != "missing"])
def test_an_array_that_was_altered_is_computed_again(tmp_path: Path, how: str, values: Any) -> None:
    path, said = tmp_path / "a.safetensors", []
    sealed_array(path, lambda: values, said.append)
    kept = sealed_array(path, lambda: values + 1, said.append)
    assert (kept == values).all() and kept.dtype == values.dtype and not said
    WAYS[how](path)
    assert (sealed_array(path, lambda: values + 1, said.append) == values + 1).all()
    assert len(said) == 1
    assert (sealed_array(path, lambda: values, said.append) == values + 1).all()
    assert len(said) == 1
