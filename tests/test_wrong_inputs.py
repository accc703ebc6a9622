"""Everything that a user can get wrong: the exit code, words that help, no traceback, and nothing lost."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from distill.cli import main
from wrong import configs, data, models, places
from wrong.corpus import Wrong, contents, write_config

CASES: list[Wrong] = [*configs.CASES, *models.CASES, *data.CASES, *places.CASES]
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
