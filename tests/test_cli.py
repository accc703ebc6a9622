from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from distill.cli import main
from distill.errors import Exit


def code_of(*words: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert isinstance(ended.value.code, int)
    return ended.value.code


def python(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *words], capture_output=True, text=True, check=False, env={**os.environ, **environment}
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["run", "--bogus"], "--bogus"),
        (["bogus"], "bogus"),
        (["run", "--max-drop", "x"], "--max-drop"),
        (["run", "digits", "another"], "another"),
        (["run", "--set"], "--set"),
        (["init"], "folder"),
    ],
)
def test_wrong_usage_is_the_users(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert code_of(*words) == Exit.USER
    assert said in capsys.readouterr().err.lower()


def test_without_a_verb_it_says_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert code_of() == Exit.USER
    assert "validate" in "".join(capsys.readouterr())


@pytest.mark.parametrize(("encoding", "says"), [("ascii", "1.2\\xd7 \\u2013 \\xfc\n"), ("utf-8", "1.2× – ü\n")])
def test_signs_that_the_locale_cannot_write_are_spelled_out(encoding: str, says: str) -> None:
    code = "from distill import cli; cli.app = lambda **_: print('1.2× – ü'); cli.main([])"
    spelt = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        encoding="utf-8",
        env={**os.environ, "PYTHONIOENCODING": encoding},
    )
    assert (spelt.returncode, spelt.stdout) == (0, says), spelt.stderr


def test_versions_are_one_line_and_nothing_heavy_is_imported() -> None:
    code = (
        "import sys; from distill import cli\n"
        "try: cli.main(['--version'])\n"
        "except SystemExit as e: print(e.code, sorted({'torch', 'onnx', 'onnxruntime', 'numpy'} & set(sys.modules)))"
    )
    (line, end) = python("-c", code).stdout.splitlines()
    assert line.startswith("distill ")
    for name in ("Python 3.", "torch 2.", "onnx 1.", "onnxruntime"):
        assert name in line
    assert end == "0 []"


def complete(line: str, folder: Path) -> list[str]:
    words = line.split(" ")
    told = subprocess.run(
        [sys.executable, "-m", "distill"],
        capture_output=True,
        text=True,
        check=True,
        cwd=folder,
        env={
            **os.environ,
            "_DISTILL_COMPLETE": "complete_bash",
            "COMP_WORDS": line,
            "COMP_CWORD": str(len(words) - 1),
        },
    )
    return told.stdout.split()


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("distill val", ["validate"]),
        ("distill run fash", ["fashion-mnist"]),
        ("distill validate mi", ["mine.yaml"]),
        ("distill run --target a", ["arm"]),
        ("distill run --device ", ["auto", "cpu", "cuda"]),
    ],
)
def test_completion(line: str, wanted: list[str], tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").touch()
    assert complete(line, tmp_path) == wanted


def test_completion_is_installed_for_the_command_distill(tmp_path: Path) -> None:
    told = python("-m", "distill", "--install-completion", HOME=str(tmp_path))
    if told.returncode:
        pytest.skip("the shell that runs this cannot be told")
    scripts = [path for path in tmp_path.rglob("*") if path.is_file() and "_DISTILL_COMPLETE" in path.read_text()]
    assert scripts, list(tmp_path.rglob("*"))
    assert "python" not in scripts[0].read_text()
