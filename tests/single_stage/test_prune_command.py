"""The verb `prune` as it is typed: what is written, what is told, what is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from prune_nets import SHAPE, follows, forget, labels_of, rows, settle, skip_exports, typed, use_a_clock

from distill.benchmarks import resolve_target
from distill.export import run_onnx
from distill.prune import count, load
from distill.references.models import build

FILES = {"model.onnx", "model.safetensors", "model.json", "prune.json", "report.md", "report.html"}
UNTIMED = ("--no-timing",)
BINARY = ("--output", "binary")
X = rows(5, seed=1)


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Give the current folder, which holds models and rows."""
    settle(tmp_path, monkeypatch)
    yield tmp_path
    forget()
    assert not [one.name for one in tmp_path.iterdir() if one.name.endswith(".partial")]


@pytest.fixture
def unexported(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let graphs be empty: what is in them is no matter here."""
    skip_exports(monkeypatch)


def said_of(capsys: pytest.CaptureFixture[str]) -> str:
    """Return what was told, on one line."""
    return " ".join(capsys.readouterr().out.split())


def read(out: str = "out") -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path(out, "prune.json").read_text())
    return found


def answers(model: torch.nn.Module) -> np.ndarray[Any, Any]:
    with torch.no_grad():
        found: np.ndarray[Any, Any] = model(torch.from_numpy(X)).numpy()
    return found


@pytest.mark.parametrize("goal", ["macs", "parameters"])
def test_a_share_is_reached_and_everything_is_written(goal: str, capsys: Any) -> None:
    assert typed("--model", "net.py:make", f"--{goal}", 0.5, "--round-to", 2, "--out", "out", *SHAPE, *UNTIMED) == 0
    said = said_of(capsys)
    assert "wrote out" in said
    assert "importance: group_norm" in said
    assert "its accuracy needs --data" in said
    assert {one.name for one in Path("out").iterdir()} == FILES
    record = read()["record"]
    assert record["asked"] == [goal, 0.5]
    assert record["achieved"] == pytest.approx(0.5, abs=0.06)
    assert record[f"{goal}_after"] == getattr(count(load("out", trust="net.py:make"), (torch.from_numpy(X),), {}), goal)
    graph = run_onnx(onnx.load("out/model.onnx"), [{"input": X}])
    np.testing.assert_allclose(graph, answers(load("out", trust="net.py:make")), atol=1e-4)


@pytest.mark.usefixtures("unexported")
def test_a_fresh_process_rebuilds_the_same_answers() -> None:
    words = ("--arg", "width=48", "--ratio", 0.5, "--out", "out", *SHAPE, *UNTIMED)
    assert typed("--model", "net:make", *words) == 0
    code = (
        "import numpy, torch\nfrom distill.prune import load\n"
        "model = load('out', trust='net:make')\nassert not model.training\n"
        "with torch.no_grad(): numpy.save('there.npy', model(torch.from_numpy(numpy.load('x.npy'))).numpy())"
    )
    np.save("x.npy", X)
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
    assert np.array_equal(np.load("there.npy"), answers(load("out", trust="net:make")))
    Path("elsewhere").mkdir()
    Path("net.py").rename("elsewhere/moved.py")
    assert np.array_equal(answers(load("out", "elsewhere/moved.py:make")), np.load("there.npy"))


@pytest.mark.usefixtures("unexported")
def test_rows_choose_teach_and_judge(capsys: Any) -> None:
    values = rows(240)
    np.savez("labelled.npz", x=values, kind=labels_of(build("net.py:make"), values))
    words = ("--data", "labelled.npz", "--labels", "kind", "--epochs", 2, "--steps", 2, *UNTIMED, "--json")
    assert typed("--model", "net.py:make", "--ratio", 0.4, "--out", "out", *words) == 0
    told = capsys.readouterr().out
    found = json.loads(told)
    assert found == read()
    assert found["record"]["importance"] == "gauss_newton"
    assert found["epochs"] == 2
    quality = found["quality"]
    assert (quality["rows"], quality["labelled"], quality["apart"], quality["before"]) == (48, True, True, 1.0)
    assert quality["drop"]["low"] <= quality["before"] - quality["after"] <= quality["drop"]["high"]
    assert len(found["record"]["decisions"]) == 2


@pytest.mark.usefixtures("unexported")
def test_without_labels_changed_answers_are_counted(capsys: Any) -> None:
    assert typed("--model", "net.py:one", "--ratio", 0.5, "--data", "rows.npz", *BINARY, "--out", "out", *UNTIMED) == 0
    said = said_of(capsys)
    assert "answers, 40 rows" in said
    assert "the 40 rows that were learnt from also judge" in said
    assert "--epochs 10" in said
    assert read()["quality"]["labelled"] is False


def test_several_inputs_have_names_and_a_dict_holds_the_logits() -> None:
    words = ("--input", "image=1,8,8", "--input", "numbers=6", "--ratio", 0.5, "--out", "out", *UNTIMED)
    assert typed("--model", "net.py:Two", *words) == 0
    assert [value.name for value in onnx.load("out/model.onnx").graph.input] == ["image", "numbers"]
    assert read()["record"]["widths"]["head"] == [3, 3]


@pytest.mark.usefixtures("unexported")
def test_the_logits_are_where_the_user_says() -> None:
    assert typed("--model", "net.py:Boxes", "--logits", 0, "--ratio", 0.5, "--out", "out", *SHAPE, *UNTIMED) == 0
    assert read()["record"]["widths"]["inner.7"] == [4, 4]


@pytest.mark.usefixtures("unexported")
def test_an_ignored_module_keeps_its_width_and_the_output_may_be_named() -> None:
    words = ("--ignore", "0", "--ignore", "7", "--ratio", 0.5, "--out", "out", *SHAPE, *UNTIMED)
    assert typed("--model", "net.py:make", *words) == 0
    widths = read()["record"]["widths"]
    assert (widths["0"], widths["3"], widths["7"]) == ([32, 32], [32, 16], [4, 4])


@pytest.mark.usefixtures("unexported")
def test_weights_are_the_users_own() -> None:
    model = build("net.py:make", {"classes": 4})
    torch.nn.init.constant_(model.get_submodule("7").bias, 7.0)  # type: ignore[arg-type]
    torch.save(model.state_dict(), "mine.pt")
    words = ("--weights", "mine.pt", "--ratio", 0.3, "--out", "out", *SHAPE, *UNTIMED)
    assert typed("--model", "net.py:make", *words) == 0
    assert torch.equal(load("out", trust="net.py:make").get_submodule("7").bias, torch.full((4,), 7.0))  # type: ignore[arg-type]


DRAWN = """
import torch
from torch import nn


def drawn(seed: int = -1) -> nn.Module:
    if seed >= 0:
        torch.manual_seed(seed)
    first, second, head = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 32, 3), nn.Linear(512, 4)
    return nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), nn.Flatten(), head)
