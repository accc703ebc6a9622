"""A tiny image task and a tiny task of the user's own, and one finished run of the first that many tests read."""

from __future__ import annotations

import functools
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tiny_run import TRAIN, Config, Finished, Variant, merged, run_quietly, write_custom, write_stripes

if TYPE_CHECKING:
    from distill.tasks.base import Task


# Few tests that take long: they come first, so that no worker is left alone with one of them in the end.
LONG = (
    "test_readme.py",
    "test_resume.py",
    "test_vision.py",
    "test_own_modules.py",
    "test_own_task.py",
    "test_user_projects.py",
)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: LONG.index(item.path.name) if item.path.name in LONG else len(LONG))


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """The models here are too small to share out: threads only wait for each other."""
    if "torch" in sys.modules:
        import torch

        torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _one_registry() -> Iterator[None]:
    """Let torch build its table of translations once, not for each of the hundred exports here: it never differs."""
    if "torch" not in sys.modules:
        yield
        return
    from torch.onnx._internal.exporter import _registration

    with pytest.MonkeyPatch.context() as patch:
        original = getattr(getattr(_registration, "ONNXRegistry", None), "from_torchlib", None)
        if original is not None:
            patch.setattr(_registration.ONNXRegistry, "from_torchlib", staticmethod(functools.cache(original)))
        yield


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 210 grey 8x8 images in three classes."""
    return write_stripes(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="session")
def tiny(images: Path) -> Config:
    """A whole run on images that takes seconds."""
    return {
        "task": "tiny",
        "data": {
            "source": "imagefolder",
            "path": str(images),
            "image_size": 8,
            "channels": 1,
            "augment": "crop",
            "padding": 1,
        },
        "teacher": {"model": "resnet", "args": {"widths": [8, 16], "blocks": [1, 1]}, **TRAIN, "epochs": 6},
        "student": {"model": "resnet", "args": {"widths": [16], "blocks": [1], "stem_stride": 2}},
        "distill": {**TRAIN, "views": 2},
        "prune": {"ratio": 0.25, "round_to": 4, "batches": 2, "epochs": 1},
        "quantize": {"samples": 64},
        "benchmark": {"session_pairs": 2, "seconds_per_pair": 0.05, "batch_sizes": [1]},
        "device": "cpu",
        "max_drop": 0.5,
    }


@pytest.fixture(scope="session")
def tiny_task(tiny: Config) -> Task:
    """The data of the tiny run."""
    from distill.config.loading import load_config
    from distill.tasks import load_task

    return load_task(load_config(tiny).data, seed=0)


@pytest.fixture(scope="session")
def custom(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """A run of the user's own: two inputs, a dict as output, a collate function and class weights."""
    return write_custom(tmp_path_factory.mktemp("mine"))


@pytest.fixture
def own_imports(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Leave no module of a user's behind."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if not name.startswith(("distill", "torch", "onnx", "numpy", "sklearn", "scipy", "optuna", "rich")):
            del sys.modules[name]


@pytest.fixture(scope="session")
def finished(tiny: Config, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """A finished run of the tiny task: to be read, never written."""
    return run_quietly(tiny, tmp_path_factory.mktemp("finished") / "run")


@pytest.fixture
def variant(finished: Finished, tmp_path: Path) -> Variant:
    """Run the tiny task again with changes, in a copy of the finished folder: what did not change is not made again."""

    def run(changes: Mapping[str, Any] | None = None, **options: Any) -> Finished:
        folder = tmp_path / "run"
        if not folder.exists():
            shutil.copytree(finished.folder, folder)
        return run_quietly(merged(finished.config, changes or {}), folder, **options)

    return run
