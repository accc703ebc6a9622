"""timm and torchvision models through the whole pipeline, on a folder of pictures."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import distill
from distill.errors import UserError
from distill.models import build

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("timm") is None or importlib.util.find_spec("torchvision") is None,
    reason="timm and torchvision are not installed: pip install timm torchvision",
)


@pytest.fixture(scope="module", autouse=True)
def _vision_operators() -> None:
    """Define the two operators that PyPI's torchvision looks for and a CPU build of torch has not."""
    for name in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, name):
            torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes that differ in brightness, 40 pictures each."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for label, level in (("dark", 60), ("light", 180)):
        (folder / label).mkdir()
        for number in range(40):
            pixels = np.clip(rng.normal(level, 40, (40, 40, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / label / f"{number}.png")
    return folder


def config(pictures: Path, teacher: str, student: str) -> dict[str, object]:
    short = {"epochs": 1, "batch_size": 16, "learning_rate": 0.01}
    return {
        "task": "pictures",
        "data": {"source": "imagefolder", "path": str(pictures), "image_size": 32},
        "teacher": {"model": teacher, **short},
        "student": {"model": student},
        "distill": {**short, "views": 1, "control": False},
        "prune": {"ratio": 0.3, "epochs": 1, "batches": 2},
        "benchmark": {"session_pairs": 2, "seconds_per_pair": 0.1, "batch_sizes": [1]},
        "max_drop": 1.0,
        "objective": "size",
    }


def test_a_timm_teacher_and_student_go_through_every_stage(pictures: Path, tmp_path: Path) -> None:
    result = distill.run(config(pictures, "timm:test_byobnet", "timm:test_resnet"), out=tmp_path / "run")
    assert [stage.name for stage in result.stages] == ["teacher", "control", "student", "prune", "quantize", "export"]
    assert result.stage("quantize").status == "done"
    student, pruned = result.stage("student"), result.stage("prune")
    assert pruned.macs is not None and student.macs is not None and pruned.macs < student.macs
    for name in ("teacher", "student", "prune"):
        assert result.stage(name).detail.parity.ok, name
    assert (tmp_path / "run" / "deploy" / "model.onnx").is_file()


def test_a_torchvision_model_is_built_for_the_task() -> None:
    model = build("torchvision:squeezenet1_1", {}, {"classes": 3}, field="teacher", seed=0).eval()
    assert model(torch.zeros(2, 3, 64, 64)).shape == (2, 3)


def test_an_unknown_timm_name_is_answered_with_near_ones(pictures: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"resnet18"):
        distill.run(config(pictures, "timm:resnett18", "timm:resnet10t"), out=tmp_path / "run")


def test_a_torchvision_of_another_build_is_named_with_the_mend(pictures: Path) -> None:
    probe = "import torchvision"
    if subprocess.run([sys.executable, "-c", probe], capture_output=True, check=False).returncode == 0:
        pytest.skip("the installed torchvision fits the installed torch")
    code = (
        "from distill.models import build\n"
        "from distill.errors import UserError\n"
        "try: build('torchvision:resnet18', {}, {'classes': 2}, field='teacher', seed=0)\n"
        "except UserError as error: print(error)\n"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "built for another torch" in found.stdout and "pip install" in found.stdout
