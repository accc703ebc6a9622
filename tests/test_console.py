"""What people see while a command works, on a terminal and in a log."""

from __future__ import annotations

import pytest

from distill.console import Console


def test_a_log_has_a_line_when_a_step_begins_and_one_when_it_ends_each_time(capsys: pytest.CaptureFixture[str]) -> None:
    with Console() as console:
        for _ in range(2):
            for done in range(4):
                console.progress("looking", done, 3)
    lines = capsys.readouterr().err.splitlines()
    assert lines[::2] == ["  looking …"] * 2
    assert [line.split(":")[0] for line in lines[1::2]] == ["  looking"] * 2


def test_a_step_that_comes_again_has_a_bar_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("COLUMNS", "100")
    with Console() as console:
        console.progress("looking", 1, 2)
        console.progress("looking", 2, 2)
        console.progress("looking", 3, 7)
    assert "3/7" in capsys.readouterr().err


def test_a_quiet_one_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with Console("quiet") as console:
        console.progress("looking", 0, 1)
        console.progress("looking", 1, 1)
        console.say("a line")
    captured = capsys.readouterr()
    assert captured.err == captured.out == ""
