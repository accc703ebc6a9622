from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import task_samples as samples
import torch
from PIL import Image

from distill.errors import UserError
from distill.export import ImagePreprocess
from distill.tasks import DataSettings, data_settings, image_folder, load_task
from distill.tasks.image import ImageTask


def load(path: Path, seed: int = 0, **given: Any) -> ImageTask:
    task = load_task(data_settings(source="imagefolder", path=path, **given), seed=seed)
    assert isinstance(task, ImageTask)
    return task


def preprocess(task: ImageTask) -> ImagePreprocess:
    assert isinstance(task.graph_preprocess, ImagePreprocess)
    return task.graph_preprocess


def test_digits_are_split_as_promised() -> None:
    task = load_task(data_settings(source="digits"), seed=3)
    assert {name: len(data) for name, data in task.data.items()} == {"train": 1167, "validation": 270, "test": 360}
    batches = {name: data.fetch(torch.arange(len(data)), None) for name, data in task.data.items()}
    counts = torch.bincount(batches["test"][1], minlength=10)
    assert int(counts.min()) >= 33
    assert int(batches["train"][0].max()) == 255
    assert sum(len(batch[1]) for batch in batches.values()) == 1797
    assert task.facts == {"classes": 10, "channels": 1, "image_size": 8}


def test_normalised_training_images_have_deviation_one_and_a_whole_offset() -> None:
    task = load_task(data_settings(source="digits"), seed=0)
    assert isinstance(task, ImageTask)
    data = task.data["train"]
    (x,), _ = task.inputs(data.fetch(torch.arange(len(data)), None))
    assert float(x.std()) == pytest.approx(1, abs=1e-3)
    assert preprocess(task).shared_integer_offset is not None
    assert abs(float(x.mean())) < 0.01


def test_splits_share_no_sample(tmp_path: Path) -> None:
    task = load(samples.write_images(tmp_path))
    seen = [bytes(row) for data in task.data.values() for row in data.fetch(torch.arange(len(data)), None)[0].numpy()]
    assert len(seen) == len(set(seen)) == 80


def test_fashion_keeps_the_test_images_it_came_with(tmp_path: Path) -> None:
    task = load_task(
        data_settings(source="fashion-mnist", path=samples.write_fashion(tmp_path), validation=0.2), seed=0
    )
    assert isinstance(task, ImageTask)
    assert {name: len(data) for name, data in task.data.items()} == {"train": 160, "validation": 40, "test": 50}
    assert task.given_splits == ("train", "test")


@pytest.mark.parametrize("augment", ["crop", "crop-flip"])
def test_views_change_the_pixels_and_none_does_not(augment: str) -> None:
    task = load_task(data_settings(source="digits", augment=augment), seed=0)
    data, index = task.data["train"], torch.arange(64)
    plain = data.fetch(index, None)[0]
    one, two = (data.fetch(index, view)[0] for view in (0, 1))
    assert not torch.equal(plain, one)
    assert not torch.equal(one, two)
    untouched = load_task(data_settings(source="digits"), seed=0).data["train"].fetch(index, 1)[0]
    assert torch.equal(untouched, plain)


