"""What pruning may be asked for in a run: a share, a speed that the target measures, several steps."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_run import Finished, Variant, run_quietly, statuses
from torch import nn

from distill.config.loading import load_config
from distill.errors import NotMeasuredError, UserError
from distill.prune import count
from distill.prune.widths.latency import Device

OTHER = {"ratio": None, "round_to": 2, "max_ratio": 0.8}


class Pretended:
    """Stands for what times a run's modules: as long as their multiply-accumulates."""

    def __init__(self, ctx: Any) -> None:
        from distill.runtime.artifacts import example

        self._example = example(ctx.task)

    def close(self) -> None:
        """Leave nothing behind."""

    def device(self, cache: Path, tell: Callable[[str], None]) -> Device:
        return Device(lambda model: count(model, *self._example).macs * 1e-9)


def widths(done: Finished) -> Any:
    return done.result.stage("prune").detail.widths


def test_a_run_prunes_to_a_share_in_several_steps(variant: Variant) -> None:
    done = variant({"prune": {**OTHER, "macs": 0.6, "steps": 2, "between": 1}, "quantize": "off"})
    before, after = done.result.stage("student").macs, done.result.stage("prune").macs
    assert before is not None
    assert after is not None
    assert after / before == pytest.approx(0.6, abs=0.05)
    assert len(done.result.stage("prune").detail.pruning.decisions) == 2
    assert "prune-widths" not in done.result.decisions


def test_a_speed_is_measured_and_decided_and_a_decision_is_done_again(
    variant: Variant, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    changes = {"prune": {**OTHER, "speedup": 1.5}, "quantize": "off"}
    monkeypatch.setattr("distill.stages.prune.shipped", Pretended)
    done = variant(changes)
    pruning = done.result.stage("prune").detail.pruning
    assert pruning.latency_before_s / pruning.latency_after_s >= 1.45
    assert done.result.decisions["prune-widths"] == json.loads(json.dumps(pruning.decisions))
    monkeypatch.setattr("distill.stages.prune.shipped", None)
    again = run_quietly(done.config, tmp_path / "again", decisions=done.folder / "run.json")
    assert widths(again) == widths(done)
    weights = "stages/04-prune/model.safetensors"
    assert (again.folder / weights).read_bytes() == (done.folder / weights).read_bytes()


def test_a_speed_that_nothing_can_measure_is_refused_before_any_training(variant: Variant) -> None:
    with pytest.raises(NotMeasuredError, match=r"prune.speedup: benchmark is off, so no speed-up can be measured"):
        variant({"prune": {**OTHER, "speedup": 1.5}, "benchmark": "off", "seed": 7})


def test_a_speed_of_one_is_prune_off(variant: Variant) -> None:
    assert statuses(variant({"prune": {**OTHER, "speedup": 1.0}}))["prune"] == "off"


def test_another_target_takes_the_place_of_the_presets() -> None:
    config = load_config("digits", ["prune.macs=0.5"])
    assert config.prune is not None
    assert (config.prune.goal.name, config.prune.amount) == ("macs", 0.5)
    again = load_config({"extends": "digits", "prune": {"speedup": 2}}, [])
    assert again.prune is not None
    assert (again.prune.goal.name, again.prune.amount) == ("speedup", 2.0)
    with pytest.raises(UserError, match=r"macs=0.5 and parameters=0.5: give one of them"):
        load_config({"extends": "digits", "prune": {"macs": 0.5, "parameters": 0.5}}, [])


def test_a_module_is_timed_as_it_ships(finished: Finished) -> None:
    """By this machine's own clock, so only that it is done is shown."""
    from distill.config.loading import ModelSettings
    from distill.console import Console
    from distill.pipeline import _context
    from distill.runtime.artifacts import Recipe, load_model
    from distill.runtime.folder import RunFolder
    from distill.stages.prune import shipped

    with RunFolder.hold(finished.folder) as held, Console("quiet") as shown:
        ctx = _context(load_config(finished.config), held, shown, {}, False)
        student = ctx.config.student
        assert isinstance(student, ModelSettings)
        recipe = Recipe(student.model, student.args, "student", ctx.config.seed)
        model = load_model(finished.folder / "stages/03-student", ctx.task, recipe)
        timer = shipped(ctx)
        device = timer.device(finished.folder / "none")
        assert isinstance(model, nn.Module)
        assert device.layers is not None
        assert 0 < timer(model) < 1
        assert 0 < timer(model) < 1
        timer.close()
