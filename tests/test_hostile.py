"""Folders and files of a stranger: nothing in them is run, nothing outside of them is read, and nothing hangs."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from prune_nets import forget, settle
from wrong.hostile import EVIL, FOLDERS, MINE, Hostile, pickled

from distill.errors import UserError
from distill.prune import load, save
from distill.references.models import build

LIBRARIES = ("timm:", "torchvision:", "transformers:")


@pytest.fixture(scope="module", autouse=True)
def _vision_operators() -> None:
    """Define the two operators that PyPI's torchvision looks for and a CPU build of torch has not."""
    for name in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, name):
            torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Give the current folder: the user's net.py, a stranger's evil.py, and a folder that `prune` left."""
    folder = tmp_path / "place"
    folder.mkdir()
    settle(folder, monkeypatch)
    there = folder / "there"
    there.mkdir()
    for home in (folder, there):
        (home / "evil.py").write_text(EVIL)
        pickled(home / "evil.pt")
    (there / "config.json").write_text(
        json.dumps({"model_type": "evil", "auto_map": {"AutoConfig": "evil.make", "AutoModel": "evil.make"}})
    )
    save(there, build(MINE), MINE, {})
    yield folder
    forget()


def test_the_corpus_is_large_and_its_names_differ() -> None:
    assert len({case.name for case in FOLDERS}) == len(FOLDERS) >= 100


@pytest.mark.parametrize("case", [pytest.param(case, id=case.name[:60]) for case in FOLDERS])
def test_a_folder_chooses_no_code(case: Hostile, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reference = str(case.about.get("reference", ""))
    if reference.startswith(LIBRARIES):
        missing = importlib.util.find_spec(reference.partition(":")[0]) is None
        if missing:
            pytest.skip("that library is not installed")
    monkeypatch.setattr("socket.socket.connect", None)  # nor is anything fetched
    case.lay_out(place / "there")
    with pytest.raises(UserError) as refused:
        load("there", trust=case.trust)
    said = str(refused.value)
    assert [word for word in case.says if word not in said] == [], said
    assert said.isprintable()
    assert "root:" not in said
    assert not (place / "ran").exists()


@pytest.mark.parametrize("trust", [MINE, "./net.py:make", ["evil:make", "there/../net.py:make"], "{here}/net.py:make"])
def test_what_the_caller_names_too_is_followed(trust: str | list[str], place: Path) -> None:
    named = trust.format(here=place) if isinstance(trust, str) else trust
    about = json.loads((place / "there/model.json").read_text())
    about |= {"weights": "../../../../etc/passwd", "code": "os:system"}
    (place / "there/model.json").write_text(json.dumps(about))
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(load("there", trust=named)(x), build(MINE).eval()(x))
    assert not (place / "ran").exists()


def test_plain_words_to_a_library_are_followed_and_nothing_is_fetched(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("transformers")
    sizes = {"vocab_size": 40, "dim": 32, "n_layers": 1, "n_heads": 4, "hidden_dim": 64, "activation": "relu"}
    arguments = {**sizes, "dropout": 0.0, "num_labels": 3}
    save(place / "there", build("transformers:distilbert", arguments), "transformers:distilbert", arguments)
    monkeypatch.setattr("socket.socket.connect", None)
    assert load("there").get_submodule("classifier").weight.shape == (3, 32)  # type: ignore[union-attr]