"""


@pytest.mark.usefixtures("unexported")
def test_weights_that_nobody_trained_are_told(capsys: Any) -> None:
    Path("drawn.py").write_text(DRAWN)
    words = ("--model", "drawn.py:drawn", "--ratio", 0.3, "--input", "input=3,8,8", *UNTIMED)
    assert typed(*words, "--out", "random") == 0
    assert "random (0.weight differs with another seed)" in said_of(capsys)
    assert any("are random" in text for text in read("random")["warnings"])
    torch.save(build("drawn.py:drawn").state_dict(), "mine.pt")
    for trained in (("--weights", "mine.pt"), ("--arg", "seed=3")):  # a function that gives equal weights may load some
        assert typed(*words, *trained, "--out", trained[0].strip("-")) == 0
        assert "are random" not in said_of(capsys)


@pytest.mark.usefixtures("unexported")
def test_a_model_that_is_right_by_chance_only_is_told(capsys: Any) -> None:
    values = rows(240)
    right = labels_of(build("net.py:make"), values)
    wrong = np.where(np.arange(240) % 2, (right + 1) % 4, (right + 2) % 4)
    for name, labels, told in (("wrong", wrong, True), ("right", right, False)):
        np.savez(f"{name}.npz", x=values, labels=labels)
        assert typed("--model", "net.py:make", "--ratio", 0.4, "--out", name, "--data", f"{name}.npz", *UNTIMED) == 0
        assert ("no more than whoever always names the most frequent class" in said_of(capsys)) is told


@pytest.mark.usefixtures("unexported")
def test_zeros_are_written_and_not_called_faster(capsys: Any) -> None:
    words = ("--sparsity", "2:4", "--data", "rows.npz", "--epochs", 1, "--ratio", 0.25, "--out", "out", *UNTIMED)
    assert typed("--model", "net.py:make", *words) == 0
    assert "CPU kernels compute with the zeros: expect no speed there" in said_of(capsys)
    assert follows("2:4", load("out", trust="net.py:make").get_submodule("3").weight)  # type: ignore[arg-type]
    assert read()["sparse"]["zeros"] * 2 == read()["sparse"]["weights"]


@pytest.mark.usefixtures("unexported")
def test_a_speed_is_measured_and_reported(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    use_a_clock(monkeypatch)
    assert typed("--model", "net.py:make", "--speedup", 2, "--out", "out", *SHAPE) == 0
    found = read()
    assert found["record"]["achieved"] >= 1.9
    assert found["latency"]["speedup"]["low"] < found["latency"]["speedup"]["value"]
    assert "p50, batch 1 1.00 ms" in said_of(capsys)


@pytest.mark.usefixtures("unexported")
def test_whole_blocks_go_where_rows_can_tell(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    use_a_clock(monkeypatch, seconds=lambda macs: 1e-4 + macs * 1e-9)
    words = ("--speedup", 1.5, "--data", "rows.npz", "--out", "out")
    assert typed("--model", "net.py:Blocks", *words) in (0, 1)  # what goes is another test's
    assert "importance: gauss_newton" in said_of(capsys)


@pytest.mark.usefixtures("unexported")
@pytest.mark.parametrize(
    ("ratio", "words", "says"),
    [
        (0.8, ("--ratio", 0.5), "is slower than the one before: 0.80× as fast"),
        (1.4, ("--speedup", 2), "speedup=2 is not reached in the last, longer comparison: the best is 1.40"),
    ],
)
def test_what_is_not_faster_does_not_ship(
    ratio: float, words: tuple[Any, ...], says: str, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    use_a_clock(monkeypatch, ratio=ratio)
    assert typed("--model", "net.py:make", *words, "--out", "out", *SHAPE) == 1
    assert says in said_of(capsys)
    assert not Path("out").exists()


BOARD = """
import json, subprocess, sys
from pathlib import Path
subprocess.run([sys.executable, "-I", "runner.py"], cwd=sys.argv[1], check=True)
result = Path(sys.argv[1], "result.json")
answer = json.loads(result.read_text())
answer["board"] |= {"cpu": "A processor of its own", "onnxruntime": "1.2.3"}
result.write_text(json.dumps(answer))
"""


def test_what_a_board_measured_is_reported_with_the_board(capsys: Any) -> None:
    Path("board.py").write_text(BOARD)
    words = ("--ratio", 0.5, "--measure", f"{sys.executable} board.py", "--pairs", 2, "--seconds", 0.05)
    assert typed("--model", "net.py:make", *words, "--out", "out", *SHAPE) == 0
    assert "A processor of its own, 1 thread(s), CPUExecutionProvider, float32, onnxruntime 1.2.3" in said_of(capsys)
    assert read()["machine"]["cpu"] == "A processor of its own"
    assert "A processor of its own" in Path("out/report.md").read_text()


@pytest.mark.usefixtures("unexported")
def test_noise_ships_and_is_called_noise(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    use_a_clock(monkeypatch, ratio=1.0)
    assert typed("--model", "net.py:make", "--ratio", 0.5, "--out", "out", *SHAPE) == 0
    assert "no speed-up was shown" in said_of(capsys)


def test_both_files_are_timed_in_the_format_that_ships(capsys: Any) -> None:
    if resolve_target(None).precision != "int8":
        pytest.skip("this machine's own target has no int8")
    quick = ("--pairs", 2, "--seconds", 0.02, "--format", "int8")
    code = typed("--model", "net.py:one", "--ratio", 0.5, "--out", "out", "--input", "3,8,8", *quick, "--json")
    found = json.loads(capsys.readouterr().out)
    assert code == (0 if found["status"] == "done" else 1)  # which it is a busy machine decides
    assert found["latency"]["format"] == "int8"
    assert found["latency"]["before_s"] > 0
    assert any("was timed as int8" in text for text in found["warnings"])
    assert all(before > 0 for before, _ in found["record"]["layer_seconds"].values())


@pytest.mark.usefixtures("unexported")
def test_an_earlier_output_is_replaced_and_nothing_else_is(capsys: Any) -> None:
    words = ("--model", "net.py:one", "--input", "3,8,8", "--out", "out", *UNTIMED)
    assert typed(*words, "--ratio", 0.5) == 0
    before = read()
    assert typed(*words, "--ratio", 0.25) == 0
    assert read() != before
    Path("out/notes.txt").write_text("mine")
    assert typed(*words, "--ratio", 0.5) == 2
    assert "--out out: holds notes.txt" in capsys.readouterr().err
    assert Path("out/notes.txt").read_text() == "mine"


@pytest.mark.usefixtures("unexported")
def test_the_report_shows_layers_histograms_and_how_to_load_it(monkeypatch: pytest.MonkeyPatch) -> None:
    use_a_clock(monkeypatch)
    words = ("--model", "net.py:make", "--ratio", 0.5, "--ignore", "0", "--out", "out", *SHAPE)
    assert typed(*words) == 0
    page, text = (Path("out", name).read_text() for name in ("report.html", "report.md"))
    assert "| 3 | 32 | 16 | 50 % |" in text
    assert "▁" in text or "█" in text
    assert "model = load('out', trust='net.py:make')" in text
    assert "python -m distill prune --model net.py:make --out out --ratio 0.5" in text
    assert page.count("<svg") == 1
    assert 'class="went"' in page
    assert "<script" not in page
    assert "http://" not in page.replace("http://www.w3.org/2000/svg", "")
    for shown in (page, text):
        assert "p50, batch 1" in shown
        assert "onnxruntime" in shown


@pytest.mark.usefixtures("unexported")
def test_the_table_fits_80_columns(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert typed("--model", "net.py:Blocks", "--ratio", 0.5, "--out", "out", *SHAPE, *UNTIMED) == 0
    table = [line for line in capsys.readouterr().out.splitlines() if not line.startswith("wrote")]
    assert max(map(len, table)) <= 80


@pytest.mark.usefixtures("unexported")
def test_timm_by_its_name(capsys: Any) -> None:
    _operators()
    pytest.importorskip("timm")
    words = ("--arg", "num_classes=5", "--input", "3,32,32", "--macs", 0.5, "--out", "out", *UNTIMED)
    assert typed("--model", "timm:resnet10t", *words) == 0
    assert "the weights of timm:resnet10t are random" in said_of(capsys)
    assert load("out")(torch.zeros(1, 3, 32, 32)).shape == (1, 5)
    assert json.loads(Path("out/model.json").read_text())["arguments"] == {"num_classes": 5}


@pytest.mark.usefixtures("unexported")
def test_transformers_by_the_name_of_a_family() -> None:
    _operators()
    pytest.importorskip("transformers")
    sizes = ("vocab_size=40", "dim=32", "n_layers=1", "n_heads=4", "hidden_dim=64", "max_position_embeddings=40")
    given = [word for size in sizes for word in ("--arg", size)]
    words = (*given, "--input", "12", "--round-to", 4, "--macs", 0.7, "--out", "out", *UNTIMED)
    assert typed("--model", "transformers:distilbert", *words) == 0
    assert json.loads(Path("out/model.json").read_text())["arguments"]["dim"] == 32
    assert load("out")(torch.ones(1, 12, dtype=torch.long)).logits.shape == (1, 2)


def _operators() -> None:
    """Define the two operators that PyPI's torchvision looks for and a CPU build of torch has not."""
    for name in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, name):
            torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
