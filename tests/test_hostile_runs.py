"""Decisions, run folders, reports and lists of a stranger, given to the command line: refused, and nothing is run."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto
from test_wrong_inputs import call, forget
from wrong import damage
from wrong.corpus import write_config
from wrong.hostile import BOMB, DECISIONS, DOCUMENTS, EVIL, TOUCH, pickled

from distill.benchmarks import onnxruntime_wheels as wheels
from distill.benchmarks.timing.callables import TorchCallable
from distill.sealed_files import write_sealed

COMMAND = ("run", "config.yaml", "--smoke", "--out", "run")
TEACHER = Path("run/stages/01-teacher")
INSTALLED = cache(wheels._wheels)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the tiny run's files, and the run that it left in ``run``."""
    folder = tmp_path_factory.mktemp("finished")
    write_config(folder, {})
    (folder / "evil.py").write_text(EVIL)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "path", list(sys.path))
        assert call(*COMMAND) == 0
    forget(folder)
    return folder


@pytest.fixture
def place(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Give the current folder, which holds a copy of a finished run."""
    folder = tmp_path / "place"
    shutil.copytree(finished, folder)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(wheels, "_wheels", INSTALLED)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield folder
    forget(folder)
    assert not (folder / "ran").exists()


def said(capfd: pytest.CaptureFixture[str]) -> str:
    out, err = capfd.readouterr()
    assert "Traceback" not in out + err
    assert "root:" not in out + err
    return " ".join(err.split())


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize("name", DECISIONS)
def test_decisions_set_only_what_a_search_may_choose(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    decisions, says = DECISIONS[name]
    Path("then.json").write_text(json.dumps({**json.loads(Path("run/run.json").read_text()), "decisions": decisions}))
    assert call("run", "config.yaml", "--smoke", "--out", "other", "--decisions", "then.json") == 2
    assert says in (text := said(capfd)), text
    assert "--decisions then.json" in text
    assert not Path("other").exists()


def written(name: str, change: Callable[[Any], Any]) -> Callable[[], Any]:
    """Change a value of JSON in a file of the teacher's stage."""

    def do() -> None:
        path = TEACHER / name
        path.write_text(json.dumps(change(json.loads(path.read_text()))))

    return do


def instead(name: str, by: Callable[[Path], Any]) -> Callable[[], Any]:
    """Put what ``by`` makes in the place of a file of the teacher's stage."""

    def do() -> None:
        (TEACHER / name).unlink()
        by(TEACHER / name)

    return do


def reads_outside(nested: bool) -> Callable[[], Any]:
    """Let the teacher's graph take a weight from /etc/passwd, at the top or where nobody looks."""

    def do() -> None:
        (TEACHER / "data").symlink_to("/etc/passwd")
        model = onnx.load(TEACHER / "model.onnx")
        tensor = TensorProto(name="outside", data_type=TensorProto.UINT8, dims=[16])
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value="data")
        if nested:
            node = model.graph.node.add(op_type="Constant", output=["unread"])
            node.attribute.add(name="value", type=onnx.AttributeProto.TENSOR).t.CopyFrom(tensor)
        else:
            model.graph.initializer.append(tensor)
        (TEACHER / "model.onnx").write_bytes(model.SerializeToString())

    return do


