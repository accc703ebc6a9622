"""Files of somebody who means harm: nothing is read outside a model's folder, and no name acts on what shows it."""

from __future__ import annotations

import os
import re
import shutil
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from distill.cli import main

SECRET = b"SECRET-OF-SOMEBODY-ELSE;" * 16
WEIGHTS = np.linspace(-1, 1, 96, dtype=np.float32).reshape(32, 3)
QUICK = ("--seconds", "0.02", "--pairs", "2")


def typed(*words: object) -> int:
    with pytest.raises(SystemExit) as ended:
        main(list(map(str, words)))
    assert isinstance(ended.value.code, int)
    return ended.value.code


def model(location: str, where: str = "initializer", **more: object) -> ModelProto:
    """Make a linear layer [n, 32] -> [n, 3] whose weight lies in another file."""
    weight = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[32, 3], data_location=TensorProto.EXTERNAL)
    for key, value in {"location": location, "length": WEIGHTS.nbytes, **more}.items():
        weight.external_data.add(key=key, value=str(value))
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", size]) for name, size in (("x", 32), ("y", 3)))
    nodes, initializers = [helper.make_node("MatMul", ["x", "w"], ["y"])], [weight]
    if where != "initializer":
        constant = helper.make_node("Constant", [], ["w"])
        constant.attribute.add(name="value", type=onnx.AttributeProto.TENSOR).t.CopyFrom(weight)
        nodes, initializers = [constant, *nodes], []
    if where == "branch":
        then, other = (helper.make_graph(nodes, name, [], [y]) for name in ("then", "else"))
        initializers = [numpy_helper.from_array(np.array(True), "yes")]
        nodes = [helper.make_node("If", ["yes"], ["y"], then_branch=then, else_branch=other)]
    graph = helper.make_graph(nodes, "g", [x], [y], initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@dataclass(frozen=True)
class Hostile:
    """A model in ``home``, its data at a location that ``lay`` prepares; the secret lies in ``outside``."""

    name: str
    location: str = "data"
    lay: Callable[[Path], object] = lambda home: None
    where: str = "initializer"
    offset: int = 0


def linked(to: str) -> Callable[[Path], object]:
    return lambda home: (home / "data").symlink_to(to.replace("HOME", str(home)))


def chained(home: Path) -> None:
    (home / "one").symlink_to("../outside/secret")
    (home / "data").symlink_to("one")


def _socket(home: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("home/data")


def _memory(home: Path) -> None:
    (home / "*/_ORT_MEM_ADDR_").mkdir(parents=True)
    (home / "*/_ORT_MEM_ADDR_/*").write_bytes(WEIGHTS.tobytes())


def _linked_model_elsewhere(home: Path) -> None:
    """Lay the model in another tree than the one that its data are linked into."""
    (home.parent / "blobs").mkdir()
    (home / "data").symlink_to("../outside/secret")


CASES = [
    Hostile("above", "../outside/secret"),
    Hostile("above-and-back", "../home/../outside/secret"),
    Hostile("above-behind-a-folder", "sub/../../outside/secret", lambda home: (home / "sub").mkdir()),
    Hostile("absolute", "{outside}/secret"),
    Hostile("absolute-proc", "/proc/self/environ"),
    Hostile("windows-above", "..\\outside\\secret"),
    Hostile("windows-drive", "C:\\secret"),
    Hostile("windows-share", "\\\\host\\share\\secret"),
    Hostile("link-relative", lay=linked("../outside/secret")),
    Hostile("link-absolute", lay=linked("HOME/../outside/secret")),
    Hostile("link-to-a-link", lay=chained),
    Hostile("link-of-a-folder", "sub/secret", lambda home: (home / "sub").symlink_to("../outside")),
    Hostile("link-and-above", "sub/../secret", lambda home: (home / "sub").symlink_to("../outside/deep")),
    Hostile("link-to-proc", lay=linked("/proc/self/environ")),
    Hostile("link-to-proc-root", lay=linked("/proc/self/cwd/outside/secret")),
    Hostile("link-dangling", lay=linked("../outside/none")),
    Hostile("link-loop", lay=linked("data")),
    Hostile("pipe", lay=lambda home: os.mkfifo(home / "data")),
    Hostile("link-to-a-pipe", lay=lambda home: (os.mkfifo(home / "pipe"), (home / "data").symlink_to("pipe"))),
    Hostile("socket", lay=_socket),
    Hostile("folder", lay=lambda home: (home / "data").mkdir()),
    Hostile("zero-byte", "da\0ta"),
    Hostile("nothing", ""),
    Hostile("memory", "*/_ORT_MEM_ADDR_/*", _memory, offset=4096),
    Hostile("constant", lay=linked("../outside/secret"), where="constant"),
    Hostile("constant-above", "../outside/secret", where="constant"),
    Hostile("branch", lay=linked("../outside/secret"), where="branch"),
    Hostile("branch-above", "../outside/secret", where="branch"),
    Hostile("model-is-a-link-elsewhere", lay=_linked_model_elsewhere),
    Hostile("behind-its-end", lay=lambda home: (home / "data").write_bytes(b"short")),
    Hostile("offset-behind-its-end", lay=lambda home: (home / "data").write_bytes(b"x" * 400), offset=2**62),
    Hostile("offset-below-zero", lay=lambda home: (home / "data").write_bytes(b"x" * 400), offset=-8),
]
VERBS: dict[str, tuple[str, ...]] = {
    "bench": ("bench", "home/model.onnx", *QUICK, "--out", "out/r.json"),
    "baseline": ("bench", "own.onnx", "--baseline", "home/model.onnx", *QUICK),
    "saved": ("bench", "home/model.onnx", "--save-baseline", "out/base.json", *QUICK),
    "bundle": ("bench", "home/model.onnx", "--export-runner", "out/bundle"),
    "elsewhere": ("bench", "home/model.onnx", "--measure", "cp -rLt out", *QUICK),
    "quantize": ("quantize", "home/model.onnx", "--data", "rows.npz", "--out", "out/q.onnx", "--max-drop", "1", *QUICK),
}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Give the current folder, with a home for the model, a secret outside of it, rows, and a place for outputs."""
    monkeypatch.chdir(tmp_path)
    for name in ("GITHUB_ACTIONS", "GITHUB_STEP_SUMMARY"):
        monkeypatch.delenv(name, raising=False)
    for folder in ("home", "outside/deep", "out"):
        Path(folder).mkdir(parents=True)
    Path("outside/secret").write_bytes(SECRET)
    rng = np.random.default_rng(0)
    np.savez("rows.npz", x=rng.standard_normal((60, 32)).astype(np.float32), labels=np.arange(60) % 3)
    whole = model("data")
    whole.graph.initializer[0].CopyFrom(numpy_helper.from_array(WEIGHTS, "w"))
    onnx.save(whole, "own.onnx")
    yield tmp_path


def leaked(folder: Path) -> list[Path]:
    """Return the files of a folder that hold the secret, however it was cut."""
    return [path for path in folder.rglob("*") if path.is_file() and SECRET[:24] in path.read_bytes()]


def test_the_corpus_is_large_and_its_names_differ() -> None:
    assert len({case.name for case in CASES}) == len(CASES) >= 30


@pytest.mark.parametrize("case", [pytest.param(case, id=case.name) for case in CASES])
def test_nothing_outside_a_models_folder_is_read(case: Hostile, place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    location = case.location.format(outside=place / "outside") if "{" in case.location else case.location
    case.lay(place / "home")
    file = place / "home/model.onnx"
    if case.name.startswith("model-is-a-link"):
        file.symlink_to("../blobs/model")
    file.write_bytes(model(location, case.where, offset=case.offset).SerializeToString())
    for verb, words in VERBS.items():
        code = typed(*words)
        said = "".join(capfd.readouterr())
        assert code == 2, (verb, said)
        assert "home/model.onnx" in said
        assert "Traceback" not in said
        assert "SECRET" not in said
        assert leaked(place / "out") == [], verb
        assert not (place / "out/q.onnx").exists()


@pytest.mark.parametrize("kind", ["plain", "cache", "linked-folder", "linked-beside", "deeper"])
def test_data_within_the_models_folder_or_tree_are_read(
    kind: str, place: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A cache of models links both the model and its data into one tree."""
    home, location = place / "home", "sub/data" if kind == "deeper" else "data"
    content = model(location).SerializeToString()
    if kind == "cache":
        (place / "blobs").mkdir()
        (place / "blobs/abc").write_bytes(content)
        (place / "blobs/def").write_bytes(WEIGHTS.tobytes())
        (home / "model.onnx").symlink_to("../blobs/abc")
        (home / "data").symlink_to("../blobs/def")
    else:
        if kind == "linked-folder":
            shutil.rmtree(home)
            (place / "real").mkdir()
            home.symlink_to("real")
        (home / "sub").mkdir()
        (home / "model.onnx").write_bytes(content)
        (home / ("real" if kind == "linked-beside" else location)).write_bytes(WEIGHTS.tobytes())
        if kind == "linked-beside":
            (home / "data").symlink_to("real")
    monkeypatch.setattr("distill.single_stage.quantize_model.why_unmeasurable", lambda _: "not timed")
    for verb in ("saved", "bundle", "quantize") if kind == "cache" else ("bundle", "quantize"):
        assert typed(*VERBS[verb]) == 0, capfd.readouterr().err
    bundled = next((place / "out/bundle/models").rglob("data"))
    assert bundled.read_bytes() == WEIGHTS.tobytes()
    assert not bundled.is_symlink()
    if kind == "cache":
        assert typed("bench", "home/model.onnx", "--baseline", "out/base.json", *QUICK) == 0


EVIL = (
    "evil\n::error title=x::planted\r\x1b[31m\x1b]8;;http://x.y\x07##[error]planted\u202e\x9b2J\u200b"
    "[red][/]|<script>![a](http://x.y)`x` ::set-output name=a::b"
)


def harmless(text: str) -> None:
    """Find no escape sequence, and no command but those that `bench` gives."""
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b\u202e]", text)
    assert "##[" not in text
    lines = [line.lstrip() for line in text.splitlines()]
    assert [line for line in lines if line.startswith("::") and " title=distill bench::" not in line] == []
    assert "Traceback" not in text


def renamed(layers: int) -> ModelProto:
    """Make a chain of linear layers in which everything has a name that means harm."""
    names = [f"{EVIL}{number}" for number in range(layers + 1)]
    nodes, weights = [], []
    for number in range(layers):
        weights.append(numpy_helper.from_array(np.eye(32, dtype=np.float32), f"w{names[number]}"))
        inner = [names[number], f"w{names[number]}"]
        nodes.append(helper.make_node("MatMul", inner, [names[number + 1]], name=f"n{names[number]}"))
    x, y = (helper.make_tensor_value_info(names[at], TensorProto.FLOAT, [EVIL, 32]) for at in (0, -1))
    graph = helper.make_graph(nodes, EVIL, [x], [y], weights)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8, producer_name=EVIL)
    helper.set_model_props(made, {"target": EVIL, "isa": EVIL})
    return made