def test_the_users_normalisation_is_kept_by_channel_and_whole_when_shared(tmp_path: Path) -> None:
    samples.write_images(tmp_path)
    three = load(tmp_path, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    assert preprocess(three).offset == pytest.approx((123.675, 116.28, 103.53))
    assert preprocess(three).scale[1] == pytest.approx(1 / (255 * 0.224))
    shared = load(tmp_path, mean=(0.5,), std=(0.5,))
    assert preprocess(shared).shared_integer_offset == 128
    assert any("128 is used" in one for one in shared.warnings)
    grey = load_task(data_settings(source="digits", mean=(0.0,), std=(1.0,)), seed=0)
    assert isinstance(grey, ImageTask)
    assert preprocess(grey).scale == (1 / 255,)
    with pytest.raises(UserError, match=r"data.mean has 3 numbers; the images have 1 channel"):
        load_task(data_settings(source="digits", mean=(0.1, 0.2, 0.3), std=(1.0,)), seed=0)


def test_the_fingerprint_follows_pixels_and_settings(tmp_path: Path) -> None:
    samples.write_images(tmp_path)
    first = load(tmp_path).fingerprint()
    assert load(tmp_path, augment="crop").fingerprint() != first
    assert load(tmp_path, metric="f1").fingerprint() != first
    pixels = np.asarray(Image.open(tmp_path / "cat" / "000.png")).copy()
    pixels[0, 0, 0] ^= 1
    Image.fromarray(pixels).save(tmp_path / "cat" / "000.png")
    assert load(tmp_path).fingerprint() != first


def test_given_splits_are_taken_as_they_are(tmp_path: Path) -> None:
    for seed, (split, count) in enumerate({"train": 30, "val": 10, "test": 12}.items()):
        samples.write_images(tmp_path / split, count=count, seed=seed)
    task = load(tmp_path)
    assert {name: len(data) for name, data in task.data.items()} == {"train": 60, "validation": 20, "test": 24}
    assert task.given_splits == ("train", "validation", "test")
    assert task.warnings == ()


def test_a_missing_validation_folder_is_cut_off_train_with_a_warning(tmp_path: Path) -> None:
    samples.write_images(tmp_path / "train")
    samples.write_images(tmp_path / "test", count=10, seed=1)
    task = load(tmp_path)
    assert {name: len(data) for name, data in task.data.items()} == {"train": 70, "validation": 10, "test": 20}
    assert any("no validation folder" in one for one in task.warnings)
    assert any("data.test=0.3 is not used" in one for one in load(tmp_path, test=0.3).warnings)


def test_grey_images_have_one_channel_unless_asked(tmp_path: Path) -> None:
    samples.write_images(tmp_path, mode="L")
    assert load(tmp_path).facts["channels"] == 1
    assert load(tmp_path, channels=3).facts["channels"] == 3


def test_images_are_resized_by_the_shorter_side_and_cut_at_the_centre(tmp_path: Path) -> None:
    for label, value in (("a", 200), ("b", 100)):
        (tmp_path / label).mkdir()
        for number in range(20):
            pixels = np.full((20, 60), value, np.uint8)
            pixels[:, :20] = 0
            pixels[:, 40:] = 255
            pixels[0, 30] = number
            Image.fromarray(pixels).save(tmp_path / label / f"{number}.png")
    task = load(tmp_path, image_size=10)
    pixels, target = task.data["train"].fetch(torch.arange(4), None)
    assert pixels.shape == (4, 10, 10, 1)
    inner = pixels[:, 3:, 2:-2, 0]
    expected = torch.where(target == 0, 200, 100)[:, None, None]
    assert ((inner.int() - expected).abs() <= 2).all()


def test_hidden_and_other_files_are_no_images(tmp_path: Path) -> None:
    samples.write_images(tmp_path)
    before = load(tmp_path).fingerprint()
    (tmp_path / ".cache").mkdir()
    (tmp_path / "cat" / "._000.png").write_bytes(b"resource fork")
    (tmp_path / "cat" / "notes.txt").write_text("text")
    assert load(tmp_path).fingerprint() == before


def test_many_images_lie_in_a_file_and_read_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    samples.write_images(tmp_path)
    calls: list[tuple[str, int, int]] = []
    settings = data_settings(source="imagefolder", path=tmp_path)
    expected = load_task(settings, seed=0, progress=lambda *call: calls.append(call)).fingerprint()
    assert calls[-1] == ("decode images", 80, 80)
    monkeypatch.setattr(image_folder, "_IN_MEMORY_BYTES", 1000)
    assert load_task(settings, seed=0).fingerprint() == expected


def test_a_full_disk_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    samples.write_images(tmp_path)
    monkeypatch.setattr(image_folder, "_IN_MEMORY_BYTES", 1000)
    monkeypatch.setattr(image_folder.os, "posix_fallocate", full)
    with pytest.raises(UserError, match=r"set TMPDIR to a larger disk"):
        load(tmp_path)


def broken(name: str, folder: Path) -> dict[str, Any]:
    """Damage a folder of images in one way; return extra settings."""
    first = folder / "cat" / "000.png"
    if name == "truncated":
        first.write_bytes(first.read_bytes()[:-150])
        other = folder / "dog" / "003.png"
        other.write_bytes(other.read_bytes()[:60])
    elif name == "text":
        (folder / "dog" / "007.jpg").write_text("not an image")
    elif name == "empty file":
        (folder / "dog" / "007.png").write_bytes(b"")
    elif name == "empty class":
        (folder / "eel").mkdir()
    elif name == "small class":
        samples.write_images(folder, ("eel",), count=2)
    elif name == "one class":
        for file in (folder / "dog").iterdir():
            file.unlink()
        (folder / "dog").rmdir()
    elif name == "other size":
        Image.new("RGB", (9, 12)).save(folder / "dog" / "039.png")
    elif name == "deep":
        Image.fromarray(np.full((12, 12), 40_000, np.uint16)).save(folder / "dog" / "039.png")
    elif name == "no train":
        (folder / "cat").rename(folder / "test")
    elif name == "strange class":
        samples.write_images(folder / "train")
        samples.write_images(folder / "test", ("cat", "dgo"))
    elif name == "loose":
        for label in ("cat", "dog"):
            for file in (folder / label).iterdir():
                file.rename(folder / f"{label}-{file.name}")
            (folder / label).rmdir()
    elif name == "black":
        for file in folder.rglob("*.png"):
            Image.new("RGB", (12, 12)).save(file)
    elif name == "metric":
        return {"metric": "auroc"}
    return {}


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("truncated", r"cat/000.png: not a whole image .*so are .*dog/003.png"),
        ("text", "dog/007.jpg: not a whole image"),
        ("empty file", "dog/007.png: not a whole image"),
        ("empty class", "eel: holds no images"),
        ("small class", "eel: fewer than 3 images"),
        ("one class", "has the one class 'cat'"),
        ("other size", r"data.image_size is missing: .*dog/039.png is 9x12"),
        ("deep", "dog/039.png: has more than 8 bits"),
        ("no train", "has test but no train folder"),
        ("strange class", "test/dgo: no such class in train; did you mean 'dog'"),
        ("loose", "images lie in it directly"),
        ("black", "every pixel of the training images is 0"),
        ("metric", "data.metric='auroc': the task has no such metric"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, name: str, said: str) -> None:
    samples.write_images(tmp_path)
    given = broken(name, tmp_path)
    with pytest.raises(UserError, match=said) as caught:
        load(tmp_path, **given)
    assert "\n" not in str(caught.value)


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "flowers").mkdir()
    with pytest.raises(UserError, match=r"does not exist.*did you mean 'flowers'"):
        load(tmp_path / "flower")
    with pytest.raises(UserError, match=r"it holds no folders"):
        load(tmp_path / "flowers")


def test_relative_paths_start_at_the_given_folder(tmp_path: Path) -> None:
    samples.write_images(tmp_path / "pictures")
    settings = data_settings(source="imagefolder", path="pictures")
    assert len(load_task(settings, seed=0, folder=tmp_path).data["train"]) == 54


def test_unknown_sources_are_refused() -> None:
    with pytest.raises(UserError, match=r"did you mean 'digits'"):
        load_task(DataSettings(source="digit"), seed=0)
    with pytest.raises(UserError, match=r"data.source is missing"):
        load_task(data_settings(), seed=0)
