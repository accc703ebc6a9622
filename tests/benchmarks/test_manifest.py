from __future__ import annotations

import dataclasses
import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from distill.benchmarks import Target
from distill.errors import Exit, UserError

bench_module, gate, jobs, manifest, records, verdicts = (
    importlib.import_module(f"distill.benchmarks.{name}")
    for name in ("bench", "gate", "jobs", "manifest", "records", "verdicts")
)
rule_module = importlib.import_module("distill.benchmarks.rule")
Conv = Callable[..., Path]


@pytest.fixture
def options(here: Target) -> Any:
    return bench_module.Options(target=here, timing=jobs.Timing(pairs=2, seconds_per_pair=0.05))


@pytest.fixture
def ask() -> Any:
    return gate.Ask(rule=rule_module.Rule(tolerance=0.5))


def write(folder: Path, content: Any) -> Path:
    path = folder / "gate.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def quiet(text: str) -> None:
    assert text


def test_rows_are_gated_and_equal_bytes_pass_untimed(conv: Conv, tmp_path: Path, options: Any, ask: Any) -> None:
    conv(layers=1, name="fast.onnx")
    conv(layers=120, name="slow.onnx")
    rows = [
        {"name": "same", "model": "fast.onnx", "baseline": "fast.onnx"},
        {"name": "slower", "model": "slow.onnx", "baseline": "fast.onnx"},
        {"name": "faster", "model": "fast.onnx", "baseline": "slow.onnx", "tolerance": "20%"},
        {"name": "new", "model": "fast.onnx", "baseline": "none.onnx"},
    ]
    read = manifest.read(write(tmp_path, {"models": rows}), options, ask)
    assert [row.ask.rule.tolerance for row in read] == [0.5, 0.5, 0.2, 0.5]
    found = manifest.run(read, None, quiet)
    assert [one.gates[0].verdict for one in found] == ["pass", "fail", "improved", "pass"]
    assert [one.gates[0].mode for one in found] == ["identical", "duet", "duet", "none"]
    assert found[1].gates[0].reasons[-1].startswith(manifest.CONFIRMED)
    assert found[0].cases == ()


def test_shards_share_the_rows_and_merge_into_one_verdict(conv: Conv, tmp_path: Path, options: Any, ask: Any) -> None:
    conv(layers=1, name="fast.onnx")
    conv(layers=120, name="slow.onnx")
    rows = [{"name": f"row {n}", "model": "fast.onnx", "baseline": "fast.onnx"} for n in range(6)]
    rows.append({"name": "slow", "model": "slow.onnx", "baseline": "fast.onnx"})
    read = manifest.read(write(tmp_path, {"models": rows}), options, ask)
    parts = [manifest.run(read, f"{n}/3", quiet) for n in (1, 2, 3)]
    assert sorted(len(part) for part in parts) == [2, 2, 3]
    for number, part in enumerate(parts):
        records.save_reports(tmp_path / f"{number}.json", part)
    merged = manifest.concluded([one for n in range(3) for one in records.load_reports(tmp_path / f"{n}.json")])
    assert len(merged) == 7
    assert verdicts.exit_code([one for report in merged for one in report.gates]) == Exit.VERDICT_NO


def test_rows_beyond_the_time_limit_are_told(conv: Conv, tmp_path: Path, options: Any, ask: Any) -> None:
    conv()
    rows = [{"name": str(n), "model": "conv.onnx", "baseline": "conv.onnx"} for n in range(2)]
    read = manifest.read(write(tmp_path, {"models": rows, "time_limit_s": 1e-9}), options, ask)
    found = manifest.run(read, None, quiet)
    assert [one.gates[0].verdict for one in found] == ["inconclusive"] * 2
    assert "time limit" in found[0].gates[0].reasons[0]


def test_what_one_row_may_be_by_chance_many_are_not_failed_for(conv: Conv, options: Any, ask: Any) -> None:
    report = gate.gate(conv(layers=120, name="slow.onnx"), conv(layers=1, name="fast.onnx"), options, ask)
    found = report.gates[0]

    def with_p(p_value: float, verdict: str) -> Any:
        judged = dataclasses.replace(found.cases[0], p_value=p_value, verdict=verdict)
        return dataclasses.replace(report, gates=(dataclasses.replace(found, cases=(judged,), verdict=verdict),))

    calm = [with_p(0.9, "pass") for _ in range(99)]
    unsure = manifest.concluded([*calm, with_p(0.001, "fail")])[-1].gates[0]
    assert unsure.verdict == "inconclusive"
    assert "one of 100 rows" in unsure.reasons[-1]
    assert manifest.concluded([*calm, with_p(1e-7, "fail")])[-1].gates[0].verdict == "fail"
    assert manifest.concluded([with_p(0.001, "fail")])[-1].gates[0].verdict == "fail"


def test_a_row_that_cannot_be_measured_or_compared_leaves_the_others(
    conv: Conv, save: Any, tmp_path: Path, options: Any, ask: Any
) -> None:
    from onnx import TensorProto, helper

    conv()
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 3]) for name in "xy")
    save([helper.make_node("Relu", ["x"], ["y"])], [x], [y], name="other.onnx")
    save([helper.make_node("NoSuchOp", ["x"], ["y"])], [x], [y], name="unknown.onnx")
    rows = [
        {"name": "inputs", "model": "other.onnx", "baseline": "conv.onnx"},
        {"name": "broken", "model": "unknown.onnx", "baseline": "other.onnx"},
        {"name": "fine", "model": "conv.onnx", "baseline": "conv.onnx"},
    ]
    found = manifest.run(manifest.read(write(tmp_path, {"models": rows}), options, ask), None, quiet)
    assert [one.gates[0].verdict for one in found] == ["incomparable", "not measured", "pass"]
    gates = [gate for one in found for gate in one.gates]
    assert verdicts.exit_code(gates) == Exit.NOT_MEASURED
    assert json.loads(records.to_json(found))["reports"][0]["gates"][0]["reasons"]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ([], "must have `models`"),
        ({"models": []}, "must have `models`"),
        ({"models": [{"model": "conv.onnx"}]}, r"models\[1\]: must have model and baseline"),
        ({"models": [{"model": "none.onnx", "baseline": "conv.onnx"}]}, "does not exist"),
        ({"models": [{"model": "conv.onnx", "baseline": "b", "speed": 1}]}, "speed: unknown"),
        ({"models": [{"model": "conv.onnx", "baseline": "b", "tolerance": "much"}]}, "tolerance much"),
        ({"models": [{"model": "conv.onnx", "baseline": "b"}] * 2}, "two rows are named 'conv'"),
        ({"models": [{"model": "conv.onnx", "baseline": "b"}], "limit": 3}, "limit: unknown"),
        ({"models": [{"model": "conv.onnx", "baseline": "b"}], "time_limit_s": -3}, "time_limit_s=-3"),
    ],
)
def test_mistakes_are_located(conv: Conv, tmp_path: Path, options: Any, ask: Any, content: Any, says: str) -> None:
    conv()
    with pytest.raises(UserError, match=says):
        manifest.read(write(tmp_path, content), options, ask)


@pytest.mark.parametrize("shard", ["0/3", "4/3", "1", "a/b", "1/0"])
def test_a_part_that_is_none(shard: str) -> None:
    with pytest.raises(UserError, match="--shard"):
        manifest.part([], shard)