CHANGES: dict[str, Callable[[], Any]] = {
    "another function": written(
        "model.json", lambda about: {**about, "model": "os:system", "args": {"command": TOUCH}}
    ),
    "a file of its own": written("model.json", lambda about: {**about, "model": "./evil.py:make"}),
    "other arguments": written("model.json", lambda about: {**about, "args": {"features": 2**40}}),
    "another seed": written("model.json", lambda about: {**about, "seed": 5}),
    "another key": written("model.json", lambda about: {**about, "weights": "/etc/passwd"}),
    "no structure": written("model.json", lambda about: {k: v for k, v in about.items() if k != "structure"}),
    "a structure that is none": written("model.json", lambda about: {**about, "structure": [1]}),
    "a module that is none": written("model.json", lambda about: {**about, "structure": {"format": 1, "modules": 5}}),
    "a list": written("model.json", lambda about: [about]),
    "nested too deeply": instead("model.json", lambda path: path.write_text(BOMB)),
    "a pipe": instead("model.json", os.mkfifo),
    "a link out": instead("model.json", lambda path: path.symlink_to("/etc/passwd")),
    "weights in a pickle": instead("model.safetensors", pickled),
    "weights in a pipe": instead("model.safetensors", os.mkfifo),
    "a graph in a pipe": instead("model.onnx", os.mkfifo),
    "a graph in a device": instead("model.onnx", lambda path: path.symlink_to("/dev/zero")),
    "a graph in a pickle": instead("model.onnx", pickled),
    "a graph that reads outside": reads_outside(nested=False),
    "a graph that reads outside, deeper": reads_outside(nested=True),
    "facts that are none": written("stage.json", lambda known: {**known, "facts": []}),
    "facts without figures": written("stage.json", lambda known: {**known, "facts": {}}),
    "words for figures": written(
        "stage.json", lambda known: {**known, "facts": {**known["facts"], "macs": "os:system"}}
    ),
    "a stage that is nested too deeply": instead("stage.json", lambda path: path.write_text(BOMB)),
    "a stage in a pipe": instead("stage.json", os.mkfifo),
}


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize("name", CHANGES)
def test_a_run_folder_chooses_no_code(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    """What was changed is refused, or made again."""
    CHANGES[name]()
    code = call(*COMMAND)
    text = said(capfd)
    assert code in (0, 2), text
    assert code == 0 or ("run/stages/01-teacher" in text and "damaged" in text), text
    assert b"root:" not in b"".join(path.read_bytes() for path in Path("run").rglob("*.onnx") if path.is_file())


def test_a_journal_of_trials_chooses_only_what_a_search_may(place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_config(place, {"search": {"trials": 1}, "distill": {"epochs": 1, "control": False}})
    assert call(*COMMAND) == 0
    journal = Path("run/study.journal")
    mine, chosen = journal.read_text(), json.loads(Path("run/run.json").read_text())["decisions"]["search"]["chosen"]
    for text in (mine.replace("distill.temperature", "export.load_with"), '{"op_code": 99, "worker_id": []}\n'):
        journal.write_text(text)
        assert call(*COMMAND) == 0
        assert "study.journal is not what the search left: its trials are repeated" in said(capfd)
        assert json.loads(Path("run/run.json").read_text())["decisions"]["search"]["chosen"] == chosen


OPTIONS = {
    "decisions": ("run", "config.yaml", "--smoke", "--out", "other", "--decisions", "FILE"),
    "rejudge": ("bench", "--rejudge", "FILE"),
    "merge": ("bench", "--merge", "FILE"),
    "import": ("bench", "--import", "FILE"),
    "manifest": ("bench", "--manifest", "FILE"),
    "accept": ("bench", "--rejudge", "run/run.json", "--accept", "FILE"),
    "baseline": ("bench", "run/deploy/model.onnx", "--baseline", "FILE"),
    "configuration": ("validate", "FILE"),
}


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("name", DOCUMENTS)
def test_a_document_is_read_and_no_more(name: str, option: str, capfd: pytest.CaptureFixture[str]) -> None:
    DOCUMENTS[name](Path("file.json"))
    code = call(*("file.json" if word == "FILE" else word for word in OPTIONS[option]))
    text = said(capfd)
    assert code in (2, 4, 5), text
    assert len(text) < 5000


def linked_into(place: Path, names: Sequence[str], outside: Path) -> None:
    """Lay links of these names that lead to precious files outside of the run."""
    for name in names:
        (outside / name).write_text("precious")
        (place / name).unlink(missing_ok=True)
        (place / name).symlink_to(outside / name)


def unfinished(outside: Path) -> None:
    """Leave a folder of a killed attempt, in which every file that is to be written is a link."""
    key = json.loads((TEACHER / "stage.json").read_text())["key"]
    shutil.rmtree(TEACHER)
    building = TEACHER.with_name(f".{TEACHER.name}-{key}")
    building.mkdir()
    linked_into(building, ("model.json", "model.onnx", "core.onnx", "model.safetensors", "stage.json"), outside)


def folder_in_the_way(outside: Path) -> None:
    """Let what was cut off in the middle of a replacement be a folder outside."""
    (outside / "mine.txt").write_text("precious")
    for old in (TEACHER.with_name(f".{TEACHER.name}.old"), Path("run/.deploy.old")):
        old.symlink_to(outside)


LINKS = {
    "into the run": lambda outside: linked_into(
        Path("run"), ("run.json", "report.html", "report.md", "progress.json"), outside
    ),
    "in an unfinished stage": unfinished,
    "of a replaced folder": folder_in_the_way,
}


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize("kind", LINKS)
def test_a_link_in_a_run_folder_is_never_followed_to_write(kind: str, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    LINKS[kind](outside)
    assert call(*COMMAND) == 0
    assert all(path.read_text() == "precious" for path in outside.iterdir())
    assert any(outside.iterdir())


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize("name", ["stages", "cache", "decisions"])
def test_a_linked_folder_of_a_run_is_refused(name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    outside = tmp_path / "outside"
    Path("run", name).rename(outside)
    Path("run", name).symlink_to(outside)
    before = sorted(path.name for path in outside.rglob("*"))
    assert call(*COMMAND) == 2
    assert f"run/{name}: is a link" in said(capfd)
    assert sorted(path.name for path in outside.rglob("*")) == before


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 4
    path.write_bytes(content)


LOSSES: dict[str, Callable[[Path], Any]] = {
    **{kind: partial(damage.in_its_place, kind=kind) for kind in damage.IN_PLACE},
    "cut": _cut,
    "a bit": _bit,
    "empty": lambda path: path.write_bytes(b""),
}


def _lost(names: Sequence[str], place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Damage every file of a run, one at a time, in these ways by turns; the same command makes the same model."""
    whole = Path("run/deploy/model.onnx").read_bytes()
    shutil.copytree("run", "whole")
    files = sorted(path for path in Path("whole").rglob("*") if path.is_file() and path.name != ".lock")
    assert len(files) >= 12
    for number, file in enumerate(files):
        shutil.rmtree("run")
        shutil.copytree("whole", "run")
        name = names[number % len(names)]
        LOSSES[name](Path("run") / file.relative_to("whole"))
        code, said_of = call(*COMMAND), f"{file}: {name}"
        text = said(capfd)
        assert code in (0, 2), (said_of, text)
        if code:
            assert f"run/{file.relative_to('whole')}" in text, (said_of, text)
        else:
            assert Path("run/deploy/model.onnx").read_bytes() == whole, said_of


def test_a_file_of_a_run_that_is_damaged_is_made_again(place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    _lost(list(LOSSES), place, capfd)


@pytest.mark.slow
@pytest.mark.parametrize("name", LOSSES)
def test_every_file_of_a_run_that_is_damaged_is_made_again(
    name: str, place: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    _lost([name], place, capfd)


@pytest.mark.usefixtures("place")
def test_a_pipe_in_a_run_folder_is_replaced_and_not_waited_for() -> None:
    for name in ("progress.json", "run.json"):
        Path("run", name).unlink()
        os.mkfifo(Path("run", name))
    assert call(*COMMAND) == 0
    assert json.loads(Path("run/run.json").read_text())["schema"]


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize("change", [{"facts": 5}, {"files": [1]}, {"files": {"a": 1}}, {"key": None}])
def test_a_record_of_another_form_is_none_although_it_is_sealed(change: dict[str, Any]) -> None:
    path = TEACHER / "stage.json"
    values = json.loads(path.read_text()) | change
    del values["seal"]
    write_sealed(path, values)
    write_sealed(Path("run/decisions/export.json"), {"key": "k", "files": [1]})
    assert call(*COMMAND) == 0
    assert isinstance(json.loads(path.read_text())["facts"], dict)


@pytest.mark.usefixtures("place")
def test_a_manifest_neither_waits_nor_grows(capfd: pytest.CaptureFixture[str]) -> None:
    os.mkfifo("q.npz")
    model = "run/deploy/model.onnx"
    row = f"model: {model}, baseline: {model}"
    Path("gate.yaml").write_text(f"models: [{{{row}, inputs: q.npz}}]")
    assert call("bench", "--manifest", "gate.yaml") == 2
    assert "a pipe or a device" in said(capfd)
    bomb = "\n".join(["a0: &a0 [1]", *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 10))])
    Path("gate.yaml").write_text(f"{bomb}\nmodels: [{{{row}, name: *a9}}]")
    assert call("bench", "--manifest", "gate.yaml") == 2
    assert len(said(capfd)) < 5000


def test_a_value_on_the_command_line_is_plain_too(place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for value in (f"!!python/object/apply:os.system [{TOUCH}]", "[" * 5000, "0000-99-99"):
        assert call("validate", "config.yaml", "--set", f"teacher.args={value}") == 2
        assert "--set" in said(capfd)


def test_a_file_is_no_function_whatever_its_name(place: Path) -> None:
    """As where a pattern of the shell, or a manifest, names a stranger's file."""
    assert TorchCallable.named("evil.py:make") == TorchCallable("evil.py:make")
    shutil.copyfile("run/deploy/model.onnx", "evil.py:make")
    assert TorchCallable.named("evil.py:make") is None
    assert TorchCallable.named(Path("other.py:make")) is None
    assert TorchCallable.named("eager:evil.py:make") == TorchCallable("evil.py:make")


@pytest.fixture(scope="module")
def measured(finished: Path) -> str:
    """Return the report of a gate that was really timed."""
    files = [str(finished / place) for place in ("run/deploy/model.onnx", "run/stages/01-teacher/model.onnx")]
    timing = ("--time-identical", "--pairs", "2", "--seconds", "0.02", "--max-regression", "1000%")
    assert call("bench", files[0], "--baseline", files[1], *timing, "--out", str(finished / "report.json")) in (0, 1)
    return (finished / "report.json").read_text()


@pytest.mark.parametrize("value", [None, -1, 2**62, "x", [], {}, [[]]])
@pytest.mark.parametrize("key", ["pairs", "rows", "batch", "threads", "shapes", "arms"])
def test_a_report_with_other_values_inside_is_damaged_or_read(
    key: str, value: Any, measured: str, place: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    report = json.loads(measured)
    report["cases"][0][key] = value
    Path("report.json").write_text(json.dumps(report))
    assert call("bench", "--rejudge", "report.json") in (0, 1, 2)
    said(capfd)
