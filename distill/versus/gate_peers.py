"""The same gates by others: pytest-benchmark's comparison of medians, asv's `continuous`, and `distill bench`.

    python -m venv peers && peers/bin/pip install pytest-benchmark asv virtualenv onnxruntime-gpu==1.31.1 numpy
    python -m distill.versus.gate_peers live peers/bin/python peers.jsonl --gates 40
    python -m distill.versus.gate_peers report peers.jsonl

Each gate asks at 5 % whether a file is slower than another: once than itself, once with 10 % more of the same work.
Like `gate.py` it appends after every gate and goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from distill.errors import Exit
from distill.versus.gate import SIZES, append, chain, read_rows

TOLERANCE = 0.05
_SIZE = "1 ms"
_MORE = 0.10

_TIMED = """
import os
import numpy as np
import onnxruntime


def opened(path):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    given = session.get_inputs()[0]
    feeds = {given.name: np.random.default_rng(0).standard_normal([1, *given.shape[1:]]).astype(np.float32)}
    session.run(None, feeds)
    return session, feeds
"""

_PYTEST = (
    _TIMED
    + """

def test_model(benchmark):
    session, feeds = opened(os.environ["MODEL"])
    benchmark(session.run, None, feeds)
"""
)

_ASV = (
    _TIMED
    + """
import gated


class Model:
    def setup(self):
        self.session, self.feeds = opened(gated.MODEL)

    def time_run(self):
        self.session.run(None, self.feeds)
