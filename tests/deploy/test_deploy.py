"""The deployed file runs where nothing but onnxruntime and numpy is installed."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tiny_run import Finished, run_quietly, write_table

# Rows as a reader of the CSV has them: text and numbers, with gaps in both.
OWN_ROWS = """
import numpy as np, onnxruntime as ort
session = ort.InferenceSession("model.onnx")
print(sorted(i.name for i in session.get_inputs()))
feed = {
    "age": np.array([[35.5], [np.nan]], np.float32),
    "job": np.array([["smith"], [""]], object),
    "height": np.array([[170.0], [181.0]], np.float32),
}
print(session.run(["logits"], feed)[0].shape)
print(np.isfinite(session.run(["logits"], feed)[0]).all())
"""
OWN_IMAGES = """
import numpy as np, onnxruntime as ort
session = ort.InferenceSession("model.onnx")
for n in (1, 5):
    images = np.random.default_rng(0).integers(0, 256, (n, 8, 8, 1), dtype=np.uint8)
    print(session.run(["logits"], {"image": images})[0].shape)
"""


@pytest.fixture(scope="session")
def bare_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment that holds onnxruntime and numpy, nothing else."""
    folder = tmp_path_factory.mktemp("bare") / "venv"
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True, capture_output=True)
    python = folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    command = [str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check", "onnxruntime", "numpy"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    if done.returncode != 0:
        pytest.skip(f"pip reaches no package index: {done.stderr.strip().splitlines()[-1]}")
    return python


@pytest.fixture(scope="session")
def table(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    folder = tmp_path_factory.mktemp("table")
    return run_quietly(write_table(folder), folder / "run")


def said(python: Path, code: str, folder: Path) -> str:
    done = subprocess.run(
        [str(python), "-I", "-c", code], cwd=folder, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def code_of_card(folder: Path) -> str:
    """Return the example in the file's card."""
    lines = (folder / "README.md").read_text(encoding="utf-8").splitlines()
    return "\n".join(line.removeprefix("    ") for line in lines if line.startswith("    "))


def test_nothing_else_is_installed_there(bare_python: Path, tmp_path: Path) -> None:
    code = "import importlib.util as u; print([n for n in ('torch', 'onnx', 'distill', 'PIL') if u.find_spec(n)])"
    assert said(bare_python, code, tmp_path) == "[]\n"


def test_raw_images_give_the_logits_of_the_vectors(bare_python: Path, finished: Finished) -> None:
    deploy = finished.folder / "deploy"
    assert "assert" in code_of_card(deploy)
    said(bare_python, code_of_card(deploy), deploy)
    assert np.load(deploy / "vectors.npz")["image"].dtype == np.uint8
    assert said(bare_python, OWN_IMAGES, deploy).splitlines() == ["(1, 3)", "(5, 3)"]


def test_csv_columns_give_the_logits_of_the_vectors(bare_python: Path, table: Finished) -> None:
    deploy = table.folder / "deploy"
    said(bare_python, code_of_card(deploy), deploy)
    vectors = np.load(deploy / "vectors.npz", allow_pickle=False)
    assert vectors["job"].shape == (16, 1)
    assert vectors["job"].dtype.kind == "U"
    names, shape, finite = said(bare_python, OWN_ROWS, deploy).splitlines()
    assert names == "['age', 'height', 'job']"
    assert (shape, finite) == ("(2, 2)", "True")
    assert json.loads((deploy / "labels.json").read_text()) == ["ill", "well"]


def test_the_vectors_are_wrong_where_the_file_is(bare_python: Path, finished: Finished, tmp_path: Path) -> None:
    """The check that the card gives is one that can fail."""
    for name in ("model.onnx", "vectors.npz"):
        (tmp_path / name).write_bytes((finished.folder / "deploy" / name).read_bytes())
    vectors = dict(np.load(tmp_path / "vectors.npz"))
    vectors["image"] = 255 - vectors["image"]
    np.savez(tmp_path / "vectors.npz", **vectors)
    code = code_of_card(finished.folder / "deploy")
    done = subprocess.run(
        [str(bare_python), "-I", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert re.search("AssertionError", done.stderr)
