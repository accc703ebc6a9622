from __future__ import annotations

import json
from pathlib import Path

import pytest

from distill.benchmarks import fingerprint, machine, usable_threads
from distill.benchmarks.timing import machine as module


def test_the_description_is_json_and_names_what_matters() -> None:
    described = json.loads(json.dumps(machine()))
    assert described["cpu"]
    assert described["threads"]["usable"] >= 1
    assert {"python", "numpy", "onnx", "onnxruntime"} == set(described["versions"])
    assert described["versions"]["onnxruntime"]


def test_fingerprint_is_stable_and_changes_with_the_hardware_only(monkeypatch: pytest.MonkeyPatch) -> None:
    first = fingerprint()
    assert len(first) == 64
    monkeypatch.setattr(module.platform, "release", lambda: "another kernel")
    assert fingerprint() == first
    monkeypatch.setattr(module, "cpu_model", lambda: "another processor")
    assert fingerprint() != first


@pytest.mark.parametrize(
    ("version", "files", "cores"),
    [
        ("2", {"cpu.max": "150000 100000\n"}, 1.5),
        ("2", {"cpu.max": "max 100000\n"}, None),
        ("1", {"cpu.cfs_quota_us": "400000\n", "cpu.cfs_period_us": "100000\n"}, 4.0),
        ("1", {"cpu.cfs_quota_us": "-1\n", "cpu.cfs_period_us": "100000\n"}, None),
        ("2", {}, None),
    ],
)
def test_cgroup_quota(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, version: str, files: dict[str, str], cores: float | None
) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(module, "_cgroup_folders", lambda: iter([(version, tmp_path)]))
    assert module.cgroup_cores() == cores


@pytest.mark.parametrize(("affinity", "quota", "usable"), [(8, None, 8), (8, 2.5, 2), (2, 6.0, 2), (4, 0.5, 1)])
def test_usable_threads_is_the_smaller_of_mask_and_quota(
    monkeypatch: pytest.MonkeyPatch, affinity: int, quota: float | None, usable: int
) -> None:
    monkeypatch.setattr(module, "affinity_cores", lambda: affinity)
    monkeypatch.setattr(module, "cgroup_cores", lambda: quota)
    assert usable_threads() == usable


@pytest.mark.parametrize("hidden", ["", "-1"])
def test_hidden_gpus_are_not_there(monkeypatch: pytest.MonkeyPatch, hidden: str) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    assert module.gpus() == []
