from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import ValidationError

from distill.benchmarks import BenchmarkSettings

Conv = Callable[..., Path]


def test_import_brings_neither_torch_nor_the_pipeline() -> None:
    code = (
        "import sys, distill.benchmarks\n"
        "heavy = {'torch', 'distill.pipeline', 'distill.training', 'distill.tasks', 'distill.export'}\n"
        "sys.exit(','.join(sorted(heavy & set(sys.modules))) or None)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    "wrong",
    [
        {"threads": 0},
        {"session_pairs": 1},
        {"seconds_per_pair": 0},
        {"batch_sizes": ()},
        {"batch_sizes": (0,)},
        {"max_latency_s": -1},
        {"thread": 1},
    ],
)
def test_settings_refuse_what_makes_no_sense(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        BenchmarkSettings(**wrong)  # type: ignore[arg-type]


def test_settings_defaults() -> None:
    settings = BenchmarkSettings()
    assert (settings.batch_sizes, settings.threads, settings.session_pairs) == ((1, 32), 1, 6)
    assert (settings.seconds_per_pair, settings.max_latency_s) == (1.0, None)


def test_the_gate_runs_where_torch_and_the_pipelines_packages_are_not_installed(tmp_path: Path, conv: Conv) -> None:
    missing = ["torch", "torch_pruning", "optuna", "safetensors", "sklearn", "PIL", "plotly", "jinja2", "filelock"]
    code = (
        "import sys\n"
        f"sys.modules.update(dict.fromkeys({missing}))\n"
        "from distill.cli import main\n"
        "main(['bench', *sys.argv[1:]])"
    )
    words = [
        str(conv()),
        "--baseline",
        str(conv(layers=2, name="b.onnx")),
        "--seconds",
        "0.05",
        "--max-regression=900%",
    ]
    done = subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, timeout=120, check=False, cwd=tmp_path
    )
    assert done.returncode in (0, 1), done.stderr
    assert "against b.onnx" in done.stdout
