"""A dataclass of annotated fields is a verb's options."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

from distill.verbs.signature import Debug, command


@dataclass(frozen=True, kw_only=True)
class Few:
    model: Annotated[str, typer.Argument(help="a model")]
    out: Annotated[Path | None, typer.Option(help="where it goes", rich_help_panel="Places")] = None
    arg: Annotated[tuple[str, ...], typer.Option(help="repeatable")] = ()
    pairs: Annotated[int, typer.Option(help="of sessions", min=2)] = 6
    form: Annotated[str, typer.Option("--format")] = "float32"


@dataclass(frozen=True, kw_only=True)
class Typed(Few):
    debug: Debug = False


@pytest.fixture
def received() -> list[Typed]:
    return []


@pytest.fixture
def app(received: list[Typed]) -> typer.Typer:
    def verb(options: Typed) -> None:
        """Do a thing."""
        received.append(options)

    made = typer.Typer(pretty_exceptions_enable=False, rich_markup_mode=None)
    made.command()(command(verb, Typed))
    return made


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["m"], Typed(model="m")),
        (["m", "--out", "o", "--arg", "a=1", "--arg", "b=2"], Typed(model="m", out=Path("o"), arg=("a=1", "b=2"))),
        (["m", "--format", "int8", "--pairs", "3", "--debug"], Typed(model="m", form="int8", pairs=3, debug=True)),
    ],
)
def test_what_is_typed_arrives_as_the_dataclass(
    words: list[str], expected: Typed, app: typer.Typer, received: list[Typed]
) -> None:
    assert CliRunner().invoke(app, words).exit_code == 0
    assert received == [expected]


@pytest.mark.parametrize("words", [[], ["m", "--pairs", "1"], ["m", "--form", "int8"]])
def test_what_a_field_does_not_take_is_wrong_usage(words: list[str], app: typer.Typer, received: list[Typed]) -> None:
    assert CliRunner().invoke(app, words).exit_code == 2
    assert received == []


def test_help_says_what_the_fields_say(app: typer.Typer) -> None:
    told = CliRunner().invoke(app, ["--help"]).output
    for text in ("Do a thing.", "where it goes", "repeatable", "of sessions", "--format"):
        assert text in told


def test_no_verb_is_cut_in_the_list_of_verbs() -> None:
    from distill.cli import app

    told = CliRunner().invoke(app, ["--help"], terminal_width=80).output
    commands = told.partition("Commands:")[2].splitlines()
    assert len([line for line in commands if line.strip()]) == 9
    assert all(line.endswith(".") and not line.endswith("..") for line in commands if line)
