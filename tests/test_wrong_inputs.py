"""Everything that a user can get wrong: the exit code, words that help, no traceback, and nothing lost."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import pytest
import torch
from wrong import configs, data, models, places
from wrong.corpus import Wrong, contents, write_config

import distill
from distill.benchmarks import onnxruntime_wheels as wheels
from distill.benchmarks import target as targets
from distill.cli import main
from distill.config.loading import load_config
from distill.errors import UserError

CASES: list[Wrong] = [*configs.CASES, *models.CASES, *data.CASES, *places.CASES]
INSTALLED = cache(wheels._wheels)
COMMAND = ("run", "config.yaml", "--smoke", "--out", "run")


def call(*words: str) -> int:
    """Run the command line in this process and return its exit code."""
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert isinstance(ended.value.code, int)
    return ended.value.code


def forget(folder: Path) -> None:
    """Unload what was imported from the folder, so that the next folder's modules may have the same names."""
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None) or "").startswith(str(folder)):
            del sys.modules[name]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the tiny run's files, and the run that it left in ``run``."""
    folder = tmp_path_factory.mktemp("finished")
    write_config(folder, {})
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
    # Reading the metadata of every installed package is most of what a refused command line costs.
    monkeypatch.setattr(wheels, "_wheels", INSTALLED)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield folder
    forget(folder)


def test_the_corpus_is_large_and_its_names_differ() -> None:
    assert len({case.name for case in CASES}) == len(CASES) >= 40


