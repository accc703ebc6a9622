"""Results that somebody else wrote: they loosen no limit, name no other files, claim no verdict, and end no process."""

from __future__ import annotations

import copy
import json
import math
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from distill.cli import main

Conv = Callable[..., Path]


def bench(*words: object) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["bench", *map(str, words)])
    assert isinstance(ended.value.code, int)
    return ended.value.code


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a bundle that a board measured: its second file is several times as slow as its first."""
    import numpy as np
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    folder = tmp_path_factory.mktemp("measured")
    for name, layers in (("fast", 1), ("slow", 120)):
        rng, nodes, weights = np.random.default_rng(0), [], []
        for number in range(layers):
            value = 0.2 * rng.standard_normal((2, 2, 3, 3)).astype(np.float32)
            weights.append(numpy_helper.from_array(value, f"w{number}"))
            nodes.append(helper.make_node("Conv", [f"c{number}", f"w{number}"], [f"c{number + 1}"], pads=[1] * 4))
        x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 2, 6, 6]) for n in ("c0", f"c{layers}"))
        graph = helper.make_graph(nodes, "g", [x], [y], weights)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=7)
        onnx.save(model, folder / f"{name}.onnx")
    words = ("--pairs", "2", "--seconds", "0.05", "--max-regression", "50%")
    slow, fast = folder / "slow.onnx", folder / "fast.onnx"
    assert bench(slow, "--baseline", fast, *words, "--export-runner", folder / "bundle") == 0
    subprocess.run([sys.executable, "-I", "runner.py"], cwd=folder / "bundle", check=True, timeout=120)
    return folder


def write(path: Path, value: object) -> Path:
    path.write_text(json.dumps(value), encoding="utf-8")
    return path


def change(value: dict[str, Any], place: str, new: object) -> dict[str, Any]:
    changed: Any = copy.deepcopy(value)
    *way, last = [int(part) if part.isdigit() else part for part in place.split("/")]
    inner = changed
    for part in way:
        inner = inner[part]
    inner[last] = new
    return changed


def test_beside_its_bundle_a_result_is_judged_by_what_was_sent(measured: Path, tmp_path: Path, capsys: Any) -> None:
    bundle = shutil.copytree(measured / "bundle", tmp_path / "bundle")
    result = json.loads((bundle / "result.json").read_text())
    assert bench("--import", bundle / "result.json") == 1
    said = capsys.readouterr().out
    assert "slow-down of 50 % allowed" in said
    assert "without its bundle" not in said
    for place, new in (("tolerance", 99.0), ("gated", False), ("facts/1/sha256", "0" * 64), ("max_p50_s", 9.0)):
        made_up = write(bundle / "other.json", change(result, f"sent/{place}", new))
        assert bench("--import", made_up) == 2
        assert "is the result of another bundle" in capsys.readouterr().err
    model = next(bundle.glob("models/*/slow.onnx"))
    shutil.copyfile(measured / "fast.onnx", model)
    assert bench("--import", bundle / "result.json") == 2
    assert "is not the file that was sent" in capsys.readouterr().err


def test_a_job_that_points_out_of_its_bundle_is_refused(measured: Path, tmp_path: Path, capsys: Any) -> None:
    bundle = shutil.copytree(measured / "bundle", tmp_path / "bundle")
    job = json.loads((bundle / "job.json").read_text())
    shutil.copyfile(measured / "fast.onnx", tmp_path / "fast.onnx")
    write(bundle / "job.json", change(job, "jobs/0/arms/0/model", "../fast.onnx"))
    assert bench("--import", bundle / "result.json") == 2
    assert "is not the file that was sent" in capsys.readouterr().err


def test_alone_a_result_only_tightens(measured: Path, tmp_path: Path, capsys: Any) -> None:
    result = json.loads((measured / "bundle/result.json").read_text())
    loose = write(tmp_path / "r.json", change(result, "sent/tolerance", 99.0))
    assert bench("--import", loose) == 1
    said = " ".join(capsys.readouterr().out.split())
    assert "slow-down of 5 % allowed" in said
    assert "judged without its bundle" in said
    assert "would allow a slow-down of 9900 %" in said
    assert bench("--import", loose, "--max-regression", "9900%") == 0
    strict = write(tmp_path / "r.json", change(result, "sent/tolerance", 0.01))
    assert bench("--import", strict) == 1
    assert "slow-down of 1 % allowed" in capsys.readouterr().out
    ungated = write(tmp_path / "r.json", change(result, "sent/gated", False))
    assert bench("--import", ungated, "--max-regression", "5%") == 2
    assert "--max-regression: slow was measured without a baseline" in capsys.readouterr().err


TURN = "answers/2/pairs/0/turns/0"
MADE_UP: list[tuple[str, object]] = [
    *((f"{TURN}/1", value) for value in (math.nan, math.inf, -1.0, 0, "1", None, True, 10**400)),
    *((f"{TURN}/4", value) for value in (math.nan, 0.0, [])),
    *((f"{TURN}/0", value) for value in (7, -1, "0")),
    *((f"{TURN}/2", value) for value in (-3, "x")),
    *((TURN, value) for value in ([], {}, None, [0] * 9)),
    *(("sent/facts/1/sha256", value) for value in ([], {}, 3)),
    *(("sent/facts/1/name", value) for value in ([], {"a": 1}, None)),
    *(("sent/facts/0/bytes", value) for value in ("many", {})),
    *(("sent/tolerance", value) for value in ("5", None, [], -1.0, math.nan)),
    *(("sent/max_p50_s", value) for value in ("x", [])),
    *(("sent/answers", value) for value in ([], {}, [{"file": 9}] * 3, [{"case": -9}] * 3, None, "abc")),
    *(("sent/cases/0/shapes", value) for value in ([], {}, None, [[]], [{"x": "y"}])),
    *(("sent/cases/0/batch", value) for value in ("one", [], None)),
    *(("sent/target", value) for value in ({}, [], "x86", {"provider": 3})),
    *(("sent", value) for value in ([1], "x", 7)),
    *(("board", value) for value in ({}, [], "x", None)),
    *(("board/flags", value) for value in ([[]], 3, None)),
    *(("board/cores", value) for value in ("two", [], None)),
    *(("answers", value) for value in ([], {}, None, [{}] * 3, [{"status": "ok"}] * 3)),
    *(("answers/0/nodes", value) for value in ({}, [[]], [3], [["a", "b", "c", "d"]], None)),
    *(("answers/0/outputs", value) for value in ([], None, {"y": 3})),
    *(("answers/2/pairs", value) for value in ([], {}, [{}], None)),
    ("status", "passed"),
    ("status", []),
]


@pytest.mark.parametrize("beside", [False, True])
def test_no_result_ends_in_a_defect_or_passes(measured: Path, tmp_path: Path, capsys: Any, beside: bool) -> None:
    """What a slow file's board says: nothing that is made up makes it pass, and nothing breaks the judge."""
    result = json.loads((measured / "bundle/result.json").read_text())
    folder = shutil.copytree(measured / "bundle", tmp_path / "bundle") if beside else tmp_path
    ends: dict[str, int] = {}
    for place, value in MADE_UP:
        made_up = folder / "made-up.json"
        made_up.write_text(json.dumps(change(result, place, value)), encoding="utf-8")
        ends[f"{place}={value}"[:80]] = bench("--import", made_up)
    captured = capsys.readouterr()
    assert {name: code for name, code in ends.items() if code not in (1, 2, 5)} == {}
    assert "Traceback" not in captured.out + captured.err


