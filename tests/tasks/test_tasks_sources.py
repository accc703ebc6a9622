from __future__ import annotations

import functools
import gzip
import hashlib
import http.server
import io
import tarfile
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import task_samples as samples

from distill.errors import UserError
from distill.tasks import data_settings, load_task
from distill.tasks.image_formats import read_cifar, read_idx
from distill.tasks.image_sets import CIFAR, FASHION
from distill.tasks.sources import Remote, locate


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "distill"


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A folder and the address that it is served at."""
    folder = tmp_path / "served"
    folder.mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield folder, f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    thread.join()


def published(folder: Path) -> tuple[Remote, ...]:
    return tuple(Remote(f.name, hashlib.md5(f.read_bytes()).hexdigest()) for f in sorted(folder.iterdir()))


LOCAL = replace(FASHION, system=(), urls=())


def test_the_given_folder_comes_first(tmp_path: Path) -> None:
    folder = samples.write_fashion(tmp_path / "FashionMNIST" / "raw", zipped=False)
    found = locate(LOCAL, path=tmp_path, download=False)
    assert {path.parent for path in found.files.values()} == {folder}
    assert found.warnings == ()


def test_the_systems_place_comes_next_with_a_warning(tmp_path: Path) -> None:
    system = samples.write_fashion(tmp_path / "system")
    (tmp_path / "empty").mkdir()
    source = replace(LOCAL, system=(system,))
    assert locate(source, download=False).warnings == ()
    (warning,) = locate(source, path=tmp_path / "empty", download=False).warnings
    assert "does not hold" in warning
    assert str(system) in warning


def test_a_download_is_checked_kept_and_not_repeated(served: tuple[Path, str], cache: Path) -> None:
    folder, url = served
    samples.write_fashion(folder)
    source = replace(LOCAL, remotes=published(folder))
    calls: list[tuple[str, int, int]] = []
    found = locate(source, mirror=url, progress=lambda *call: calls.append(call))
    assert all(path.parent == cache / "fashion-mnist" for path in found.files.values())
    assert calls[-1][1] == calls[-1][2] > 0
    assert locate(source, download=False).files == found.files
    assert len(list((cache / "fashion-mnist").iterdir())) == 4


def test_a_wrong_checksum_leaves_nothing_behind(served: tuple[Path, str], cache: Path) -> None:
    folder, url = served
    samples.write_fashion(folder)
    with pytest.raises(UserError, match=r"has the checksum .* expected 8d4fb7e6c68d591d4c3dfef9ec88bf0d"):
        locate(LOCAL, mirror=url)
    assert list((cache / "fashion-mnist").iterdir()) == []


def test_the_error_names_all_three_ways(served: tuple[Path, str], tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        locate(replace(FASHION, system=(tmp_path / "usual",)), path=tmp_path / "given", mirror=served[1])
    text = str(caught.value)
    assert f"data.path={tmp_path / 'given'} is no folder" in text
    assert str(tmp_path / "usual") in text
    assert "apt install dataset-fashion-mnist" in text
    assert "404" in text


@pytest.mark.parametrize(
    ("mirror", "said"), [("http://127.0.0.1:9", "out of reach"), ("ftp://x/y", "not an http"), ("http://[", "http")]
)
def test_a_mirror_that_does_not_answer(mirror: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        locate(LOCAL, mirror=mirror)


def test_download_off_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data.download is off"):
        locate(LOCAL, download=False)


def test_the_second_address_is_tried(served: tuple[Path, str]) -> None:
    folder, url = served
    samples.write_fashion(folder)
    source = replace(LOCAL, remotes=published(folder), urls=(f"{url}/nowhere", url))
    assert len(locate(source).files) == 4


def test_idx_keeps_shape_and_values(tmp_path: Path) -> None:
    array = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    for name, data in (("a", samples.idx_bytes(array)), ("b.gz", gzip.compress(samples.idx_bytes(array)))):
        (tmp_path / name).write_bytes(data)
        assert np.array_equal(read_idx(tmp_path / name), array)


@pytest.mark.parametrize("cut", [0, 2, 9, -1, "gzip", "longer", "text"])
def test_a_broken_idx_file_is_named(tmp_path: Path, cut: int | str) -> None:
    whole = samples.idx_bytes(np.zeros((2, 3), np.uint8))
    broken = {"gzip": gzip.compress(whole)[:-9], "longer": whole + b"x", "text": b"<html>not found</html>"}
    (tmp_path / "x-idx").write_bytes(broken[cut] if isinstance(cut, str) else whole[:cut])
    with pytest.raises(UserError, match=r"x-idx"):
        read_idx(tmp_path / "x-idx")


def test_fashion_files_that_do_not_belong_together(tmp_path: Path) -> None:
    samples.write_fashion(tmp_path)
    other = samples.write_fashion(tmp_path / "other", train=190)
    (tmp_path / "train-labels-idx1-ubyte.gz").write_bytes((other / "train-labels-idx1-ubyte.gz").read_bytes())
    with pytest.raises(UserError, match=r"train-labels.*one label for each of 200"):
        load_task(data_settings(source="fashion-mnist", path=tmp_path), seed=0)


def test_cifar_is_read_from_folder_and_archive(tmp_path: Path) -> None:
    folder = samples.write_cifar(tmp_path / "cifar-10-batches-bin")
    with tarfile.open(tmp_path / "cifar-10-binary.tar.gz", "w:gz") as archive:
        for file in sorted(folder.iterdir()):
            archive.add(file, f"cifar-10-batches-bin/{file.name}")
    names = ["data_batch_2.bin"]
    images, labels = read_cifar(folder, names)
    records = np.frombuffer(samples.cifar_batch(30, 2), np.uint8).reshape(-1, 3073)
    assert images.shape == (30, 32, 32, 3)
    assert np.array_equal(labels, records[:, 0])
    assert images[4, 5, 6, 2] == records[4, 1 + 2 * 1024 + 5 * 32 + 6]
    assert np.array_equal(read_cifar(tmp_path / "cifar-10-binary.tar.gz", names)[0], images)
    by_folder = load_task(data_settings(source="cifar10", path=folder), seed=0).fingerprint()
    assert load_task(data_settings(source="cifar10", path=tmp_path), seed=0).fingerprint() == by_folder


def test_broken_cifar_files_are_named(tmp_path: Path) -> None:
    folder = samples.write_cifar(tmp_path)
    (folder / "data_batch_3.bin").write_bytes(b"x" * 3072)
    with pytest.raises(UserError, match=r"data_batch_3.bin: truncated"):
        load_task(data_settings(source="cifar10", path=folder), seed=0)
    (folder / "data_batch_3.bin").write_bytes(b"\xff" * 3073)
    with pytest.raises(UserError, match=r"data_batch_3.bin: holds the label 255"):
        load_task(data_settings(source="cifar10", path=folder), seed=0)
    archive = tmp_path / "archive" / "cifar-10-binary.tar.gz"
    archive.parent.mkdir()
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        tar.add(folder / "test_batch.bin", "test_batch.bin")
    for data, said in ((buffer.getvalue()[:-2000], "truncated"), (buffer.getvalue(), "holds no data_batch_1")):
        archive.write_bytes(data)
        with pytest.raises(UserError, match=rf"cifar-10-binary.tar.gz.*{said}"):
            load_task(data_settings(source="cifar10", path=archive.parent), seed=0)


def test_the_pickled_cifar_is_no_find(tmp_path: Path) -> None:
    (tmp_path / "cifar-10-batches-py").mkdir()
    (tmp_path / "cifar-10-batches-py" / "data_batch_1").write_bytes(b"pickle")
    with pytest.raises(UserError, match=r"not the pickled version"):
        locate(replace(CIFAR, system=()), path=tmp_path, download=False)
