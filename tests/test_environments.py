"""Odd machines and shells: a command does its work there, or says what is in its way; it leaves and loses nothing."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from other_processes import save_model

pytestmark = pytest.mark.skipif(os.name != "posix", reason="environments are made by a shell")

COMMAND = ("bench", "m.onnx", "--out", "b.json", "--pairs", "2", "--seconds", "0.05")


@dataclass(frozen=True)
class Odd:
    """A shell's lines that end in the command, its exit code, and words of what it says on standard error."""

    shell: str
    code: int = 0
    says: str = ""


QUICK = {
    "folder-gone": Odd('mkdir d; cd d; rmdir ../d; exec "$@"', 2, "the current folder is gone"),
    "temporary-not-utf8": Odd('TMPDIR="$(printf "tmp/\\377")"; mkdir "$TMPDIR"; export TMPDIR; exec "$@"', 2, "TMPDIR"),
    "no-rights-to-own-files": Odd('umask 777; exec "$@"', 2, "umask 0777"),
    "no-home": Odd('unset HOME XDG_CACHE_HOME; exec "$@"'),
    "name-not-utf8": Odd(
        'export LC_ALL=C PYTHONUTF8=0 PYTHONCOERCECLOCALE=0; mkdir ü; cp m.onnx ü; cd ü; exec "$@"', 2, "is not UTF-8"
    ),
}
SLOW = {
    **{f"locale-{name}": Odd(f'export LC_ALL={name}; exec "$@"') for name in ("C", "POSIX", "de_DE.ISO-8859-1", "x_Y")},
    **{
        f"encoding-{name}": Odd(f'export PYTHONIOENCODING={name}; exec "$@"')
        for name in ("ascii", "latin-1", "cp1252", "utf-16")
    },
    **{f"umask-{mask}": Odd(f'umask {mask}; exec "$@"') for mask in ("000", "077")},
    **{f"open-files-{count}": Odd(f'ulimit -n {count}; exec "$@"') for count in (16, 32, 64)},
    "file-size-small": Odd('ulimit -f 1; exec "$@"', 5, "File too large"),
    "stdin-closed": Odd('exec "$@" <&-'),
    "all-closed": Odd('exec "$@" <&- >&- 2>&-'),
    "no-reader": Odd('"$@" | true'),
    "nice": Odd('exec nice -n 5 "$@"'),
    "nohup": Odd('exec nohup "$@"'),
    "continuous-integration": Odd('export CI=true GITHUB_ACTIONS=true GITHUB_STEP_SUMMARY=/none/x; exec "$@"'),
    "no-path": Odd('PATH=; export PATH; exec "$@"'),
    "temporary-missing": Odd('export TMPDIR=/nonexistent/folder; exec "$@"'),
    "temporary-relative": Odd('export TMPDIR=tmp; exec "$@"'),
    "temporary-odd": Odd('TMPDIR="tmp/a b\'c"; mkdir "$TMPDIR"; export TMPDIR; exec "$@"'),
    "narrow": Odd('export COLUMNS=1 LINES=x FORCE_COLOR=1; exec "$@"'),
    "no-columns": Odd('export COLUMNS=0 TERM=dumb; exec "$@"'),
    "no-time-zone": Odd('export TZ=Nowhere/None; exec "$@"'),
    "odd-threads": Odd('export OMP_NUM_THREADS=abc MKL_NUM_THREADS=-1; exec "$@"'),
    "optimised": Odd('export PYTHONOPTIMIZE=2 PYTHONHASHSEED=0; exec "$@"'),
    "no-gpu": Odd('export CUDA_VISIBLE_DEVICES=9,x; exec "$@"'),
    "cache-is-a-file": Odd('touch c; export XDG_CACHE_HOME="$PWD/c"; exec "$@"'),
    "files-from-the-future": Odd('touch -d 2099-01-01 m.onnx tmp .; exec "$@"'),
    "files-from-the-past": Odd('touch -d 1970-01-02 m.onnx tmp .; exec "$@"'),
    "left-by-another": Odd('mkdir .b.json.work; touch .distill-00.partial b.json.partial; exec "$@"'),
}
ALL = [
    *(pytest.param(odd, id=name) for name, odd in QUICK.items()),
    *(pytest.param(odd, id=name, marks=pytest.mark.slow) for name, odd in SLOW.items()),
]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    save_model(tmp_path / "m.onnx")
    (tmp_path / "tmp").mkdir()
    return tmp_path


@pytest.mark.parametrize("odd", ALL)
def test_an_odd_environment_is_worked_in_or_named(odd: Odd, place: Path) -> None:
    before = (place / "m.onnx").read_bytes()
    own = {
        "TMPDIR": str(place / "tmp"),
        "XDG_CACHE_HOME": str(place / "cache"),
    }
    words = [shutil.which("sh") or "sh", "-c", odd.shell, "sh", sys.executable, "-m", "distill", *COMMAND]
    ended = subprocess.run(
        words, cwd=place, env={**os.environ, **own}, capture_output=True, stdin=subprocess.DEVNULL, check=False
    )
    said = ended.stderr.decode(errors="replace")
    assert ended.returncode == odd.code, said
    assert odd.says in said
    assert "Traceback" not in said
    assert (place / "m.onnx").read_bytes() == before
    left = {path.name for path in (place / "tmp").rglob("*") if path.name.endswith((".scratch", ".npz", ".json"))}
    assert left == set()
    assert (place / "b.json").exists() == (odd.code == 0)