"""
)

_PROJECT = '[project]\nname = "gated"\nversion = "0"\n[build-system]\nrequires = ["setuptools"]\n'


def by_pytest_benchmark(python: Path, place: Path, models: tuple[Path, Path]) -> bool:
    """Save the baseline, then compare; whether the comparison failed."""
    (place / "test_model.py").write_text(_PYTEST, encoding="utf-8")
    store = place / "store"
    shutil.rmtree(store, ignore_errors=True)
    base = [str(python), "-m", "pytest", "-q", "test_model.py", f"--benchmark-storage=file://{store}"]
    fail = f"--benchmark-compare-fail=median:{100 * TOLERANCE:g}%"
    done = 0
    for model, words in ((models[0], ["--benchmark-save=base"]), (models[1], ["--benchmark-compare=0001", fail])):
        environment = {**os.environ, "MODEL": str(model)}
        done = subprocess.run([*base, *words], cwd=place, env=environment, capture_output=True, check=False).returncode
    return done != 0


def by_asv(python: Path, place: Path, models: tuple[Path, Path]) -> bool:
    """Compare two commits of a package that names the model; whether asv says that performance has decreased."""
    project = place / "project"
    if not project.exists():
        (project / "benchmarks").mkdir(parents=True)
        (project / "benchmarks/__init__.py").touch()
        (project / "benchmarks/timed.py").write_text(_ASV, encoding="utf-8")
        (project / "pyproject.toml").write_text(_PROJECT, encoding="utf-8")
        settings: dict[str, Any] = {"version": 1, "project": "gated", "repo": ".", "branches": ["main"]}
        settings |= {"environment_type": "virtualenv", "benchmark_dir": "benchmarks"}
        settings["matrix"] = {"req": {"onnxruntime-gpu": [""], "numpy": [""]}}
        (project / "asv.conf.json").write_text(json.dumps(settings), encoding="utf-8")
        _git(project, "init", "-q", "-b", "main")
        for model in models:
            (project / "gated.py").write_text(f"MODEL = {str(model)!r}\n# {model.name}\n", encoding="utf-8")
            _git(project, "add", "-A")
            _git(project, "commit", "-q", "--allow-empty", "-m", model.name)
        machine = [str(python), "-m", "asv", "machine", "--yes"]
        subprocess.run(machine, cwd=project, capture_output=True, check=True)
    shutil.rmtree(project / ".asv/results", ignore_errors=True)
    subprocess.run([str(python), "-m", "asv", "machine", "--yes"], cwd=project, capture_output=True, check=True)
    words = ["continuous", "--factor", str(1 + TOLERANCE), "--show-stderr", "main~1", "main"]
    done = subprocess.run([str(python), "-m", "asv", *words], cwd=project, capture_output=True, text=True, check=False)
    if "BENCHMARKS NOT SIGNIFICANTLY CHANGED" not in done.stdout and "HAVE CHANGED" not in done.stdout:
        raise RuntimeError(f"asv did not compare:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
    return "PERFORMANCE DECREASED" in done.stdout


def by_distill(python: Path, place: Path, models: tuple[Path, Path]) -> bool:
    """Gate the second file by the first, as a CI job does; whether it failed."""
    words = ["bench", str(models[1]), "--baseline", str(models[0]), "--max-regression", f"{TOLERANCE}"]
    command = [sys.executable, "-m", "distill", *words, "--time-identical"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode not in (Exit.OK, Exit.VERDICT_NO):
        raise RuntimeError(f"distill did not compare:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
    return done.returncode == Exit.VERDICT_NO


PEERS = {"pytest-benchmark": by_pytest_benchmark, "asv": by_asv, "distill": by_distill}


def _git(place: Path, *words: str) -> None:
    identity = ["-c", "user.name=campaign", "-c", "user.email=campaign@localhost"]
    subprocess.run(["git", *identity, *words], cwd=place, check=True, capture_output=True)


def live(python: Path, out: Path, gates: int) -> None:
    """Run gates until there are as many as asked for of every kind, all kinds in turns so that all meet every mood."""
    channels, side, layers = SIZES[_SIZE]
    layers = math.ceil(layers * _MORE) * round(1 / _MORE)
    done = Counter((row["peer"], row["injected"]) for row in read_rows(out))
    with tempfile.TemporaryDirectory(prefix="distill-peers-") as folder:
        root = Path(folder)
        base = chain(root / "base.onnx", channels, side, layers)
        same = shutil.copyfile(base, root / "same.onnx")
        more = chain(root / "more.onnx", channels, side, layers, extra=_MORE)
        kinds = [(peer, injected, other) for peer in PEERS for injected, other in ((0.0, same), (_MORE, more))]
        while any(done[peer, injected] < gates for peer, injected, _ in kinds):
            for peer, injected, other in kinds:
                if done[peer, injected] >= gates:
                    continue
                place = root / f"{peer}-{injected}"
                place.mkdir(exist_ok=True)
                begun = time.perf_counter()
                failed = PEERS[peer](python.absolute(), place, (base, Path(other)))
                row = {"peer": peer, "injected": injected, "failed": failed, "seconds": time.perf_counter() - begun}
                append(out, row)
                done[peer, injected] += 1
                print(row, flush=True)


def report(path: Path) -> None:
    """Print what every peer failed, as Markdown."""
    print("| peer | change | gates | failed | median s |\n|---|---:|---:|---:|---:|")
    rows = read_rows(path)
    for peer in PEERS:
        for injected in (0.0, _MORE):
            group = [row for row in rows if (row["peer"], row["injected"]) == (peer, injected)]
            if group:
                failed = sum(row["failed"] for row in group)
                seconds = statistics.median(row["seconds"] for row in group)
                print(f"| {peer} | {100 * injected:+.0f} % | {len(group)} | {failed} | {seconds:.1f} |")


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    running = verbs.add_parser("live")
    running.add_argument("python", type=Path, help="interpreter that has the peers")
    running.add_argument("out", type=Path)
    running.add_argument("--gates", type=int, required=True)
    verbs.add_parser("report").add_argument("file", type=Path)
    words = parser.parse_args()
    if words.verb == "live":
        live(words.python, words.out, words.gates)
    else:
        report(words.file)


if __name__ == "__main__":
    main()