def test_names_act_on_nothing_that_bench_shows(
    place: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", "out/step.md")
    evil = EVIL.replace("/", "∕")[:80]
    for name, layers in ((f"{evil}slow.onnx", 60), (f"{evil}.onnx", 1)):
        Path(name).write_bytes(renamed(layers).SerializeToString())
    words = ("bench", f"{evil}slow.onnx", "--baseline", f"{evil}.onnx", "--max-regression", "50%")
    written = ("--out", "out/r.json", "--junit", "out/j.xml")
    assert typed(*words, *written, *QUICK) == 1
    harmless("".join(capfd.readouterr()))
    assert typed(*words, "--json", *QUICK) == 1
    harmless("".join(capfd.readouterr()))
    assert typed("bench", f"{evil}.onnx", "--export-runner", f"out/{evil}") == 0
    assert typed("bench", f"{evil}.onnx", "--save-baseline", f"out/{evil}.json", *QUICK) == 0
    assert typed("bench", f"{evil}.onnx", "--dim", f"{evil}=3", *QUICK) == 2
    assert typed("bench", f"{evil}none.onnx", *QUICK) == 2
    assert typed("bench", f"--{evil}") == 2
    harmless("".join(capfd.readouterr()))
    junit = Path("out/j.xml").read_text(encoding="utf-8")
    assert ElementTree.fromstring(junit).get("failures") == "1"
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b\u202e]", junit)
    summary = Path("out/step.md").read_text(encoding="utf-8")
    assert "<script>" not in summary
    assert "http://" not in summary
    assert not re.search(r"(?<!\\)`|\]\(", summary)
    harmless(summary)


def test_names_act_on_nothing_that_quantize_shows(place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    evil = EVIL.replace("/", "∕")[:60]
    Path(f"{evil}.onnx").write_bytes(renamed(2).SerializeToString())
    rows = np.random.default_rng(0).standard_normal((60, 32)).astype(np.float32)
    np.savez("evil.npz", **{f"{EVIL}0": rows, "labels": np.arange(60) % 32})
    words = ("quantize", f"{evil}.onnx", "--data", "evil.npz", "--max-drop", "1", "--sensitivity", *QUICK)
    assert typed(*words, "--out", f"out/{evil}.onnx", "--plot", "out/p.svg", "--record", "out/r.json") == 0
    harmless("".join(capfd.readouterr()))
    plot = Path("out/p.svg").read_text(encoding="utf-8")
    assert "<script" not in plot
    assert ElementTree.fromstring(plot) is not None
    assert typed(*words, "--labels", evil, "--out", "out/q.onnx") == 2
    assert typed("quantize", f"{evil}.onnx", "--data", "rows.npz", "--out", "out/q.onnx") == 2
    harmless("".join(capfd.readouterr()))
