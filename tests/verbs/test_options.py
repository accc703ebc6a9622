"""A dataclass of annotated fields is a verb's options."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import pytest
import typer
from typer.testing import CliRunner

from distill.cli import app as distill_app
from distill.cli import main
from distill.errors import UserError
from distill.single_stage.options import PruneOptions, QuantizeOptions
from distill.verbs.bench_options import BenchOptions
from distill.verbs.run import RunOptions
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
    told = CliRunner().invoke(distill_app, ["--help"], terminal_width=80).output
    commands = told.partition("Commands:")[2].splitlines()
    assert len([line for line in commands if line.strip()]) == 9
    assert all(line.endswith(".") and not line.endswith("..") for line in commands if line)


VERBS: dict[str, tuple[type[Any], tuple[str, ...]]] = {
    "bench": (BenchOptions, ("gone.onnx",)),
    "run": (RunOptions, ("digits",)),
    "prune": (PruneOptions, ("--model", "gone.py:make", "--input", "8", "--out", "o")),
    "quantize": (QuantizeOptions, ("gone.onnx", "--data", "gone.npz", "--out", "o.onnx")),
}
GOALS = ("macs", "parameters", "ratio", "speedup")
MEANT_BY_NONE = ("nan", "inf", "-inf", "", " ", "0x10", "true", "1,5")
ODD = (*MEANT_BY_NONE, "-1", "0", "1e23", "1e-300", str(2**63), "9" * 5000, "\u0661", "1_000")


def numbers(options: type[Any]) -> list[str]:
    hints = get_type_hints(options, include_extras=True)
    kinds = {name: get_args(hint)[0] for name, hint in hints.items() if get_origin(hint) is Annotated}
    return [name for name, kind in kinds.items() if {int, float} & {kind, *get_args(kind)}]


@pytest.mark.parametrize("verb", VERBS)
def test_a_number_that_no_option_means_is_refused_by_its_name_before_any_work(
    verb: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """No file of theirs is there, so that what is taken is told from what is refused by whom the message blames."""

    def began(*_: object) -> None:
        raise UserError("began")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("distill.pipeline._sequence", began)
    options, words = VERBS[verb]
    assert len(numbers(options)) >= 4
    for name in numbers(options):
        for value in ODD:
            goal = () if verb != "prune" or name in GOALS else ("--ratio=0.3",)
            with pytest.raises(SystemExit) as ended:
                main([verb, *words, *goal, f"--{name.replace('_', '-')}={value}"])
            told = capfd.readouterr().err
            assert ended.value.code == 2, (name, value, told)
            blames = re.sub("[-_]m?s$", "", name.replace("_", "-")) in told.replace("_", "-")
            taken = value not in MEANT_BY_NONE and ("gone" in told or "began" in told)
            assert blames or taken, (name, value, told)
            assert list(tmp_path.iterdir()) == [], (name, value)


@pytest.mark.parametrize("value", ["", " "])
@pytest.mark.parametrize(
    "words", [["bench", "m.onnx", "--shard"], ["run", "digits", "--target"], ["prune", "--model", "m", "--importance"]]
)
def test_an_option_whose_variable_is_not_set_is_refused(
    words: list[str], value: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*words, value, *(["--out", "o"] if "prune" in words else [])])
    assert ended.value.code == 2
    assert f"{words[-1].strip('-')}: is empty" in capfd.readouterr().err
