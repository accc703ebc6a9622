"""Reports in every form: whatever a file is called, and whatever was found, each stays what it is."""

from __future__ import annotations

import dataclasses
import io
from typing import Any
from xml.etree import ElementTree

import pytest
from rich.console import Console

from distill.benchmarks import records
from distill.benchmarks.onnx_file import facts
from distill.benchmarks.show import annotations, junit, tables
from distill.benchmarks.verdict import outcomes as verdicts
from distill.benchmarks.verdict import rule
from distill.intervals import Estimate

HOSTILE = "a|b<script>\n::error::`x` [y](z) \x1b[31m 100%"


def model(name: str) -> Any:
    about = facts.Facts(name, "m.onnx", "0" * 64, 1_090_000, 17, 8, 272_186, 31_200_000, [["x", "float32", [1]]], [])
    return records.Model(about, {"CPUExecutionProvider/Conv": 21}, 0.5, 42, "CPUExecutionProvider", 0.01, None, True)


def judged(verdict: str, slowdown: float = 1.0) -> Any:
    return rule.Judgement(verdict, slowdown, slowdown * 0.99, slowdown * 1.01, 6, 0.5, 0.061)


def report(verdict: str, mode: str = "duet", slowdown: float = 1.0) -> Any:
    rows = (
        records.Row(270e-6, 260e-6, 300e-6, None, 900, 0.02),
        records.Row(270e-6, 260e-6, None, None, 60, 0.02, None, Estimate(slowdown, 0.98, 1.09), 1.01),
    )
    case = records.Case(1, 2, (0, 1), [{"x": [1]}] * 2, rows, 0.1, 7.5, [])
    done = records.Gate(
        HOSTILE, mode, verdict, 0.05, 0.01, (4, 6), (judged(verdict, slowdown),), (None,), reasons=(HOSTILE,)
    )
    machine = {"cpu": HOSTILE, "threads": {"usable": 2}, "system": "Linux", "kernel": "6", "versions": {}}
    target = {"name": "x86", "provider": "CPUExecutionProvider", "measure": None}
    models = (model("old"), model(HOSTILE))
    return records.Report("2026-01-01", machine, "f", target, 0, models, (case,), (done,), (HOSTILE,))


def printed(one: Any, width: int) -> str:
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(tables.render(one))
    return console.export_text()


@pytest.mark.parametrize("width", [60, 80, 160])
def test_the_table_holds_what_a_reader_needs(width: int) -> None:
    text = printed(report("fail", slowdown=1.08), width)
    assert "FAIL" in text
    assert "\x1b[31m" not in text
    if width == 160:
        assert all(word in text for word in ("270 µs", "0.926× [0.917, 1.020] ~", "1.09 MB", "272 k", "21 CPU"))


def test_a_difference_that_is_noise_has_a_tilde() -> None:
    assert verdicts.change(judged("pass", 1.0)).startswith("~ 1.000×")
    assert verdicts.change(judged("fail", 1.08)) == "0.926× [0.917, 0.935]"
    assert verdicts.change(judged("improved", 0.9)).startswith("1.111×")


def test_doubt_says_what_could_have_been_caught() -> None:
    assert "could have caught is 6.1 %" in verdicts.explained(judged("inconclusive"))


@pytest.mark.parametrize(
    ("verdict", "kind"),
    [
        ("pass", None),
        ("improved", None),
        ("fail", "failure"),
        ("not measured", "error"),
        ("incomparable", "error"),
        ("inconclusive", "skipped"),
    ],
)
def test_junit_has_a_case_a_gate(verdict: str, kind: str | None) -> None:
    suite = ElementTree.fromstring(junit.junit([report(verdict), report("pass")]))
    assert suite.get("tests") == "2"
    counts = {name: int(suite.get(name) or 0) for name in ("failures", "errors", "skipped")}
    assert sum(counts.values()) == (kind is not None)
    case = suite.findall("testcase")[0]
    assert [child.tag for child in case] == [kind or "system-out"]
    assert case.get("time") == "7.500"


def test_the_summary_is_markdown_that_a_name_cannot_break() -> None:
    text = tables.summary(report("pass"))
    assert text.startswith("### PASS")
    assert "<script>" not in text
    assert "\x1b" not in text
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert all(line.count("|") == rows[0].count("|") for line in rows[:3])


@pytest.mark.parametrize(
    ("verdict", "command"), [("fail", "error"), ("inconclusive", "warning"), ("improved", "notice"), ("pass", None)]
)
def test_annotations_are_one_line_each(verdict: str, command: str | None) -> None:
    lines = annotations.workflow_commands([report(verdict)])
    if command is None:
        assert lines == []
    else:
        assert len(lines) == 1
        assert lines[0].startswith(f"::{command} title=distill bench::")
        assert "\n" not in lines[0]
        assert "100%25" in lines[0]


def test_exit_codes_put_a_regression_first() -> None:
    def gates(*found: str, mode: str = "duet") -> list[Any]:
        return [one for verdict in found for one in report(verdict, mode).gates]

    code = verdicts.exit_code
    assert code(gates("pass", "improved")) == 0
    assert code(gates("pass", "fail", "not measured", "incomparable")) == 1
    assert code(gates("not measured", "incomparable")) == 5
    assert code(gates("incomparable", "inconclusive"), strict=True) == 4
    assert code(gates("incomparable"), incomparable_ok=True) == 0
    assert code(gates("inconclusive")) == 0
    assert code(gates("inconclusive"), strict=True) == 3
    assert code(gates("pass", mode="none"), strict=True) == 3


def test_what_was_accepted_is_told() -> None:
    made = report("pass").gates[0]
    assert "accepted: twice the classes" in verdicts.headline(dataclasses.replace(made, accepted="twice the classes"))