def test_a_stored_report_claims_no_verdict(measured: Path, tmp_path: Path, capsys: Any) -> None:
    bundle = measured / "bundle"
    assert bench("--import", bundle / "result.json", "--out", tmp_path / "r.json") == 1
    report = json.loads((tmp_path / "r.json").read_text())
    capsys.readouterr()
    for place, value in (("verdict", "pass"), ("accepted", "trust me"), ("cases/0/verdict", "pass")):
        assert bench("--rejudge", write(tmp_path / "c.json", change(report, f"gates/0/{place}", value))) == 1
    claimed = change(change(report, "gates/0/mode", "unread"), "gates/0/verdict", "pass")
    assert bench("--rejudge", write(tmp_path / "c.json", claimed)) == 5
    loose = write(tmp_path / "c.json", change(report, "gates/0/tolerance", 99.0))
    capsys.readouterr()
    assert bench("--rejudge", loose) == 0
    assert "itself allows slow against fast a slow-down of 9900 %" in " ".join(capsys.readouterr().out.split())
    assert bench("--rejudge", loose, "--max-regression", "5%") == 1
    assert "itself allows" not in " ".join(capsys.readouterr().out.split())


def test_a_shard_claims_no_verdict(measured: Path, tmp_path: Path, capsys: Any) -> None:
    assert bench("--import", measured / "bundle/result.json", "--out", tmp_path / "r.json") == 1
    report = json.loads((tmp_path / "r.json").read_text())
    shard = {"schema": report["schema"], "reports": [report], "part": {"number": 1, "count": 1, "manifest": "0"}}
    claimed = change(change(shard, "reports/0/gates/0/verdict", "pass"), "reports/0/gates/0/cases/0/verdict", "pass")
    assert bench("--merge", write(tmp_path / "s.json", claimed)) == 1
    for place, value in (("alpha", 1e-9), ("looks", [1000])):
        assert bench("--merge", write(tmp_path / "s.json", change(shard, f"reports/0/gates/0/{place}", value))) == 2
    assert "another rule than that of this gate" in capsys.readouterr().err


def test_no_stored_report_ends_in_a_defect(measured: Path, tmp_path: Path, capsys: Any) -> None:
    assert bench("--import", measured / "bundle/result.json", "--out", tmp_path / "r.json") == 1
    report = json.loads((tmp_path / "r.json").read_text())
    ends: dict[str, int] = {}
    odd: tuple[object, ...] = (None, [], {}, "x", -1, math.nan, [None], {"a": []})
    places = [*report, *(f"models/0/{key}" for key in report["models"][0])]
    places += [*(f"cases/0/{key}" for key in report["cases"][0]), *(f"gates/0/{key}" for key in report["gates"][0])]
    for place in places:
        for value in odd:
            made_up = write(tmp_path / "c.json", change(report, place, value))
            ends[f"{place}={value}"] = bench("--rejudge", made_up, "--junit", tmp_path / "j.xml")
    captured = capsys.readouterr()
    assert {name: code for name, code in ends.items() if code not in (0, 1, 2, 3, 4, 5)} == {}
    assert "Traceback" not in captured.out + captured.err
    for family in (10**9, 0, -1):
        assert bench("--rejudge", write(tmp_path / "c.json", change(report, "gates/0/family", family))) == 2
    inner: object = 1
    for _ in range(600):
        inner = [inner]
    deep = write(tmp_path / "c.json", change(report, "machine/x", inner))
    outputs = ("--out", tmp_path / "o.json", "--junit", tmp_path / "o.xml", "--summary", tmp_path / "o.md")
    assert bench("--rejudge", deep, "--json", *outputs) == 2
    assert "nested too deeply" in capsys.readouterr().err
    (tmp_path / "deep.json").write_text("[" * 100_000)
    assert bench("--rejudge", tmp_path / "deep.json") == 2
    assert bench("--import", tmp_path / "deep.json") in (2, 5)