@pytest.mark.parametrize("case", [pytest.param(case, id=case.name) for case in CASES])
def test_wrong_input_is_refused_and_nothing_is_lost(
    case: Wrong, place: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    words = case.lay_out(place, monkeypatch)
    before = contents(place / "run")
    code = call(*words)
    monkeypatch.undo()
    out, err = capfd.readouterr()
    assert code == case.code, err
    lost = [word for word in case.says if word not in err]
    assert not lost, err
    assert "Traceback" not in out + err
    assert out == ""
    after = contents(place / "run")
    assert {name for name in before if after.get(name) != before[name]} == set()
    assert not (place / "ran").exists()


@pytest.mark.parametrize("target", ["cuda", "tensorrt", "arm"])
def test_a_target_that_is_not_at_hand_is_unmeasured_and_no_error(
    target: str, place: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(targets, "gpus", list)
    monkeypatch.setattr(targets, "family", lambda: "x86")
    write_config(place, {"benchmark": {"session_pairs": 2}})
    assert call(*COMMAND, "--target", target, "--json") == 0
    result = json.loads(capfd.readouterr().out)
    assert {stage["status"] for stage in result["stages"]} == {"unmeasured", "off"}
    assert any("unmeasured" in warning and target in warning for warning in result["warnings"])
    assert result["comparison"]["speedup"] is None


def test_a_model_that_cannot_be_pruned_is_kept_with_a_warning(place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_config(place, {"teacher": {"model": "./mine.py:make"}, "prune": {"ratio": 0.5, "epochs": 0}})
    (place / "mine.py").write_text("from torch import nn\ndef make():\n    return nn.Linear(4, 2)\n")
    assert call(*COMMAND, "--json") == 0
    result = json.loads(capfd.readouterr().out)
    prune = next(stage for stage in result["stages"] if stage["name"] == "prune")
    assert prune["status"] == "reverted"
    assert any("prune" in warning or "channel" in warning for warning in prune["warnings"])


def test_a_trial_that_diverges_does_not_end_the_search(place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    student = "from torch import nn\nfrom tiny import model\nclass Steep(nn.Module):\n    def __init__(self):\n"
    student += "        super().__init__()\n        self.inner = model()\n    def forward(self, x):\n"
    (place / "mine.py").write_text(student + "        return self.inner(x) ** 3\n")
    wild = {"epochs": 4, "batch_size": 4, "learning_rate": 0.01, "control": False}
    search = {"trials": 2, "epochs": 1.0, "learning_rate": [0.1, 10000.0]}
    write_config(place, {"student": "./mine.py:Steep", "distill": wild, "search": search})
    assert call(*COMMAND, "--json") == 0
    trials = json.loads(capfd.readouterr().out)["decisions"]["search"]["trials"]
    assert [trial["values"][0] > 0 for trial in trials].count(False) == 1


def test_a_defect_shows_its_traceback_on_request(
    place: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("distill.pipeline._sequence", lambda *_: 1 / 0)
    assert call(*COMMAND, "--debug") == 70
    assert "ZeroDivisionError" in (err := capfd.readouterr().err)
    assert "Traceback" in err


@pytest.mark.parametrize(
    "settings",
    [{"prune": {"ratio": 1.2}}, {"data": {"source": "./gone.py:data"}}, {"teacher": {"model": "./mine.py:make"}}],
)
@pytest.mark.parametrize("out", ["new/er/run", "empty"])
def test_what_is_refused_leaves_nothing(settings: dict[str, object], out: str, place: Path) -> None:
    (place / "mine.py").write_text("from torch import nn\ndef make():\n    return nn.Linear(5, 2)\n")
    write_config(place, settings)
    (place / "empty").mkdir()
    before = sorted(path for path in place.rglob("*") if "__pycache__" not in str(path))
    assert call(*COMMAND[:-1], out) == 2
    with pytest.raises(UserError):
        distill.run("config.yaml", out=out)
    assert sorted(path for path in place.rglob("*") if "__pycache__" not in str(path)) == before


def test_a_users_file_sees_no_arguments_and_leaves_the_process_as_it_was(
    place: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    rude = """import argparse, os, signal, sys
import torch
from tiny import model as make_tiny
print("imported as", __name__, sys.argv)
assert sys.argv == [__file__]
OPTIONS = argparse.ArgumentParser()
OPTIONS.add_argument("--width", type=int, default=16)
OPTIONS.parse_args()
os.chdir("/")
torch.set_default_dtype(torch.float64)
torch.set_default_device("meta")
torch.set_grad_enabled(False)
signal.signal(signal.SIGTERM, signal.SIG_IGN)
def make():
    OPTIONS.parse_args()
    print("made")
    return make_tiny()
"""
    (place / "rude.py").write_text(rude)
    write_config(place, {"teacher": {"model": "./rude.py:make"}})
    arguments, handler = list(sys.argv), signal.getsignal(signal.SIGTERM)
    assert call(*COMMAND, "--json") == 0
    out, err = capfd.readouterr()
    assert json.loads(out)["task"] == "tiny"
    assert "imported as rude" in err
    assert "made" in err
    assert (sys.argv, signal.getsignal(signal.SIGTERM)) == (arguments, handler)
    assert Path.cwd() == place
    assert torch.get_default_dtype() == torch.float32
    assert torch.ones(1).device.type == "cpu"
    assert torch.is_grad_enabled()


def test_a_users_file_that_ends_the_process_is_told_where_that_belongs(
    place: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (place / "ends.py").write_text(
        "import argparse\np = argparse.ArgumentParser()\np.add_argument('x')\np.parse_args()\n"
    )
    write_config(place, {"teacher": {"model": "./ends.py:make"}})
    assert call(*COMMAND) == 2
    err = capfd.readouterr().err
    assert "importing it raised SystemExit: 2" in err
    assert "if __name__ == '__main__':" in err


def test_strict_ends_with_3_where_a_verdict_is_open(place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert call(*COMMAND, "--strict") == 2
    assert "--smoke" in capfd.readouterr().err
    run = ("run", "config.yaml", "--out", "whole")
    assert call(*run) == 0
    assert call(*run, "--strict") == 3
    assert "--strict: the verdict on the drop is open" in capfd.readouterr().err
    assert call(*run, "--strict", "--max-drop", "1") == 0


@pytest.mark.parametrize("name", ["caf\udce9", "a\udcff/b"], ids=["latin-1", "below"])
@pytest.mark.parametrize("words", [["run", "config.yaml", "--out"], ["validate"], ["bench"], ["quantize", "--out"]])
def test_a_name_that_is_not_utf8_is_refused(
    words: list[str], name: str, place: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert call(*words, name, *(["m.onnx", "--data", "d.npz"] if "quantize" in words else [])) == 2
    assert "is not UTF-8" in capfd.readouterr().err
    with pytest.raises(UserError, match="not UTF-8"):
        distill.run("config.yaml", out=name)


@pytest.mark.parametrize("name", ["naïve 🎉", "new\nline", '100%s "q"', "\u202eabc", "-dash", "n" * 200], ids=range(6))
def test_a_folder_may_have_any_name_that_is_utf8(name: str, place: Path) -> None:
    folder = place / name
    folder.mkdir()
    for file in ("tiny.py", "config.yaml"):
        shutil.copy(file, folder)
    assert call("validate", f"./{name}/config.yaml") == 0
    load_config(f"./{name}/config.yaml", [f"teacher.weights={name}.pt"])


def test_a_run_that_is_interrupted_goes_on_with_the_same_command(
    place: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    write_config(place, {"student": "./mine.py:make", "distill": {"epochs": 1, "control": False}})
    (place / "mine.py").write_text(
        "import pathlib, time\nfrom tiny import model as make_tiny\ndef make():\n"
        "    while pathlib.Path('wait').exists():\n        pathlib.Path('waits').touch()\n        time.sleep(0.01)\n"
        "    return make_tiny()\n"
    )
    (place / "wait").touch()
    # Whoever starts the tests in the background has them ignore SIGINT, and children inherit that.
    held = subprocess.Popen(
        [sys.executable, "-m", "distill", *COMMAND],
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        until(lambda: (place / "waits").exists() or held.poll() is not None)
        # What another process holds is refused here.
        assert call(*COMMAND) == 2
        assert "in use by another run" in capfd.readouterr().err
        held.send_signal(signal.SIGINT)
        _, err = held.communicate(timeout=30)
    finally:
        held.kill()
        held.wait()
    assert held.returncode == 130, err
    assert "the same command goes on" in err
    assert "Traceback" not in err
    (place / "wait").unlink()
    assert call(*COMMAND) == 0
    assert "teacher: done (from an earlier run)" in capfd.readouterr().err


def test_a_disk_that_is_full_or_cannot_be_written_loses_nothing(place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with tmpfs(place / "disk", "8k") as remount:
        for size in ("8k", "48k", "96k"):
            remount(f"size={size}")
            before = contents(place / "disk")
            assert call(*COMMAND[:-1], "disk/run") == 2
            err = capfd.readouterr().err
            assert "full" in err or "No space left" in err, err
            assert contents(place / "disk").items() >= before.items()
        remount("size=32m")
        assert call(*COMMAND[:-1], "disk/run") == 0
        assert contents(place / "disk/run").keys() == contents(place / "run").keys()
        before = contents(place / "disk")
        remount("ro")
        assert call(*COMMAND[:-1], "disk/run", "--seed", "1") == 2
        assert "Read-only" in capfd.readouterr().err
        assert contents(place / "disk") == before


def until(ready: Callable[[], bool], *, seconds: float = 60) -> None:
    """Wait for something that another process does."""
    limit = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < limit
        time.sleep(0.02)


@contextmanager
def tmpfs(folder: Path, size: str) -> Iterator[Callable[[str], None]]:
    """Mount a small disk and yield what changes its options; skip where that is not allowed."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("mounting is not allowed here")
    try:
        yield lambda options: subprocess.run(["mount", "-o", f"remount,{options}", str(folder)], check=True) and None
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
