from __future__ import annotations

import copy
import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pytest
from pydantic.dataclasses import dataclass
from tiny_run import Config, Finished

from distill import pipeline
from distill.bounds import SETTINGS
from distill.config.loading import load_config, to_dict
from distill.console import Console
from distill.distillation.losses import Kd
from distill.runtime.folder import RunFolder
from distill.stages import student, teacher


@dataclass(frozen=True, kw_only=True, config=SETTINGS)
class Wider(Kd):
    """A loss with a setting that no other one has."""

    beta: float = 8.0


def test_a_students_key_is_all_settings_of_its_loss(
    tiny: Config, finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys: dict[str, list[str]] = {}

    def keep(ctx: Any, name: str, key: str, *more: Any) -> None:
        keys.setdefault(name, []).append(key)

    shutil.copytree(finished.folder, tmp_path / "run")
    with RunFolder.hold(tmp_path / "run") as held:
        ctx = pipeline._context(load_config(tiny), held, Console("quiet"), {}, False)
        taught_by = teacher.make(ctx).artifact
        monkeypatch.setattr(student, "make_stage", keep)
        for loss in (Kd(), Kd(temperature=3), Wider(), Wider(beta=7), Wider(beta=7, weight=0.5)):
            config, section = copy.copy(ctx.config), copy.copy(ctx.config.distill)
            object.__setattr__(section, "loss", loss)
            object.__setattr__(config, "distill", section)
            student.distilled(dataclasses.replace(ctx, config=config), taught_by)
            student.control(dataclasses.replace(ctx, config=config))
    assert len(set(keys["03-student"])) == 5
    assert len(set(keys["02-control"])) == 1


def test_the_sections_temperature_and_weight_are_shorthand_for_the_losss_own() -> None:
    plain = load_config("digits", ["distill.temperature=3", "distill.weight=0.5"]).distill
    own = load_config("digits", ["distill.loss.temperature=3", "distill.loss.weight=0.5"])
    assert plain is not None
    assert own.distill is not None
    assert plain.effective_loss == own.distill.effective_loss == Kd(temperature=3, weight=0.5)
    assert to_dict(own)["distill"]["loss"] == {"name": "kd", "temperature": 3.0, "weight": 0.5}
    assert load_config(own) == own
    assert to_dict(load_config("digits"))["distill"]["loss"] == "kd"
