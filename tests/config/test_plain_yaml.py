"""YAML from anybody: read as plain values, refused with its line, and never without end."""

from __future__ import annotations

from typing import Any

import pytest

from distill.plain_yaml import parse_yaml

CHANGED = {key: {"x": 3, "y": 2} for key in "ac"}
_AGAIN = ", ".join(["*a{}"] * 10)


def laughs(opened: str, closed: str) -> str:
    """Return ten lines that stand for ten thousand million values."""
    lines = [f"a{n}: &a{n} {opened.format(_AGAIN.format(*[n - 1] * 10))}{closed}" for n in range(1, 10)]
    return "\n".join(["a0: &a0 {x: 1}", *lines])


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2020-13-45", "2020-13-45"),
        ("2020-01-02T00:00:00+99:99", "2020-01-02T00:00:00+99:99"),
        ("1:30:00", "1:30:00"),
        ("=", "="),
        ("[010, 0x1F, 0o17, 0b11, 1_000]", ["010", 31, 15, 3, 1000]),
        ("[0x, ., -., 1e, +_]", ["0x", ".", "-.", "1e", "+_"]),
        ("{a: 1e-3, b: .5, c: off, d: ~}", {"a": 0.001, "b": 0.5, "c": False, "d": None}),
        (
            "b: &b {x: 1, y: 2}\na: &a {<<: *b, x: 3}\nc: {<<: *a}",
            {"b": {"x": 1, "y": 2}} | CHANGED,
        ),
        ("[&a [1], *a, *a]", [[1], [1], [1]]),
        ("", None),
    ],
)
def test_plain_values(text: str, value: Any) -> None:
    assert parse_yaml(text) == value


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: 1\nb: !!python/object/apply:os.system [ls]", "line 2.*python"),
        ("a: !!binary abcd", "line 1.*!!binary is not read here"),
        ("a: !!set {x}", "!!set"),
        ("a: !!timestamp x", "!!timestamp"),
        ("a: !mine x", "!mine"),
        ("a: !!bool x", "'x' is no bool"),
        ("a: !!int x", "'x' is no int"),
        ("a: !!map x", "a mapping was expected"),
        ("\na: " + "9" * 5000, "line 2.*is no int"),
        ("a: 0x_", "is no int"),
        ("a: 1\na: 2", "line 2.*comes twice"),
        ("<<: 3", "mapping"),
        ("a: \x00", "line 1.*not allowed"),
        ("a:\n\t- b", "line 2"),
        ("? [a]\n: b", "unhashable"),
        ("a: *a", "undefined alias"),
        ("a: &a [*a]", r"\*a stands for what it stands in"),
        ("a: &a {<<: *a}", r"\*a stands for what it stands in"),
        ("a: " + "[" * 10_000, "line 1.*nested too deeply"),
        ("a: " + "{b: " * 10_000, "nested too deeply"),
        ("\n".join(" " * n + "a:" for n in range(1000)), "line 99.*nested too deeply"),
        ("\n".join(["- &a0 [1]", *(f"- &a{n} [*a{n - 1}]" for n in range(1, 200))]), "nested too deeply"),
        (laughs("[{}", "]"), "aliases make more than 1000000 values"),
        (laughs("{{<<: [{}]", "}"), "aliases make more than 1000000 values"),
    ],
)
def test_what_is_no_plain_yaml_is_refused_with_its_line(text: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        parse_yaml(text)
