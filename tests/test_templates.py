from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from distill.cli import main
from distill.config.loading import load_config
from distill.errors import UserError
from distill.tasks import load_task
from distill.templates import write_example

FILES = ["README.md", "config.yaml", "data.py", "models.py"]


def test_the_example_is_written_into_a_new_or_empty_folder(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for folder in (tmp_path / "a" / "new", tmp_path / "empty"):
        assert [path.name for path in write_example(folder)] == FILES
        assert sorted(path.name for path in folder.iterdir()) == FILES


def test_nothing_is_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "data.py").write_text("mine")
    with pytest.raises(SystemExit) as ended:
        main(["init", str(mine)])
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert "not empty (data.py)" in said
    assert "mine-2" in said
    assert [path.read_text() for path in mine.iterdir()] == ["mine"]


def test_the_current_folder_is_no_exception(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").touch()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="not empty"):
        write_example(".")


def test_a_file_in_its_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine").touch()
    for place in (tmp_path / "mine", tmp_path / "mine" / "deeper"):
        with pytest.raises(UserError, match="mine"):
            write_example(place)


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match="may write"):
        write_example(tmp_path / "mine")


@pytest.mark.usefixtures("own_imports")
def test_every_section_is_shown_and_every_hook_is_used(tmp_path: Path) -> None:
    import yaml

    from distill.config.loading import schema
    from distill.models import build
    from distill.training.forward import forward

    write_example(tmp_path / "mine")
    raw = yaml.safe_load((tmp_path / "mine" / "config.yaml").read_text())
    assert set(schema()["properties"]) - set(raw) == {"extends", "target"}  # those are comments
    config = load_config(tmp_path / "mine" / "config.yaml", ["data.args={train: 120, test: 60}"])
    task = load_task(config.data, seed=0)
    assert task.labels == ("healthy", "unbalanced", "worn bearing")
    assert task.metric == "balanced_accuracy"
    batch = task.data["train"].fetch(torch.arange(4), 1)
    args, kwargs = task.inputs(batch)
    assert (len(args), list(kwargs)) == (1, ["load"])
    for field in ("teacher", "student"):
        settings = getattr(config, field)
        model = build(settings.model, settings.args, task.facts, field=field, seed=0)
        logits = forward(model.eval(), task, batch, torch.device("cpu"))
        assert logits.shape == (4, 3)
        assert task.loss(logits, task.target(batch)).shape == ()
