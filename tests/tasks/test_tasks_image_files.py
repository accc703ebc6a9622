"""Which files of a folder of images are taken, and how each of them is read."""

from __future__ import annotations

import io
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import task_samples as samples
import torch
from PIL import Image

from distill.errors import UserError
from distill.tasks import data_settings, load_task
from distill.tasks.image import ImageTask


def load(path: Path, **given: Any) -> ImageTask:
    task = load_task(data_settings(source="imagefolder", path=path, **given), seed=0)
    assert isinstance(task, ImageTask)
    return task


def sizes(task: ImageTask) -> dict[str, int]:
    return {name: len(data) for name, data in task.data.items()}


def said(task: ImageTask, *words: str) -> bool:
    """Whether one warning holds all of the words."""
    return any(all(word in one for word in words) for one in task.warnings)


def noise(seed: int, side: int = 12, mode: str = "RGB") -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)).convert(mode)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return samples.write_images(tmp_path / "data", count=20)


@pytest.mark.parametrize("name", [".ipynb_checkpoints", "__MACOSX", ".git", "@eaDir"])
def test_hidden_folders_are_neither_classes_nor_read(root: Path, name: str) -> None:
    before = load(root).fingerprint()
    for place in (root, root / "cat"):
        samples.write_images(place / name, count=3, seed=1)
    (root / "cat" / "Thumbs.db").write_bytes(b"x")
    task = load(root)
    assert task.fingerprint() == before
    assert task.warnings == ()


@pytest.mark.parametrize("target", ["..", ".", "../..", "/", "../dog", "../../data", "../dog/sub", "../cat"])
def test_a_link_multiplies_nothing_and_takes_nothing_away(root: Path, target: str) -> None:
    samples.write_images(root / "dog", ("sub",), count=2, seed=3)
    before = load(root).fingerprint()
    (root / "cat" / "a").symlink_to(target)
    task = load(root)
    assert task.fingerprint() == before
    assert said(task, "1 link(s) lead to what is read anyway", str(root / "cat" / "a"))


def test_links_to_files_and_outside_folders_count_each_file_once(root: Path) -> None:
    outside = samples.write_images(root.parent / "outside", ("more",), count=4, seed=5)
    (outside / "more" / "back").symlink_to(root)
    for name in ("more", "again"):
        (root / "cat" / name).symlink_to(outside / "more")
    (root / "cat" / "twin.png").symlink_to("000.png")
    task = load(root)
    assert sum(sizes(task).values()) == 44
    assert said(task, "3 link(s) lead to what is read anyway")


def test_a_class_may_be_a_link_but_not_to_another_class(root: Path) -> None:
    before = load(root).fingerprint()
    (root / "dog").rename(root.parent / "elsewhere")
    (root / "dog").symlink_to("../elsewhere")
    assert load(root).fingerprint() == before
    (root / "kitten").symlink_to("cat")
    with pytest.raises(UserError, match=r"kitten: is a link to .*cat, which is read anyway; remove it"):
        load(root)


def test_a_link_that_leads_nowhere_is_told(root: Path) -> None:
    (root / "cat" / "lost.png").symlink_to("gone.png")
    with pytest.raises(UserError, match=r"lost.png: not a whole image"):
        load(root)


@pytest.mark.parametrize(
    "names",
    [
        ("Training", "Validation", "Testing"),
        ("TRAIN", "Valid", "EVAL"),
        ("train", "dev", "holdout"),
        ("train_set", "val-set", "test set"),
    ],
)
def test_splits_go_by_their_usual_names(tmp_path: Path, names: tuple[str, ...]) -> None:
    for seed, (name, count) in enumerate(zip(names, (20, 10, 12), strict=True)):
        samples.write_images(tmp_path / name, count=count, seed=seed)
    task = load(tmp_path)
    assert task.labels == ("cat", "dog")
    assert sizes(task) == {"train": 40, "validation": 20, "test": 24}
    assert task.warnings == ()


def test_folders_that_can_be_splits_or_classes(tmp_path: Path) -> None:
    vehicles = samples.write_images(tmp_path / "vehicles", ("car", "train", "plane"), count=20)
    assert load(vehicles).labels == ("car", "plane", "train")
    assert said(load(vehicles), "train is a class here")
    mixed = tmp_path / "mixed"
    samples.write_images(mixed / "train", count=20)
    samples.write_images(mixed, ("extra",), count=3, seed=9)
    with pytest.raises(UserError, match="train can be a split or a class beside extra; rename it"):
        load(mixed)
    samples.write_images(mixed / "test", count=10, seed=2)
    assert said(load(mixed), "pictures in extra are not used")
    samples.write_images(mixed / "Holdout", count=10, seed=3)
    with pytest.raises(UserError, match="holds both Holdout and test, which both mean test"):
        load(mixed)


def test_splits_under_other_names_or_inside_the_classes_are_told(tmp_path: Path) -> None:
    for seed, name in enumerate(("seg_train", "seg_test")):
        samples.write_images(tmp_path / "named" / name, count=20, seed=seed)
    assert said(load(tmp_path / "named"), "seg_test, seg_train all hold the folders cat, dog")
    for seed, name in enumerate(("cat", "dog")):
        samples.write_images(tmp_path / "inside" / name, ("train", "test"), count=20, seed=seed)
    assert said(load(tmp_path / "inside"), "are taken together", "test/cat")


