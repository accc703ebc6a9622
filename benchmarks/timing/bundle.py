"""A folder that a board can work on by itself: models, inputs, a job, and `runner.py`.

On the board `python3 runner.py` in that folder does the job and writes `result.json`.
"""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distill.benchmarks.onnx_file.external_data import copy_beside, external_files
from distill.benchmarks.onnx_file.signature import load_proto

RUNNER = Path(__file__).parents[1] / "runner.py"
JOB, RESULT = "job.json", "result.json"


def write_bundle(folder: Path, job: Mapping[str, Any]) -> None:
    """Write a job with all that it needs, its paths relative; a model that several arms share is copied once."""
    (folder / "models").mkdir(parents=True, exist_ok=True)
    (folder / "inputs").mkdir(exist_ok=True)
    rewritten = copy.deepcopy(dict(job))
    placed: dict[str, str] = {}
    for inner in [rewritten, *rewritten.get("jobs", ())]:
        for arm in inner.get("arms", ()):
            for key, place in (("model", "models"), ("inputs", "inputs")):
                if key in arm:
                    arm[key] = _placed(placed, arm[key], folder / place, model=key == "model")
    shutil.copyfile(RUNNER, folder / "runner.py")
    (folder / JOB).write_text(json.dumps(rewritten, indent=1) + "\n", encoding="utf-8")


def _placed(placed: dict[str, str], path: str, place: Path, *, model: bool) -> str:
    """Copy a file into a numbered folder of its own, a model with its external data; return its path in the bundle."""
    if path in placed:
        return placed[path]
    source, home = Path(path), place / f"{len(placed):03}"
    home.mkdir()
    shutil.copyfile(source, home / source.name)
    if model:
        copy_beside(source, external_files(source, load_proto(source)), home)
    placed[path] = f"{place.name}/{home.name}/{source.name}"
    return placed[path]
