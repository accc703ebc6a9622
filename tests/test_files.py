"""Files that are written whole or not at all: over links, pipes and files of every mode."""

from __future__ import annotations

import errno
import os
import socket
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from distill import files
from distill.tasks.sources import cache_folder


@contextmanager
def reader(pipe: Path) -> Iterator[list[bytes]]:
    """Make a pipe and read it to its end in a thread; yields where the content goes."""
    os.mkfifo(pipe)
    read: list[bytes] = []
    thread = threading.Thread(target=lambda: read.append(pipe.read_bytes()), daemon=True)
    thread.start()
    yield read
    thread.join(timeout=10)
    assert not thread.is_alive()


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_new_file_gets_the_mode_that_the_umask_gives(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        files.write_whole(tmp_path / "new", "é")
    finally:
        os.umask(before)
    assert (tmp_path / "new").read_bytes() == "é".encode()
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o640
    assert names(tmp_path) == {"new"}


@pytest.mark.parametrize("mode", [0o600, 0o644, 0o755, 0o444])
def test_a_file_that_is_replaced_keeps_its_mode(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "there"
    path.write_text("before")
    path.chmod(mode)
    files.write_whole(path, b"after")
    assert path.read_text() == "after"
    assert stat.S_IMODE(path.stat().st_mode) == mode


def test_an_error_leaves_what_was_there_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "there"
    path.write_text("before")
    with pytest.raises(KeyboardInterrupt), files.whole(path) as file:
        file.write(b"half")
        raise KeyboardInterrupt
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
    with pytest.raises(OSError, match="full"):
        files.write_whole(path, b"after")
    with pytest.raises(OSError, match="full"):
        files.write_whole(tmp_path / "new", b"after")
    assert path.read_text() == "before"
    assert names(tmp_path) == {"there"}


@pytest.mark.parametrize("chain", [1, 3])
@pytest.mark.parametrize("there", [True, False])
def test_a_link_stays_and_what_it_names_is_written(tmp_path: Path, chain: int, there: bool) -> None:
    (tmp_path / "far").mkdir()
    target = tmp_path / "far/target"
    if there:
        target.write_text("before")
        target.chmod(0o600)
    link = Path("far/target")
    for number in range(chain):
        (tmp_path / f"link{number}").symlink_to(link)
        link = Path(f"link{number}")
    files.write_whole(tmp_path / link, b"after")
    assert all((tmp_path / f"link{number}").is_symlink() for number in range(chain))
    assert not target.is_symlink()
    assert target.read_text() == "after"
    assert names(tmp_path / "far") == {"target"}
    if there:
        assert stat.S_IMODE(target.stat().st_mode) == 0o600


def test_a_link_out_of_a_linked_folder_is_followed_as_the_system_does(tmp_path: Path) -> None:
    (tmp_path / "real/deep").mkdir(parents=True)
    (tmp_path / "link").symlink_to("real/deep")
    (tmp_path / "real/deep/out").symlink_to("../target")
    files.write_whole(tmp_path / "link/out", b"after")
    assert (tmp_path / "real/target").read_text() == "after"
    assert not (tmp_path / "target").exists()


@pytest.mark.parametrize("linked", [False, True])
def test_a_pipe_is_written_through_and_stays(tmp_path: Path, linked: bool) -> None:
    with reader(tmp_path / "pipe") as read:
        path = tmp_path / "pipe"
        if linked:
            path = tmp_path / "link"
            path.symlink_to("pipe")
        assert files.why_unwritable(path) is None
        files.write_whole(path, b"after")
    assert read == [b"after"]
    assert stat.S_ISFIFO((tmp_path / "pipe").lstat().st_mode)
    assert names(tmp_path) == {"pipe", "link"} if linked else {"pipe"}


def test_what_is_no_regular_file_is_never_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the system says it is: what opens it may fail, and it is neither renamed over nor removed."""
    path = tmp_path / "device"
    path.write_text("before")
    real = os.stat
    device = os.stat_result((stat.S_IFCHR | 0o666, *real(path)[1:]))
    monkeypatch.setattr(Path, "stat", lambda self, **_: device if self == path else real(self))
    for name in ("replace", "rename", "unlink", "remove"):
        monkeypatch.setattr(os, name, lambda *_, **__: pytest.fail("would have been replaced"))
    files.write_whole(path, b"after")
    monkeypatch.undo()
    assert path.read_text() == "beforeafter"  # opened as it is, and not cut


def test_an_open_file_of_a_process_is_written_through(tmp_path: Path) -> None:
    with (tmp_path / "log").open("wb") as log:
        files.write_whole(Path(f"/proc/self/fd/{log.fileno()}"), b"after")
        assert (tmp_path / "log").stat().st_ino == os.fstat(log.fileno()).st_ino
    assert (tmp_path / "log").read_text() == "after"


def test_a_file_that_is_mounted_by_itself_is_written_in_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "mounted"
    path.write_text("before")
    number = path.stat().st_ino
    busy = OSError(errno.EBUSY, "Device or resource busy")
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(busy))
    files.write_whole(path, b"after")
    assert (path.read_text(), path.stat().st_ino, names(tmp_path)) == ("after", number, {"mounted"})


def test_no_link_that_lies_in_the_way_is_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files.secrets, "token_hex", lambda _: "0")
    (tmp_path / "victim").write_text("mine")
    (tmp_path / f".distill-0{files.PARTIAL}").symlink_to("victim")
    with pytest.raises(FileExistsError):
        files.write_whole(tmp_path / "out", b"after")
    assert (tmp_path / "victim").read_text() == "mine"


def test_what_cannot_be_written_is_told_without_touching_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("mine")
    (tmp_path / "linked").symlink_to("folder")
    (tmp_path / "dangling").symlink_to("nowhere/file")
    (tmp_path / "one").symlink_to("two")
    (tmp_path / "two").symlink_to("one")
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket")
        told = {
            name: files.why_unwritable(Path(name))
            for name in ("folder", "linked", "dangling", "one", "file/x", "no/x", "socket", "x" * 300, "zero\0", "file")
        }
    assert told.pop("file") is None
    expected = {
        "folder": "is a folder",
        "linked": "is a folder",
        "dangling": "does not exist; make it first",
        "one": "symbolic links",
        "file/x": "file is no folder",
        "no/x": "does not exist; make it first",
        "socket": "is a socket",
        "x" * 300: "too long",
        "zero\0": "null",
    }
    assert {name for name, words in expected.items() if words not in str(told[name])} == set()
    assert files.why_unwritable(Path("no/er/x"), makes_folder=True) is None
    assert "is no folder" in str(files.why_unwritable(Path("file/er/x"), makes_folder=True))
    assert (tmp_path / "file").read_text() == "mine"
    assert names(tmp_path) == {"folder", "file", "linked", "dangling", "one", "two", "socket"}


def test_names_of_one_file_are_known_as_such(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("file")
    os.link(tmp_path / "file", tmp_path / "hard")
    (tmp_path / "dangling").symlink_to("new")
    assert files.same_file(tmp_path / "file", tmp_path / "link")
    assert files.same_file(tmp_path / "file", tmp_path / "hard")
    assert files.same_file(tmp_path / "new", tmp_path / "dangling")
    assert not files.same_file(tmp_path / "new", tmp_path / "file")


def test_sweeping_removes_only_what_a_killed_writer_left(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    for name in (f".distill-1{files.PARTIAL}", f"deep/.distill-2{files.PARTIAL}", "mine.partial", ".hidden"):
        (tmp_path / name).touch()
    files.sweep(tmp_path)
    assert {path.name for path in tmp_path.rglob("*") if path.is_file()} == {"mine.partial", ".hidden"}


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EFBIG])
def test_a_write_that_fails_names_its_file(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(OSError, match=r"report\.json"):
        files.write_whole(tmp_path / "report.json", "{}")
    assert not list(tmp_path.iterdir())


def test_a_home_that_nobody_knows_is_a_name_like_any_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert files.at_home(Path("~/a.csv")) == Path("/home/me/a.csv")
    assert files.at_home(Path("~nobody-of-this-name/a.csv")) == Path("~nobody-of-this-name/a.csv")
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(os, "getuid", lambda: 4_000_000)
    assert files.at_home(Path("~/a.csv")) == Path("~/a.csv")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_folder() == Path("/.cache/distill")


@pytest.mark.parametrize("target", ["file", "elsewhere", "nowhere"])
def test_a_link_in_a_folder_of_ours_is_replaced_wherever_it_leads(tmp_path: Path, target: str) -> None:
    (tmp_path / "elsewhere").write_text("theirs")
    (tmp_path / "file").symlink_to(target)  # the first leads to itself
    files.write_whole(tmp_path / "file", "ours", follow=False)
    assert (tmp_path / "file").read_text() == "ours"
    assert not (tmp_path / "file").is_symlink()
    assert (tmp_path / "elsewhere").read_text() == "theirs"