def test_what_is_left_out_is_counted(root: Path) -> None:
    (root / "cat" / "notes.txt").write_text("x")
    (root / "cat" / "phone.HEIC").write_bytes(b"x")
    (root / "dog" / "other.heic").write_bytes(b"x")
    noise(1).save(root / "loose.png")
    os.mkfifo(root / "dog" / "pipe.png")
    task = load(root)
    assert sum(sizes(task).values()) == 40
    assert said(task, "4 file(s) in the classes", "2 .heic", "1 .txt", "1 special")
    assert said(task, "1 image(s) lie in no class", "loose.png")


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_images_are_turned_upright_and_it_is_told(root: Path, orientation: int, suffix: str) -> None:
    turn = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a, -1),
        7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
        8: lambda a: np.rot90(a, 1),
    }[orientation]
    image = noise(8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(root / "cat" / f"000.{suffix}", exif=exif)
    if suffix != "png":
        (root / "cat" / "000.png").unlink()
    task = load(root)
    rows = [bytes(one) for data in task.data.values() for one in data.fetch(torch.arange(len(data)), None)[0].numpy()]
    assert np.ascontiguousarray(turn(np.asarray(image))).tobytes() in rows
    assert said(task, "1 image(s) were turned upright", "exif_transpose") == (orientation != 1)


def test_an_orientation_that_cannot_be_read_turns_nothing(root: Path) -> None:
    held = io.BytesIO()
    noise(1).save(held, "jpeg", exif=b"Exif\0\0nothing that is EXIF")
    (root / "cat" / "a.jpg").write_bytes(held.getvalue())
    exif = Image.Exif()
    exif[0x0112] = 99
    noise(2).save(root / "cat" / "b.jpg", exif=exif)
    assert load(root).warnings == ()


def test_one_colour_image_among_many_grey_ones_decides_and_is_told(tmp_path: Path) -> None:
    samples.write_images(tmp_path, mode="L")
    noise(1).save(tmp_path / "dog" / "037.png")
    task = load(tmp_path)
    assert task.facts["channels"] == 3
    assert said(task, "79 of 80 images are grey")
    assert load(tmp_path, channels=1).facts["channels"] == 1


@pytest.mark.parametrize(
    ("mode", "suffix", "words"),
    [
        ("L", "png", ("1 of 41 images are grey",)),
        ("1", "png", ("1 of 41 images are grey",)),
        ("RGBA", "png", ("1 image(s) have transparency",)),
        ("LA", "png", ("1 image(s) have transparency",)),
        ("CMYK", "jpg", ("without a colour profile", "1 CMYK")),
        ("P", "png", ()),
    ],
)
def test_images_of_another_kind_are_read_and_told(root: Path, mode: str, suffix: str, words: tuple[str, ...]) -> None:
    noise(1, mode=mode).save(root / "cat" / f"other.{suffix}")
    task = load(root)
    assert task.facts["channels"] == 3
    assert said(task, *words) if words else task.warnings == ()


def test_palettes_with_transparency_and_animations_are_told(root: Path) -> None:
    noise(1, mode="P").save(root / "cat" / "see-through.png", transparency=bytes([0, 128]))
    noise(2, mode="P").save(root / "cat" / "moving.gif", save_all=True, append_images=[noise(3, mode="P")])
    task = load(root)
    assert said(task, "1 image(s) have transparency", "see-through.png")
    assert said(task, "1 image(s) have several frames", "moving.gif")


def test_equal_files_in_two_splits_or_classes_are_told(tmp_path: Path) -> None:
    for seed, split in enumerate(("train", "val", "test")):
        samples.write_images(tmp_path / split, count=18, seed=seed)
    shutil.copy(tmp_path / "train/cat/000.png", tmp_path / "test/cat/copy.png")
    shutil.copy(tmp_path / "train/cat/001.png", tmp_path / "train/dog/copy.png")
    shutil.copy(tmp_path / "train/cat/002.png", tmp_path / "train/cat/copy.png")
    task = load(tmp_path)
    assert said(task, "data leak: 1 image(s) lie in two splits", "test/cat/copy.png")
    assert said(task, "1 image(s) lie in two classes", "train/dog/copy.png")
    assert len(task.warnings) == 2
    # Where a split of ours may part them, copies within one class leak as well.
    assert said(load(tmp_path / "train"), "1 image(s) have copies", "train/cat/copy.png")


def test_names_that_are_no_text_are_refused_for_classes_and_read_for_images(root: Path) -> None:
    os.rename(root / "dog" / "000.png", os.fsencode(root / "dog") + b"/\xf6.png")
    assert sum(sizes(load(root)).values()) == 40
    os.rename(root / "dog", os.fsencode(root) + b"/d\xf6g")
    with pytest.raises(UserError, match=r"folder name b'd\\xf6g' is not UTF-8; rename it"):
        load(root)
