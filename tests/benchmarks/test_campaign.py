"""The campaign that measures the gate itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from distill.benchmarks import Target
from distill.benchmarks.onnx_file import facts
from distill.benchmarks.timing import jobs
from distill.versus import gate as campaign


@pytest.mark.parametrize("injected", [0.08, 0.03, 0.04])
def test_a_graph_does_really_more_work(tmp_path: Path, injected: float) -> None:
    size = campaign.with_room({"size": "1 ms", "injected": injected})
    plain = facts.read_facts(campaign.chain(tmp_path / "a.onnx", *size)).macs
    more = facts.read_facts(campaign.chain(tmp_path / "b.onnx", *size, extra=injected)).macs
    assert more / plain - 1 == pytest.approx(injected, abs=0.005)


def test_gates_are_appended_and_a_campaign_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(campaign, "SIZES", {"tiny": (2, 4, 1)})
    monkeypatch.setattr(campaign, "Timing", lambda **given: jobs.Timing(**{**given, "seconds_per_pair": 0.02}))
    out = tmp_path / "aa.jsonl"
    campaign.live(out, "aa", 1)
    assert len(out.read_text().splitlines()) == 2
    with out.open("a") as file:
        file.write('{"what": "aa", "cut o')
    campaign.live(out, "aa", 2)
    rows = campaign.read_rows(out)
    assert len(rows) == 4
    assert all(len(row["fastest"]) == len(row["medians"]) and len(row["medians"]) in (4, 6, 8, 12, 16) for row in rows)
    campaign.REPLAYS = 20
    campaign.report([out])
    assert "| aa tiny, 1 thread(s) | 2 | 5 % |" in capsys.readouterr().out


def test_a_spinning_arm_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, here: Target) -> None:
    monkeypatch.setattr(campaign, "SIZES", {"tiny": (8, 8, 4)})
    monkeypatch.setattr(campaign, "Timing", lambda **given: jobs.Timing(**{**given, "seconds_per_pair": 0.05}))
    cell = {"what": "spin", "size": "tiny", "threads": 1, "injected": 0.6, "tolerance": 0.05}
    found = campaign.one_gate(tmp_path, cell, seed=0)
    assert found["verdict"] == "fail"
    assert found["theta"] == pytest.approx(0.47, abs=0.25)


def test_the_operating_curve_rises(tmp_path: Path) -> None:
    shares = campaign.operating_curve(0.05, 0.005, [0.0, 0.03, 0.08], count=100)
    assert shares[0] == 0
    assert shares[1] <= 0.02
    assert shares[2] >= 0.95
    campaign.curve(tmp_path / "curve.svg")
    assert (tmp_path / "curve.svg").read_text().count("<polyline") == 6
