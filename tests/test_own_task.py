"""A task and models of the user's own, through the whole pipeline."""

from __future__ import annotations

import shutil
from pathlib import Path

import onnxruntime as ort
import pytest
from tiny_run import STAGES, TRAIN, Config, Finished, check_vectors, leaks, merged, run_quietly, statuses

from distill.errors import UserError

BRANCHES = """
from torch import nn

class Branches(nn.Module):
    def __init__(self):
        super().__init__()
        self.last = nn.Linear(8 * 8, 3)

    def forward(self, x):
        y = self.last(x.flatten(1))
        return y if y.sum() > 0 else -y

make = Branches
"""


@pytest.fixture(scope="module")
def custom_run(custom: Config, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    return run_quietly(custom, tmp_path_factory.mktemp("custom") / "run")


def test_two_inputs_and_a_dict_go_through_every_stage(custom_run: Finished) -> None:
    assert list(statuses(custom_run)) == STAGES
    assert set(statuses(custom_run).values()) <= {"done", "reverted"}
    session = ort.InferenceSession(custom_run.folder / "deploy/model.onnx", providers=["CPUExecutionProvider"])
    assert {one.name: one.shape[1:] for one in session.get_inputs()} == {"left": [6], "right": [2]}
    check_vectors(custom_run.folder / "deploy")
    teacher = custom_run.result.stage("teacher")
    assert teacher.test is not None
    assert teacher.test.metrics["accuracy"].value > 0.7
    assert [row.batch for row in teacher.latency] == [1, 4]
    assert custom_run.result.stage("prune").detail.pruning.parameters_after < 1000


def test_the_users_own_collate_and_loss_are_used(custom: Config, custom_run: Finished, tmp_path: Path) -> None:
    """Other class weights are another loss, and so another teacher."""
    import sys

    mine = sys.modules["mine"]
    assert mine.CALLS
    folder = tmp_path / "run"
    shutil.copytree(custom_run.folder, folder)
    place = Path(custom["data"].partition(":")[0])
    text = place.read_text(encoding="utf-8")
    place.write_text(text.replace("WEIGHTS = (1.0, 2.0, 1.0)", "WEIGHTS = (1.0, 9.0, 1.0)"), encoding="utf-8")
    try:
        off = {"distill": "off", "prune": "off", "quantize": "off", "export": "off", "benchmark": "off"}
        done = run_quietly(merged(custom, off), folder)
    finally:
        place.write_text(text, encoding="utf-8")
    assert not done.result.stage("teacher").reused


def test_a_loaded_teacher_with_the_users_own_split_does_not_leak(
    custom: Config, custom_run: Finished, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(custom_run.folder, folder)
    weights = str(custom_run.folder / "stages/01-teacher/model.safetensors")
    done = run_quietly(merged(custom, {"teacher": {"weights": weights}}), folder)
    assert done.result.stage("teacher").detail.loaded is True
    assert not leaks(done)


def test_a_model_that_cannot_be_exported_shows_before_any_training(
    tiny: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.py").write_text(BRANCHES)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="forward branches"):
        run_quietly(tiny | {"teacher": {**TRAIN, "model": "./mine.py:make"}}, tmp_path / "run")
    assert not (tmp_path / "run").exists()
