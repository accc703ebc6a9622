from __future__ import annotations

import copy
import json
from typing import Any

import pytest
import torch
from tiny_run import Config

from distill.config.loading import load_config
from distill.errors import UserError
from distill.estimate.forecast import estimate
from distill.verbs.validate import show


@pytest.fixture(scope="module")
def found(tiny: Config) -> dict[str, Any]:
    return estimate(load_config(tiny))


def by_name(found: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {row["name"]: row for row in found["stages"]}


def with_(tiny: Config, **changes: Any) -> Config:
    return {**copy.deepcopy(tiny), **changes}


def test_every_stage_has_time_memory_and_disk(found: dict[str, Any]) -> None:
    rows = by_name(found)
    assert list(rows) == ["teacher", "logits", "control", "student", "prune", "quantize", "export", "benchmark"]
    for name, row in rows.items():
        assert row["seconds"] > 0, name
        assert row["memory_bytes"] is None or row["memory_bytes"] > 2**20, name
        assert row["disk_bytes"] >= 0, name
    assert found["total"]["seconds"] == pytest.approx(sum(row["seconds"] for row in rows.values()))
    assert found["total"]["disk_bytes"] == sum(row["disk_bytes"] for row in rows.values())
    assert found["models"]["student"]["parameters"] < found["models"]["teacher"]["parameters"]
    assert "estimate" in found["note"]
    json.dumps(found)


def test_it_is_shown(found: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    show(found)
    told = capsys.readouterr().out
    assert "valid" in told
    for word in ("teacher: train", "prune", "quantize", "in all", "estimates"):
        assert word in told


def test_nothing_is_disturbed(tiny: Config) -> None:
    torch.manual_seed(5)
    before, threads = torch.random.get_rng_state(), torch.get_num_threads()
    estimate(load_config(with_(tiny, prune="off", quantize="off", benchmark="off", export="off")))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.get_num_threads() == threads


def test_what_is_off_costs_nothing(tiny: Config) -> None:
    rows = by_name(estimate(load_config(with_(tiny, distill="off", quantize="off", benchmark="off"))))
    assert list(rows) == ["teacher", "prune", "export"]


def test_time_grows_with_the_epochs(tiny: Config, found: dict[str, Any]) -> None:
    longer = with_(tiny, teacher={**tiny["teacher"], "epochs": 6000})
    assert by_name(estimate(load_config(longer)))["teacher"]["seconds"] > 20 * by_name(found)["teacher"]["seconds"]


def test_errors_of_both_models_come_together(tiny: Config) -> None:
    wrong = with_(tiny, teacher={"model": "resnet999"}, student={"model": "resnet", "args": {"depth": 3}})
    with pytest.raises(UserError) as caught:
        estimate(load_config(wrong))
    first, *rest = str(caught.value).splitlines()
    assert "resnet999" in first
    assert "depth" in "".join(rest)


def test_missing_data_and_weights_appear(tiny: Config) -> None:
    with pytest.raises(UserError, match="nowhere"):
        estimate(load_config(with_(tiny, data={**tiny["data"], "path": "nowhere"})))
    with pytest.raises(UserError, match=r"absent\.safetensors"):
        estimate(load_config(with_(tiny, teacher={**tiny["teacher"], "weights": "absent.safetensors"})))


def test_a_task_of_the_users_own(custom: Config, own_imports: None) -> None:
    rows = by_name(estimate(load_config(custom)))
    assert rows["teacher"]["seconds"] > 0
