from __future__ import annotations

import sys
from pathlib import Path

import pytest

from distill.benchmarks import conflicting_wheels


def install(folder: Path, name: str, version: str, file: str = "onnxruntime/__init__.py") -> None:
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (info / "RECORD").write_text(f"{file},,\n")


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    return tmp_path


def test_one_wheel_is_fine(site: Path) -> None:
    install(site, "onnxruntime", "1.22.0")
    install(site, "onnxruntime-extensions", "0.14.0", "onnxruntime_extensions/__init__.py")
    assert conflicting_wheels() is None


def test_two_wheels_give_the_command_that_mends_it(site: Path) -> None:
    install(site, "onnxruntime", "1.22.0")
    install(site, "onnxruntime-gpu", "1.22.1")
    assert conflicting_wheels() == (
        "python -m pip uninstall -y onnxruntime onnxruntime-gpu && "
        "python -m pip install --no-deps onnxruntime-gpu==1.22.1"
    )
