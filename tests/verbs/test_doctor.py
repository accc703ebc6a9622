from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from distill.cli import main
from distill.runtime import installation
from distill.runtime.installation import examine, int8_sentence, torchvision_mend
from distill.verbs.doctor import show

LOADS = {"CPUExecutionProvider": "loads", "CUDAExecutionProvider": "libcublas.so.13: cannot open shared object file"}


@pytest.fixture(autouse=True)
def _no_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Opening providers takes seconds; the benchmarks' own tests do it."""
    monkeypatch.setattr(installation, "providers_that_load", lambda: dict(LOADS))


def code() -> int:
    with pytest.raises(SystemExit) as ended:
        main(["doctor"])
    return int(ended.value.code or 0)


def test_a_sound_machine_has_no_problems(capsys: pytest.CaptureFixture[str]) -> None:
    assert code() == 0
    told = capsys.readouterr().out
    for word in ("torch-pruning", "optuna", "int8", "usable of", "CPUExecutionProvider", "fashion-mnist", "free in"):
        assert word in told
    assert "nothing stands in the way" in told


def test_the_json_form_holds_everything(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["doctor", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["problems"] == []
    assert found["threads"]["usable"] >= 1
    assert found["providers"] == LOADS
    assert found["disk"]["free_bytes"] > 0
    assert found["data"]["digits"]["found"]


def test_every_package_of_every_extra_is_looked_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    named = {
        extra: {re.split(r"[<>=]", package)[0] for package in packages}
        for extra, packages in project["optional-dependencies"].items()
    }
    assert {extra: set(packages) for extra, packages in installation.EXTRAS.items()} == named
    version = installation.version_of
    monkeypatch.setattr(installation, "version_of", lambda name: None if name == "transformers" else version(name))
    assert code() == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "not here: transformers; python -m pip install transformers" in told


def test_conflicting_wheels_are_a_problem_with_its_mend(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(installation, "conflicting_wheels", lambda: "python -m pip uninstall -y both && …")
    assert code() == 5
    assert "python -m pip uninstall -y both" in capsys.readouterr().out


@pytest.mark.parametrize("said", ["did not load", None])
def test_a_cpu_provider_that_does_not_load_is_a_problem(said: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installation, "providers_that_load", lambda: {"CPUExecutionProvider": said} if said else {})
    (problem,) = examine()["problems"]
    assert problem.startswith("CPUExecutionProvider does not load")
    assert code() == 5


def test_an_onnxruntime_that_does_not_import_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> dict[str, str]:
        raise ImportError("No module named onnxruntime.capi")

    monkeypatch.setattr(installation, "providers_that_load", broken)
    (problem,) = examine()["problems"]
    assert "No module named onnxruntime.capi" in problem
    assert "pip install" in problem


def test_a_gpu_that_torch_uses_but_onnxruntime_cannot_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    (problem,) = examine()["problems"]
    assert "libcublas.so.13" in problem
    assert "--target x86" in problem


def test_a_gpu_that_torch_does_not_see_is_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    card = {"name": "NVIDIA T4", "driver": "580", "memory_bytes": 16 * 2**30}
    monkeypatch.setattr(installation, "gpus", lambda: [card])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    found = examine()
    assert not found["problems"]
    assert any("NVIDIA T4" in note for note in found["notes"])


def test_a_torchvision_of_another_torch_is_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(name: str) -> Any:
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr(installation, "version_of", lambda name: "0.1")
    monkeypatch.setattr(installation.importlib, "import_module", load)
    found = installation._torchvision()
    assert not found["loads"]
    assert "nms" in found["why"]
    assert "pip install" in found["mend"]


@pytest.mark.parametrize(
    ("torch_version", "cuda", "wanted"),
    [
        ("2.13.0+cpu", None, "'torchvision==0.28.*' --index-url https://download.pytorch.org/whl/cpu"),
        ("2.10.0+cu128", "12.8", "'torchvision==0.25.*' --index-url https://download.pytorch.org/whl/cu128"),
    ],
)
def test_the_torchvision_that_belongs_to_a_torch(torch_version: str, cuda: str | None, wanted: str) -> None:
    assert torchvision_mend(torch_version, cuda).endswith(wanted)


@pytest.mark.parametrize(
    ("kind", "flags", "word"),
    [
        ("x86", {"avx2", "avx512_vnni"}, "all 8 bits"),
        ("x86", {"avx2"}, "7 bits"),
        ("x86", set(), "hardly faster"),
        ("arm", {"asimddp"}, "fast here"),
        ("arm", {"asimd"}, "little speed"),
        ("riscv64", set(), "name a target"),
        ("x86", None, "cannot be seen"),
    ],
)
def test_what_flags_mean_for_int8(kind: str, flags: set[str] | None, word: str) -> None:
    assert word in int8_sentence(kind, None if flags is None else frozenset(flags))


def test_data_sets_are_found_where_a_run_finds_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from distill.tasks import image_sets

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    place = tmp_path / "distill" / "cifar10"
    missing = examine()["data"]["cifar10"]
    assert len(missing["ways"]) == 3
    place.mkdir(parents=True)
    (place / image_sets._CIFAR_ARCHIVE).touch()
    assert examine()["data"]["cifar10"]["found"] == str(place)


def test_a_machine_of_which_little_is_known_can_be_shown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(installation, "cpu_flags", lambda: None)
    monkeypatch.setattr(installation, "providers_that_load", lambda: {})
    show(examine())
    assert "cannot be seen" in capsys.readouterr().out
