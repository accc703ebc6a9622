from __future__ import annotations

import io
from dataclasses import replace

import pytest
from report_samples import EVERY, NASTY, empty, full, reverted, unmeasured
from rich.cells import cell_len
from rich.console import Console

from distill.report import document, headline, render
from distill.runtime.records import Estimate, RunResult


def printed(result: RunResult, width: int = 120) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(render(result))
    file = console.file
    assert isinstance(file, io.StringIO)
    return file.getvalue()


@pytest.mark.parametrize("width", [120, 80, 40])
@pytest.mark.parametrize("name", EVERY)
def test_it_fits(name: str, width: int) -> None:
    text = printed(EVERY[name](), width)
    assert max(cell_len(line.rstrip()) for line in text.splitlines()) <= width
    assert "\x1b" not in text


def test_headline_comes_first_and_says_everything() -> None:
    text = " ".join(printed(full()).replace("│", " ").split())
    for fact in (
        "Shipped: the student, pruned, int8",
        "8.41× [8.28, 8.54] faster than the teacher's fp32 ONNX at batch 1",
        "13.0× smaller",
        "accuracy 92.43 %, drop 0.66 points [0.28, 1.04]",
        "drop budget unresolved, latency budget met",
        "x86, CPUExecutionProvider, 1 thread",
    ):
        assert fact in text
        assert text.index(fact) < text.index("stage")


def test_a_row_a_stage_in_one_table() -> None:
    rows = [line.split() for line in printed(full()).splitlines()]
    rows = [row for row in rows if row and row[0] in ("teacher", "control", "student", "prune", "quantize", "export")]
    assert [row[0] for row in rows] == ["teacher", "control", "student", "prune", "quantize", "export"]
    wanted = (
        "quantize done 92.43 % [91.92, 92.94] 96.3 % 51.9 k 3.87 M 81.2 KB 68.4 µs 1.52 ms 8.49× [8.36, 8.62] 100 %"
    )
    assert " ".join(rows[4]) == wanted


def test_at_80_columns_nothing_is_left_out() -> None:
    wide, narrow = set(printed(full()).split()), set(printed(full(), 80).split())
    assert {word for word in wide if not word.startswith(("─", "╰", "╭"))} <= narrow


@pytest.mark.parametrize("name", ["full", "reverted", "unmeasured"])
def test_no_word_is_cut_at_80_columns(name: str) -> None:
    wide = {word for word in printed(EVERY[name](), 400).split() if word.isalpha()}
    narrow = {word for line in printed(EVERY[name](), 80).splitlines() for word in line.split() if word.isalpha()}
    assert narrow <= wide


def test_the_table_of_distillation_needs_a_control() -> None:
    result = full()
    off = [replace(stage, status="off") if stage.name == "control" else stage for stage in result.stages]
    sections = [document(replace(result, stages=stages)).sections for stages in (result.stages, tuple(off))]
    blocks = [next(s.blocks for s in each if s.title == "What distillation bought") for each in sections]
    assert [len(each) for each in blocks] == [2, 1]


def test_the_model_is_the_first_file_that_is_named() -> None:
    text = printed(full())
    places = [text.index(f"runs/fashion-mnist-4f1c/{name}") for name in ("deploy/model.onnx", "report.html")]
    assert text.index("runs/fashion-mnist-4f1c/") == places[0] < places[1]


def test_files_and_warnings_are_named() -> None:
    text = printed(full())
    assert "runs/fashion-mnist-4f1c/deploy/model.onnx" in text
    assert "runs/fashion-mnist-4f1c/report.html" in text
    assert "warning: 10000 rows cannot show less than 0.38 points" in text
    assert "warning: prune: block3.conv1: 8 channels kept" in text


def test_off_reverted_and_no_difference_are_said() -> None:
    text = printed(reverted())
    assert "control off: not run" in text
    assert "prune reverted: validation drop 1.62 points is over max_drop 1.00" in text
    assert "1.01× [0.97, 1.05] ≈" in text
    assert "neither faster nor slower was shown" in text
    assert "Shipped: the student, int8" in text, "a reverted prune is not in the shipped file"


def test_unmeasured_is_in_the_headline() -> None:
    result = unmeasured()
    assert "latency unmeasured on arm (this machine is x86-64, the target is arm)" in str(headline(result))
    assert "CPUExecutionProvider (did not run here)" in str(headline(result))
    assert "faster" not in printed(result)
    assert "export unmeasured: this machine is x86-64, the target is arm" in printed(result)


@pytest.mark.parametrize("width", [120, 80])
def test_where_nothing_was_timed_no_column_of_dashes_is_shown(width: int) -> None:
    result = unmeasured()
    stages = tuple(replace(stage, detail=replace(stage.detail, profile=None)) for stage in result.stages)
    text = printed(replace(result, stages=stages), width)
    assert "p50" not in text and "kernels" not in text
    assert text.count("\nquantize ") == 1
    assert "p50" in printed(full(), width)


def test_nothing_recorded_says_so() -> None:
    text = printed(empty())
    assert "Nothing shipped" in text
    assert "unmeasured" in text
    assert "model.onnx" not in text


def test_markup_of_the_user_stays_text() -> None:
    assert "[bold red]z[/]" in printed(EVERY["hostile"]())
    assert "\x1b" in NASTY, "the sample does hold an escape"


def test_undeployable_and_slower_are_said_first() -> None:
    result = full()
    slower = replace(result.comparison, speedup=Estimate(0.83, 0.8, 0.86), size_ratio=0.9)
    words = str(headline(replace(result, deployable=False, comparison=slower)))
    assert words.startswith("NOT DEPLOYABLE")
    assert "0.83× [0.80, 0.86] the speed of the teacher's fp32 ONNX at batch 1 (slower)" in words
    assert "(not smaller)" in words
