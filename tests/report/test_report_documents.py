from __future__ import annotations

import dataclasses
import errno
import json
import math
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from report_samples import EVERY, empty, full, hostile, reverted, unmeasured
from test_report_terminal import printed

from distill.benchmarks import Profile
from distill.benchmarks import units as fmt
from distill.errors import UserError
from distill.intervals import Estimate
from distill.report import html, markdown, write_reports
from distill.runtime.facts import Decision, Detail, Drop, FileParity, Quality, StageLatency
from distill.runtime.records import RunResult, StageRecord, Total

VOID = {"meta", "br", "link", "img", "input", "hr"}


class Page(HTMLParser):
    """Reads a page and keeps its tags, its visible text, and what its scripts hold."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.scripts: list[str] = []
        self.feed(source)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            self.scripts[-1] += data
        elif self.open and self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


@pytest.fixture
def without_plotly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["distill.rendering.html"], "_plotly", lambda: "")


def figures(page: Page) -> list[dict[str, Any]]:
    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    data = [s for s, (_, a) in zip(page.scripts, [t for t in page.tags if t[0] == "script"], strict=True) if "id" in a]
    found: list[dict[str, Any]] = json.loads(data[0], parse_constant=refuse) if data else []
    return found


FACTS = (
    "8.41× [8.28, 8.54] faster", "13.0× smaller",
    "drop 0.66 points [0.28, 1.04]", "x86, CPUExecutionProvider, 1 thread",
    "unresolved", "at most 1.00 points", "at most 100 µs", "1.31× faster than the student", "max_abs", "stem.conv",
    "CPUExecutionProvider/QLinearConv", "Distillation changed accuracy by 0.90 points [0.49, 1.31]", "54000",
    "Example CPU", "1.31.1", "temperature: 4.0", "python -m distill run config.yaml --decisions",
    "deploy/model.onnx", "10000 rows cannot show less than 0.38 points", "quiet",
)  # fmt: skip


def test_html_says_every_fact(without_plotly: None) -> None:
    text = Page(html(full())).text
    for fact in FACTS:
        assert fact in text, fact


def test_markdown_says_every_fact() -> None:
    text = markdown(full()).replace("\\", "")
    for fact in FACTS:
        assert fact in text, fact


@pytest.mark.parametrize("name", EVERY)
def test_pages_are_whole_and_stable(name: str, without_plotly: None) -> None:
    result = EVERY[name]()
    assert html(result) == html(result)
    assert markdown(result) == markdown(result)
    page = Page(html(result))
    assert [tag for tag, _ in page.tags].count("h1") == 1
    ids = [found["id"] for _, found in page.tags if "id" in found]
    assert len(ids) == len(set(ids))
    links = {str(found["href"])[1:] for tag, found in page.tags if tag == "a" and str(found["href"]).startswith("#")}
    assert links <= set(ids)


def test_one_file_without_a_network() -> None:
    source = html(full())
    page = Page(source)
    assert source.count("* plotly.js v") == 1
    for tag, found in page.tags:
        assert "src" not in found, tag
        assert not re.match(r"(https?:)?//", str(found.get("href", ""))), tag
    policy = [found["content"] for tag, found in page.tags if found.get("http-equiv") == "Content-Security-Policy"]
    assert policy and str(policy[0]).startswith("default-src 'none'"), "nothing can be fetched, whatever plotly.js asks"
    assert "@import" not in source.partition("</style>")[0]


def test_no_chart_no_plotly() -> None:
    assert len(html(empty())) < 30_000


def test_charts_hold_the_records_numbers(without_plotly: None) -> None:
    drawn = {one["id"]: one for one in figures(Page(html(full())))}
    assert list(drawn) == ["trade-off", "latency-1", "latency-32", "drops", "curve-validation", "curve-loss"]
    bars = drawn["latency-1"]["data"][0]
    assert bars["x"] == pytest.approx([581, 142, 141, 108, 68.4, 69.1])
    assert bars["text"][-1] == "69.1 µs · 8.41×"
    circles = {trace["text"][0]: trace for trace in drawn["trade-off"]["data"] if "text" in trace}
    assert circles["export"]["x"] == pytest.approx([69.1])
    assert circles["export"]["y"] == pytest.approx([92.43])
    sizes = {name: trace["marker"]["size"][0] for name, trace in circles.items()}
    assert max(sizes, key=lambda name: sizes[name]) == "teacher"
    assert drawn["curve-loss"]["data"][0]["y"] == (full().stage("teacher").detail.curves or {})["loss"]


def test_plotly_accepts_the_charts(without_plotly: None) -> None:
    import plotly.graph_objects as go

    for figure in figures(Page(html(full()))):
        text = re.sub(r"var\(--[a-z-]+\)", "#123456", json.dumps(figure))
        known = json.loads(text)
        drawn = go.Figure({"data": known["data"], "layout": known["layout"]})
        assert len(drawn.data) == len(known["data"]) > 0


def test_unmeasured_and_reverted_are_said(without_plotly: None) -> None:
    page = Page(html(unmeasured()))
    assert "latency unmeasured on arm (this machine is x86-64, the target is arm)" in page.text
    assert [one["id"] for one in figures(page)] == ["drops", "curve-validation", "curve-loss"]
    for text in (Page(html(reverted())).text, markdown(reverted()).replace("**", "").replace("\\", "")):
        assert "prune reverted: validation drop 1.62 points is over max_drop 1.00" in text
        assert "control off: not run" in text
        assert "The control was off: this run does not show what distillation itself bought." in text


def test_every_axis_of_the_budget_has_a_row(without_plotly: None) -> None:
    total = replace(full().comparison, verdicts={"drop": "met", "size": "missed"})
    result = replace(full(), comparison=total, config={**full().config, "max_file_bytes": 50_000})
    assert "| file size | at most 50.0 KB | 84.1 KB | missed |" in markdown(result)
    assert "size budget missed" in Page(html(result)).text


def test_a_leakage_warning_stands_beside_the_splits_too(without_plotly: None) -> None:
    result = replace(full(), warnings=("leakage: the teacher was loaded, the split is ours",))
    assert Page(html(result)).text.count("leakage: the teacher was loaded") == 2


def test_without_a_recorded_gain_no_difference_is_made_up(without_plotly: None) -> None:
    result = full()
    stages = tuple(replace(s, detail=replace(s.detail, gain=None)) for s in result.stages)
    text = Page(html(replace(result, stages=stages))).text
    assert "no paired interval of their difference is recorded" in text
    assert "0.90 points" not in text


def test_hostile_text_stays_text(without_plotly: None) -> None:
    page = Page(html(hostile()))
    assert [tag for tag, _ in page.tags].count("script") == 3
    assert not [tag for tag, _ in page.tags if tag == "img"]
    assert "<script>alert(1)</script>" in page.text
    assert "\x1b" not in html(hostile())
    for figure in figures(page):
        assert "<img" not in json.dumps(figure)
    text = markdown(hostile())
    outside = re.sub(r"(?ms)^(`{3,}).*?^\1$", "", text)
    assert not re.search(r"(?<!\\)<(script|img)", outside)
    assert "\x1b" not in text
    rows = [line for line in outside.splitlines() if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows if "xx" in row} <= {3}


@pytest.mark.parametrize("make", [full, reverted, unmeasured])
def test_a_number_that_is_in_no_record_is_in_no_report(make: Any, without_plotly: None) -> None:
    result: RunResult = make()
    known = _writings(dataclasses.asdict(result))
    words = {"95", "32", "1", "50"}  # "95 % intervals", "fp32", "batch 1", "p50": what a figure means, not a figure
    page = Page(html(result))
    for text in (page.text, markdown(result), printed(result, 120)):
        assert set(re.findall(r"\d+(?:\.\d+)?", text)) - known - words == set()


def _writings(value: Any, name: str = "") -> set[str]:
    """Return every way in which the reports may write the numbers inside a record."""
    if isinstance(value, dict):
        found = [_writings(one, str(key)) | set(re.findall(r"\d+(?:\.\d+)?", str(key))) for key, one in value.items()]
        if "value" in value:
            found.append(_writings_of(fmt.speedup(Estimate(value["value"], value["low"], value["high"]))))
        return set().union(*found)
    if isinstance(value, list | tuple):
        return set().union(*(_writings(one, name) for one in value))
    writers = (fmt.duration, fmt.elapsed, fmt.size, fmt.count, fmt.percent, fmt.share, fmt.points, fmt.times, fmt.plain)
    texts = [write(value) for write in writers] + [fmt.percent(value, 2), fmt.significant(value, 4), str(value)]
    return set().union(*(_writings_of(text) for text in texts))


def _writings_of(text: str) -> set[str]:
    return set(re.findall(r"\d+(?:\.\d+)?", text))


def test_configuration_and_command_can_be_used() -> None:
    text = markdown(replace(full(), folder="my runs/it's"))
    block = re.search(r"```yaml\n(.*?)```", text, re.DOTALL)
    assert block and yaml.safe_load(block.group(1)) == full().config
    assert "--decisions 'my runs/it'\"'\"'s/run.json'" in text


def test_reports_survive_the_run_file(without_plotly: None) -> None:
    result = full()
    again = RunResult.from_json(result.to_json())
    assert (html(again), markdown(again)) == (html(result), markdown(result))


def test_write_reports_puts_both_in_place(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    paths = write_reports(full(), folder)
    assert [path.name for path in paths] == ["report.md", "report.html"]
    assert sorted(path.name for path in folder.iterdir()) == ["report.html", "report.md"]
    assert paths[0].read_text(encoding="utf-8") == markdown(full())


def test_a_full_disk_leaves_the_old_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, without_plotly: None
) -> None:
    (tmp_path / "report.md").write_text("old")

    def full_disk(source: Any, target: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "replace", full_disk)
    with pytest.raises(UserError, match=r"report\.md cannot be written \(No space left on device\)"):
        write_reports(full(), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["report.md"]
    assert (tmp_path / "report.md").read_text() == "old"


def test_a_folder_that_is_a_file_is_refused(tmp_path: Path, without_plotly: None) -> None:
    (tmp_path / "run").write_text("")
    with pytest.raises(UserError, match="choose a folder"):
        write_reports(empty(), tmp_path / "run")


NUMBERS = st.one_of(
    st.none(), st.floats(), st.sampled_from([0.0, 5e-324, 1e-300, 1e308, -1e308, 0.5, math.nan]), st.integers()
)
TEXTS = st.text(max_size=6)
ESTIMATES = st.builds(Estimate, NUMBERS, NUMBERS, NUMBERS)
VERDICTS = st.sampled_from(["met", "missed", "unresolved"])
QUALITIES = st.builds(
    Quality, st.just("test"), NUMBERS, st.dictionaries(st.just("accuracy"), ESTIMATES), st.none() | ESTIMATES,
    st.none() | st.builds(Drop, NUMBERS, NUMBERS, NUMBERS, NUMBERS, VERDICTS), kl=NUMBERS,
)  # fmt: skip
LATENCIES = st.builds(
    StageLatency, TEXTS, TEXTS, st.dictionaries(TEXTS, st.lists(st.integers(), max_size=2), max_size=1),
    st.sampled_from([1, 32]), st.integers(), NUMBERS, NUMBERS, st.integers(), st.none() | ESTIMATES, NUMBERS,
)  # fmt: skip
ANYTHING = st.recursive(
    st.one_of(NUMBERS, TEXTS, st.booleans()),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)
REAL = st.one_of(st.floats(), st.sampled_from([0.0, 5e-324, 1e-300, 1e308, -1e308, 0.5, math.nan]))
COUNTS = st.dictionaries(TEXTS, st.integers(), max_size=3)
WARNINGS = st.lists(TEXTS, max_size=1).map(tuple)
DETAILS = st.builds(
    Detail,
    curves=st.none() | st.dictionaries(st.sampled_from(["validation", "loss", "x"]), st.lists(REAL)),
    widths=st.none() | st.dictionaries(TEXTS, st.tuples(st.integers(), st.integers()), max_size=2),
    profile=st.none() | st.builds(Profile, COUNTS, REAL, st.integers(), st.integers(), TEXTS, WARNINGS, WARNINGS),
    decision=st.none() | st.builds(Decision, st.booleans(), TEXTS, speedup=st.none() | st.builds(Estimate, REAL, REAL)),
    parity=st.none() | st.builds(FileParity, REAL, REAL, REAL, st.integers(), REAL, st.booleans(), reference=TEXTS),
    gain=st.none() | st.builds(Estimate, REAL, REAL, REAL),
    splits=st.none() | COUNTS,
    files=st.none() | WARNINGS,
    timing=st.none() | WARNINGS,
    reason=st.none() | TEXTS,
)
STAGES = st.builds(
    StageRecord, st.sampled_from(["teacher", "control", "student", "prune", "quantize", "export"]),
    st.sampled_from(["done", "reverted", "unmeasured", "off"]), st.booleans(), NUMBERS, NUMBERS, NUMBERS, NUMBERS,
    st.none() | QUALITIES, st.none() | QUALITIES, st.lists(LATENCIES, max_size=2).map(tuple),
    st.lists(TEXTS, max_size=1).map(tuple), DETAILS,
)  # fmt: skip
MAPPINGS = st.dictionaries(st.sampled_from(["name", "threads", "batch_sizes", "benchmark", "max_drop", "k"]), ANYTHING)
RESULTS = st.builds(
    RunResult, TEXTS, TEXTS, MAPPINGS, MAPPINGS, MAPPINGS,
    st.lists(STAGES, max_size=5, unique_by=lambda stage: stage.name).map(tuple), st.sampled_from(["quantize", "", "x"]),
    st.builds(Total, st.none() | ESTIMATES, NUMBERS, st.just("accuracy"), st.none() | ESTIMATES, st.none() | VERDICTS),
)  # fmt: skip


@settings(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck))
@given(result=RESULTS)
def test_any_result_whatever_makes_whole_reports(result: RunResult, without_plotly: None) -> None:
    page = Page(html(result))
    figures(page)
    for text in (page.text, markdown(result), printed(result, 100)):
        assert text.strip()
        text.encode("utf-8")


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs chromium")
def test_a_browser_draws_every_chart(tmp_path: Path) -> None:
    _, page = write_reports(full(), tmp_path)
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--dump-dom"]
    flags += ["--virtual-time-budget=8000", f"--user-data-dir={tmp_path / 'profile'}", page.as_uri()]
    dom = subprocess.run(["chromium", *flags], capture_output=True, text=True, timeout=120, check=True).stdout
    assert dom.count('class="plot-container') == 6
