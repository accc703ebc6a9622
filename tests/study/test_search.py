from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tiny_run import Config, Finished, merged, run_quietly

from distill import pipeline
from distill.config.loading import load_config
from distill.console import Console
from distill.distillation import teachers
from distill.runtime.folder import RunFolder
from distill.stages import teacher
from distill.study import objective
from distill.study import study as search

SEARCH = {"trials": 5, "epochs": 0.34, "temperature": [2.0, 6.0], "ratio": [0.1, 0.5]}


class KilledError(Exception):
    """Stands for a kill."""


@contextmanager
def opened(config: Config, folder: Path) -> Iterator[tuple[Any, Any]]:
    """Hold a run folder and yield (context, the teacher's artifact)."""
    with RunFolder.hold(folder) as held:
        ctx = pipeline._context(load_config(config), held, Console("quiet"), {}, False)
        yield ctx, teacher.make(ctx).artifact


def chosen(config: Config, folder: Path) -> tuple[Any, dict[str, Any]]:
    with opened(config, folder) as (ctx, teacher):
        return search.choose(ctx, teacher)


@pytest.fixture(scope="module")
def config(tiny: Config) -> Config:
    return merged(tiny, {"search": SEARCH})


@pytest.fixture
def folder(finished: Finished, tmp_path: Path) -> Path:
    """A folder in which the teacher and its cached logits are there already."""
    shutil.copytree(finished.folder, tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture(scope="module")
def undisturbed(config: Config, finished: Finished, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("search") / "run"
    shutil.copytree(finished.folder, folder)
    return chosen(config, folder)[1]


def trial(number: int, metric: float, macs: float) -> Any:
    return SimpleNamespace(number=number, values=(metric, macs))


def test_the_smallest_of_the_good_trials_is_picked() -> None:
    trials = [trial(0, 0.99, 100), trial(1, 0.97, 50), trial(2, 0.98, 50), trial(3, 0.90, 10)]
    assert objective.pick(trials, 0.95).number == 2
    assert objective.pick(trials, 0.985).number == 0


def test_the_best_is_picked_when_none_is_good() -> None:
    trials = [trial(0, 0.80, 100), trial(1, 0.85, 90), trial(2, 0.85, 50)]
    assert objective.pick(trials, 0.95).number == 2


def test_a_search_stays_in_its_ranges_and_takes_what_it_found(config: Config, folder: Path, undisturbed: Any) -> None:
    found, decision = chosen(config, folder)
    before = load_config(config)
    assert len(decision["trials"]) == 5
    assert decision == undisturbed  # nothing but the seed decides
    names = {"distill.temperature", "distill.weight", "distill.learning_rate", "prune.ratio"}
    for one in decision["trials"]:
        assert one["params"].keys() == names
        assert 2.0 <= one["params"]["distill.temperature"] <= 6.0
        assert 0.1 <= one["params"]["prune.ratio"] <= 0.5
        assert before.distill is not None
        assert 0.3 <= one["params"]["distill.learning_rate"] / before.distill.learning_rate <= 3.0
    best = decision["trials"][decision["trial"]]
    assert best["params"] == decision["chosen"]
    assert [decision["metric"], decision["macs"]] == best["values"]
    assert found.distill.temperature == decision["chosen"]["distill.temperature"]
    assert found.prune.ratio == decision["chosen"]["prune.ratio"]
    assert found.teacher == before.teacher
    assert (folder / "study.journal").is_file()


def test_a_longer_search_keeps_the_trials_that_it_has(config: Config, folder: Path, undisturbed: Any) -> None:
    shorter = chosen(merged(config, {"search": {"trials": 2}}), folder)[1]
    assert shorter["trials"] == undisturbed["trials"][:2]


def test_trials_reuse_the_teachers_logits(config: Config, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def asked(*args: Any, **options: Any) -> Any:
        raise AssertionError("the teacher was asked again")

    monkeypatch.setattr(teachers, "predict", asked)
    before = {path.name: path.stat().st_mtime_ns for path in (folder / "cache").glob("logits-*")}
    assert len(before) == 2
    chosen(merged(config, {"search": {"trials": 1}}), folder)
    assert {path.name: path.stat().st_mtime_ns for path in (folder / "cache").glob("logits-*")} == before


@pytest.mark.parametrize("torn", [False, True])
def test_a_search_that_was_killed_ends_as_if_it_had_not_been(
    config: Config, folder: Path, undisturbed: Any, monkeypatch: pytest.MonkeyPatch, torn: bool
) -> None:
    original = objective.predict

    def killed(*args: Any, **options: Any) -> Any:
        raise KilledError

    for trials_done in (2, 1):
        left = [trials_done]

        def predict(*args: Any, left: list[int] = left, **options: Any) -> Any:
            left[0] -= 1
            return killed() if left[0] < 0 else original(*args, **options)

        monkeypatch.setattr(objective, "predict", predict)
        with pytest.raises(KilledError):
            chosen(config, folder)
        if torn:
            with (folder / "study.journal").open("ab") as journal:
                journal.write(b'{"op_code": 4, "worker_id": "x", "tri')
            (folder / "study.journal.lock").symlink_to(folder / "study.journal")
    monkeypatch.setattr(objective, "predict", original)
    assert chosen(config, folder)[1] == undisturbed


def test_a_search_is_part_of_a_run_and_is_replayed(
    config: Config, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = merged(config, {"search": {"trials": 2}, "benchmark": "off", "distill": {"control": False}})
    done = run_quietly(config, folder)
    decision = done.result.decisions["search"]
    assert done.result.stage("teacher").reused
    assert done.result.config["prune"]["ratio"] == decision["chosen"]["prune.ratio"]
    monkeypatch.setattr(search, "score", None)
    again = run_quietly(config, folder, decisions=folder / "run.json")
    assert again.result.decisions["search"]["chosen"] == decision["chosen"]
    assert all(stage.reused for stage in again.result.stages if stage.status != "off")


def test_without_pruning_no_ratio_is_proposed(config: Config, folder: Path) -> None:
    _, decision = chosen(merged(config, {"search": {"trials": 1}, "prune": "off"}), folder)
    assert "prune.ratio" not in decision["chosen"]


def test_a_journal_that_was_altered_is_not_believed(
    config: Config, folder: Path, undisturbed: dict[str, Any], tmp_path: Path
) -> None:
    config = merged(config, {"search": {"trials": 2}})
    first = chosen(config, folder)[1]
    journal = folder / "study.journal"
    text = journal.read_text()
    for wrong in (text.replace("temperature", "temperaturf"), text[: len(text) // 2], "", "\0" * len(text)):
        journal.write_text(wrong)
        with opened(config, folder) as (ctx, teacher):
            assert search.choose(ctx, teacher)[1] == first
            assert [text for text in ctx.folder.repairs if "its trials are repeated" in text]
    with opened(config, folder) as (ctx, teacher):
        assert search.choose(ctx, teacher)[1] == first
        assert ctx.folder.repairs == []


def test_a_decision_of_a_search_is_used_without_trials(config: Config, folder: Path, tmp_path: Path) -> None:
    config = merged(config, {"search": {"trials": 1}, "benchmark": "off", "distill": {"control": False}})
    done = run_quietly(config, folder)
    again = run_quietly(merged(config, {"search": {"trials": 0}}), folder, decisions=folder / "run.json")
    assert again.result.decisions["search"] == done.result.decisions["search"]
    assert again.result.config["prune"] == done.result.config["prune"]
    assert all(stage.reused for stage in again.result.stages if stage.status != "off" and stage.name != "export")
