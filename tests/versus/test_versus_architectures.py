import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_architectures import DEADLY, FIXED, WIDE, Zoo, greedy, hang

from distill.benchmarks.timing.jobs import Timing
from distill.versus.apart import Limits, apart
from distill.versus.architectures import TOOLS, How, run, timed
from distill.versus.architectures_drawn import drawn
from distill.versus.architectures_models import CASES, built, heads_of, logits_of
from distill.versus.architectures_report import report, verdict
from distill.versus.architectures_steps import again, ours, peer, plain
from distill.versus.gate import read_rows

QUICK = How(limits=Limits(seconds=100), timing=Timing(pairs=2, seconds_per_pair=0.02))


def row(case: str, asked: float = 0.5, **tools: dict[str, Any]) -> dict[str, Any]:
    plain = {"at": "done", "macs": 1000, "parameters": 100, "p50_s": 1e-3}
    return {"case": case, "source": "fake", "shape": [3, 8, 8], "asked": asked, "seconds": 1.0} | {
        "tools": {"plain": plain} | {name.replace("_", "-"): found for name, found in tools.items()}
    }


def done(macs: int, **more: Any) -> dict[str, Any]:
    return {"at": "done", "macs": macs, "parameters": 50, "onnx_error": 1e-7, "seconds": 2.0} | more


def test_every_architecture_has_a_name_of_its_own() -> None:
    titles = [case.title for case in CASES]
    assert len(set(titles)) == len(titles) > 50
    assert {case.source for case in CASES} == {"torchvision", "timm", "transformers"}


def test_weights_answer_to_the_input_and_are_the_same_each_time() -> None:
    model, same, other = built(WIDE), built(WIDE), built(WIDE, seed=1)
    args, kwargs = WIDE.inputs(2)
    with torch.no_grad():
        answers = logits_of(model(*args, **kwargs))
        assert torch.equal(answers, same(*args))
        assert not torch.allclose(answers, other(*args))
    assert (answers[0] - answers[1]).abs().max() > 0.01
    assert heads_of(model, WIDE) == [model.head]


def test_models_are_drawn_by_a_seed_at_the_least_size_that_they_take(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", Zoo())
    monkeypatch.setattr("distill.versus.architectures_drawn.apart", lambda step, limits: step())
    monkeypatch.setattr("distill.versus.architectures_drawn.MOST_MACS", 4e6)
    orders = [[case.title for case in drawn(9, seed)] for seed in range(6)]
    assert {frozenset(order) for order in orders} == {frozenset({"timm/any", "timm/given", "timm/fixed"})}
    assert len(set(map(tuple, orders))) > 1
    assert [case.title for case in drawn(2, 3)] == orders[3][:2]
    cases = {case.name: case for case in drawn(3, 0)}
    assert {name: case.shape for name, case in cases.items()} == {
        "any": (3, 64, 64),
        "given": (3, 64, 64),
        "fixed": (3, 160, 160),
    }
    for case in cases.values():
        assert case.make()(*case.inputs(2)[0]).shape == (2, 1000)


def test_a_process_that_dies_hangs_or_grows_is_a_result() -> None:
    assert apart(hang, Limits(seconds=0.5)) == {"at": "limit", "why": "took more than 0.5 s", "seconds": 0.5}
    grown = apart(greedy, Limits(memory_bytes=2**30))
    assert grown["at"] == "load"
    assert "memory" in grown["why"]
    assert apart(greedy, Limits(memory_bytes=16 * 2**30)) == {"bytes": 2**32}


def test_a_crash_is_a_line_and_a_stopped_campaign_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = tmp_path / "results.jsonl"
    results.write_text(json.dumps(row("fake/wide", torch_pruning=done(500))) + '\n{"case": "fake/deadly", "ask')
    run(results, [WIDE, DEADLY], [0.5], TOOLS[1:], QUICK)
    rows = read_rows(results)
    assert [one["case"] for one in rows] == ["fake/wide", "fake/deadly"]
    assert rows[1]["tools"]["torch-pruning"] == {"at": "crash", "why": "the process died with code 3"}
    assert [verdict(one, "torch-pruning") for one in rows] == ["works", "fails"]
    capsys.readouterr()
    run(results, [WIDE, DEADLY], [0.5], TOOLS[1:], QUICK)
    assert capsys.readouterr().out == ""


def test_both_prune_export_and_are_timed_beside_the_unpruned_model(tmp_path: Path) -> None:
    found = {"plain": plain(WIDE, tmp_path), "distill": ours(WIDE, tmp_path, 0.5)}
    found["torch-pruning"] = peer(WIDE, tmp_path, 0.5, extras=False, seconds=10)
    assert not found["plain"]["extras"]
    for name, one in found.items():
        assert one["at"] == "done", (name, one)
        assert one["onnx_error"] < 1e-5
    found["distill"]["reload"] = again(WIDE, tmp_path)
    assert found["distill"]["reload"] == {"identical": True, "apart": 0.0}
    timed(tmp_path, found, QUICK.timing)
    assert all(one["p50_s"] > 0 for one in found.values())
    judged = row("fake/wide") | {"tools": found}
    assert [verdict(judged, name) for name in ("distill", "torch-pruning")] == ["works", "works"]


def test_what_no_longer_runs_says_so(tmp_path: Path) -> None:
    found = peer(FIXED, tmp_path, 0.5, extras=False, seconds=10)
    assert found["at"] == "forward"
    assert "shape" in found["why"]


def test_the_report_counts_what_works() -> None:
    fine = {"reload": {"identical": True}, "p50_s": 5e-4, "ratio_to_plain": [0.5, 0.4, 0.6]}
    rows = [
        row("fake/a", distill=done(510, **fine), torch_pruning=done(300)),
        row("fake/b", distill=done(560, **fine), torch_pruning={"at": "prune", "why": "KeyError: 1"}),
        row("fake/c", distill={"at": "prune", "why": "no layer to cut", "refused": True}, torch_pruning=done(500)),
        row("fake/d", distill=done(500, reload={"identical": False}), torch_pruning={"at": "export", "why": "x"}),
    ]
    assert [verdict(one, "distill") for one in rows] == ["works", "off", "refused", "fails"]
    assert [verdict(one, "torch-pruning") for one in rows] == ["off", "fails", "works", "fails"]
    rows[0] |= {"machine": {"cpu": "some processor"}, "versions": {"torch": "2.13.0"}}
    text = report([json.loads(json.dumps(one)) for one in rows])
    assert "| distill | 50% | 1 of 4 | 1 | 1 | 1 | 1 of 4 |" in text
    assert "| torch-pruning | 50% | 1 of 4 | 1 | 0 | 2 | 1 of 4 |" in text
    assert "| fake/a | 3×8×8 | 1.00 k | 100 | 1.00 ms | 50% | 49" in text
    assert "- fake/c: no layer to cut" in text
    assert "- fake/d: does not load again: other answers" in text
    assert "some processor, one thread, batch 1; torch 2.13.0" in text
