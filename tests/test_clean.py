"""Text of unknown origin in every medium: it acts on none, and text that harms nothing stays as it is."""

from __future__ import annotations

import io
import json
import re
import unicodedata
from xml.etree import ElementTree

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from rich.table import Table
from rich.text import Text

from distill import clean

PARTS = st.sampled_from(
    [
        *("\x1b[31m", "\x1b]8;;http://x.y\x07", "\x1b]52;c;YQ==\x07", "\x9b2J", "\r", "\b", "\x00", "\x85", "\u2028"),
        *("\u202e", "\u2066", "\u200b", "\u200d", "\ufeff", "\U000e0041", "\ud800", "\uffff", "\n", "\r\n", " ", "\t"),
        *("::error::", "::set-output name=a::", "::", "##[error]", "##vso[task]", "##", "[red]", "[/]", "[link=x]"),
        *(
            ":bug:",
            "|",
            "`",
            "```",
            "\n```\n",
            "<script>",
            "![a](b)",
            "[a]: b",
            "http://x.y",
            "www.x.y",
            "#",
            "- ",
            "1. ",
        ),
        *("1. ", "---", "===", "=", "$x$", "*", "_", "~~", "&lt;", "\\", "]]>", "%0A", "%", "conv1.weight", "é"),
    ]
)
HOSTILE = st.lists(PARTS | st.text(max_size=4), max_size=8).map("".join)
PLAIN = st.text(st.characters(codec="ascii", categories=("L", "N")), min_size=1).map(lambda text: f"layer.{text}")


def acts(text: str, *, lines: bool) -> list[str]:
    """Return the characters that act on the place that shows them."""
    allowed = "\t\n" if lines else "\t"
    kinds = {unicodedata.category(one) for one in text if one not in allowed}
    bad = kinds & {"Cc", "Cs", "Zl", "Zp"}
    return sorted(bad) + [one for one in text if one in "\u200b\u202e\u2066\ufeff\uffff\ufffe\U000e0041"]


def commands(text: str) -> list[str]:
    """Return the lines that a CI system would take for a command, as GitHub's runner reads them."""
    return [one for one in text.split("\n") if one.lstrip().startswith("::") or re.search(r"##\w*\[", one)]


@given(HOSTILE)
def test_text_and_line_act_on_nothing(value: str) -> None:
    for write, lines in ((clean.text, True), (clean.line, False), (clean.log_line, False)):
        shown = write(value)
        assert acts(shown, lines=lines) == []
        assert write(shown) == shown
        shown.encode("utf-8")
    assert commands(clean.log_line(value)) == []
    assert "\n" not in clean.log_line(value)


@given(PLAIN)
def test_text_that_harms_nothing_stays_as_it_is(value: str) -> None:
    for write in (clean.text, clean.line, clean.log_line, clean.markdown):
        assert write(value) == value
    assert clean.code(value) == f"`{value}`"
    assert printed(value) == f"{value}\n"


@pytest.mark.parametrize(
    "value",
    ["at::native::conv", "torchvision::nms", "بی‌نام", "👩‍💻", "naïve – 4×", "a: b", "[1, 3, 16]", ":x:", "[red]"],
)
def test_what_only_looks_odd_stays_too(value: str) -> None:
    assert clean.text(value) == clean.line(value) == clean.log_line(value) == value
    assert printed(value) == f"{value}\n"


@given(HOSTILE)
@example("100%\n::error::x")
def test_a_workflow_command_holds_one_line(value: str) -> None:
    shown = clean.workflow(value)
    assert acts(shown, lines=False) == []
    assert commands(f"::error title=t::{shown}") == [f"::error title=t::{shown}"]
    assert not re.search(r"##\w*\[", shown)
    read = shown.replace("%0A", "\n").replace("%0D", "\r").replace("%25", "%")
    assert read == re.sub(r"##(?=\w*\[)", "## ", clean.text(value))


@given(st.dictionaries(HOSTILE, HOSTILE, max_size=3))
def test_json_on_a_log_is_of_equal_data(value: dict[str, str]) -> None:
    shown = clean.json_text(json.dumps(value, indent=1))
    assert json.loads(shown) == value
    assert commands(shown) == []


@given(HOSTILE)
def test_xml_can_hold_it(value: str) -> None:
    element = ElementTree.Element("a", name=clean.line(value))
    element.text = clean.text(value)
    read = ElementTree.fromstring(ElementTree.tostring(element))
    assert read.get("name") == clean.line(value)
    assert (read.text or "") == clean.text(value)


@given(HOSTILE)
def test_markdown_starts_nothing(value: str) -> None:
    shown = clean.markdown(value)
    assert acts(shown, lines=False) == []
    assert not re.search(r"[<>|]", shown)
    plain = re.sub(r"\\.|&(lt|gt|#\d+);", "x", shown)  # what is left once escaped characters are gone
    assert not re.search(r"[`*_#~$&\\]|\]\(|\]\[|\]:|://|www\.", plain)
    assert not re.match(r"[-+](\s|$|-)|=+$|\d{1,9}[.)](\s|$)", plain)


@given(HOSTILE)
def test_code_in_markdown_ends_where_it_ends(value: str) -> None:
    assert clean.code(value)[1:-1].count("`") == 0
    block = clean.fenced(value, "sh").split("\n")
    fence = block[0].removesuffix("sh")
    assert set(fence) == {"`"}
    assert [number for number, one in enumerate(block[1:], 1) if one.startswith(fence)] == [len(block) - 1]


def printed(value: str | Text | Table, width: int = 40, *, terminal: bool = False) -> str:
    console = clean.console()
    console.file, console.width = io.StringIO(), width
    console._force_terminal = terminal
    console.print(value, soft_wrap=isinstance(value, str))
    return console.file.getvalue()  # type: ignore[attr-defined]


@given(HOSTILE, st.integers(4, 30))
def test_a_console_shows_nothing_that_acts(value: str, width: int) -> None:
    """Wherever lines are broken: the end of a name may come to stand at the beginning of one."""
    table = Table(value, value, title=Text(value), caption=value)
    table.add_row(value, Text(value))
    table.columns[0].overflow = "fold"
    for shown in (value, Text(value), Text(f"  {value}"), table):
        found = printed(shown, width)
        assert acts(found, lines=True) == []
        assert commands(found) == []


def test_styles_are_kept_and_escape_sequences_of_a_name_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NO_COLOR", "TERM"):
        monkeypatch.delenv(name, raising=False)
    from rich.console import Console

    console = clean.console()
    console.file = io.StringIO()
    plain = Console(file=io.StringIO(), force_terminal=True, color_system="standard")
    console._force_terminal, console._color_system = True, plain._color_system
    for one in (console, plain):
        one.print(Text("bad", "red"))
    assert console.file.getvalue() == plain.file.getvalue() == "\x1b[31mbad\x1b[0m\n"  # type: ignore[attr-defined]
    console.print(Text("\x1b[32mbad", "red"))
    assert "\x1b[32m" not in console.file.getvalue()  # type: ignore[attr-defined]
