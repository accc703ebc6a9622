from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from distill.benchmarks import Target, records
from distill.benchmarks.timing import jobs
from distill.benchmarks.verdict import bench as bench_module
from distill.benchmarks.verdict import gate, judging, manifest
from distill.benchmarks.verdict import outcomes as verdicts
from distill.benchmarks.verdict import rule as rule_module
from distill.errors import Exit, UserError

Conv = Callable[..., Path]


@pytest.fixture
def options(here: Target) -> Any:
    return bench_module.Options(target=here, timing=jobs.Timing(pairs=2, seconds_per_pair=0.05))


@pytest.fixture
def ask() -> Any:
    return gate.Limits(rule=rule_module.Rule(tolerance=0.5))


def write(folder: Path, content: Any) -> Path:
    path = folder / "gate.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def run(read: Any, shard: str | None = None) -> list[Any]:
    return list(manifest.run(read, manifest.part(read, shard), lambda text: None))


def test_rows_are_gated_and_equal_bytes_pass_untimed(conv: Conv, tmp_path: Path, options: Any, ask: Any) -> None:
    conv(layers=1, name="fast.onnx")
    conv(layers=120, name="slow.onnx")
    rows = [
        {"name": "same", "model": "fast.onnx", "baseline": "fast.onnx"},
        {"name": "slower", "model": "slow.onnx", "baseline": "fast.onnx"},
        {"name": "faster", "model": "fast.onnx", "baseline": "slow.onnx", "tolerance": "20%"},
        {"name": "new", "model": "fast.onnx", "baseline": "none.json"},
    ]
    read = manifest.read(write(tmp_path, {"models": rows}), options, ask)
    assert [row.limits.rule.tolerance for row in read.rows] == [0.5, 0.5, 0.2, 0.5]
    found = run(read)
    assert [one.gates[0].verdict for one in found] == ["pass", "fail", "improved", "pass"]
    assert [one.gates[0].mode for one in found] == ["identical", "duet", "duet", "none"]
    assert found[1].gates[0].first > 1.5
    assert found[1].gates[0].alpha == pytest.approx(0.01 / 4)
    assert "second measurement; the first one found 0.0" in " ".join(verdicts.details(found[1].gates[0]))
    assert found[0].cases == ()


def test_shards_share_the_rows_and_merge_into_one_verdict(conv: Conv, tmp_path: Path, options: Any, ask: Any) -> None:
    conv(layers=1, name="fast.onnx")
    conv(layers=120, name="slow.onnx")
    rows = [{"name": f"row {n}", "model": "fast.onnx", "baseline": "fast.onnx"} for n in range(6)]
    rows.append({"name": "slow", "model": "slow.onnx", "baseline": "fast.onnx"})
    read = manifest.read(write(tmp_path, {"models": rows}), options, ask)
    parts = [run(read, f"{n}/3") for n in (1, 2, 3)]
    assert sorted(len(part) for part in parts) == [2, 2, 3]
    assert [verdicts.exit_code([gate for one in part for gate in one.gates]) for part in parts] == [1, 0, 0]
    paths = [tmp_path / f"{number}.json" for number in (1, 2, 3)]
    for number, (path, part) in enumerate(zip(paths, parts, strict=True), start=1):
        records.save_reports(path, part, manifest.part(read, f"{number}/3"))
    merged = manifest.merged(paths)
    assert len(merged) == 7
    assert verdicts.exit_code([one for report in merged for one in report.gates]) == Exit.VERDICT_NO

    other = manifest.read(write(tmp_path, {"models": rows[:2]}), options, ask)
    records.save_reports(tmp_path / "foreign.json", run(other, "1/3"), manifest.part(other, "1/3"))
    records.save_reports(tmp_path / "plain.json", parts[0])
    for wrong, says in (
        (paths[1:], "shards 1/3 are missing"),
        ([*paths, paths[1]], "is shard 2/3, and so is"),
        ([*paths[:2], tmp_path / "foreign.json"], "of another manifest"),
        ([tmp_path / "plain.json"], "is no part of a manifest"),
    ):
        with pytest.raises(UserError, match=says):
            manifest.merged(wrong)


def test_rows_beyond_the_time_limit_are_told(conv: Conv, tmp_path: Path, options: Any, ask: Any) -> None:
    conv()
    rows = [{"name": str(n), "model": "conv.onnx", "baseline": "conv.onnx"} for n in range(2)]
    read = manifest.read(write(tmp_path, {"models": rows, "time_limit_s": 1e-9}), options, ask)
    found = run(read)
    assert [one.gates[0].verdict for one in found] == ["inconclusive"] * 2
    assert "time limit" in found[0].gates[0].reasons[0]


def test_what_one_row_may_be_by_chance_many_are_not_failed_for(conv: Conv, options: Any, ask: Any) -> None:
    report = gate.gate(conv(layers=120, name="slow.onnx"), conv(layers=1, name="fast.onnx"), options, ask)
    found = report.gates[0]

    def row(p_value: float, family: int, *, again: bool = True) -> Any:
        judged = dataclasses.replace(found.cases[0], p_value=p_value, verdict="inconclusive", slowdown=1.6)
        changed = dataclasses.replace(found, cases=(judged,), family=family, first=1.6 if again else None)
        return dataclasses.replace(report, gates=(changed,))

    def verdict(*rows: Any) -> str:
        return str(manifest.corrected_for_family(rows)[0].gates[0].verdict)

    assert verdict(row(0.0019, 1)) == "fail"
    assert verdict(row(0.0019, 100)) == "inconclusive"
    assert verdict(row(1e-6, 100)) == "fail"
    assert verdict(row(1e-6, 100, again=False)) == "inconclusive"
    # Of two, the larger p-value is compared with alpha itself, once the smaller is rejected.
    assert verdict(row(0.0019, 2), row(1e-6, 2)) == "fail"
    assert verdict(row(0.0019, 2), row(0.5, 2)) == "inconclusive"


def test_what_did_not_show_again_and_what_was_accepted(conv: Conv, options: Any, ask: Any) -> None:
    same = conv(layers=1, name="same.onnx")
    report = gate.gate(same, same, options, dataclasses.replace(ask, time_identical=True))
    assert report.gates[0].verdict == "pass"
    found = dataclasses.replace(report.gates[0], first=1.6)
    assert judging.verdict_of(found) == "inconclusive"
    assert "did not show again" in " ".join(verdicts.details(found))
    failed = gate.gate(conv(layers=120, name="slow.onnx"), conv(layers=1, name="fast.onnx"), options, ask)
    accepted = judging.accept(failed, {failed.models[-1].facts.sha256: "more classes"})
    again = manifest.corrected_for_family([accepted, failed])
    assert [one.gates[0].verdict for one in again] == ["pass", "fail"]


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
    found = run(manifest.read(write(tmp_path, {"models": rows}), options, ask))
    assert [one.gates[0].verdict for one in found] == ["incomparable", "not measured", "pass"]
    gates = [gate for one in found for gate in one.gates]
    assert verdicts.exit_code(gates) == Exit.NOT_MEASURED
    assert json.loads(records.to_json(found))["reports"][0]["gates"][0]["reasons"]
    records.save_reports(tmp_path / "out.json", found)
    again = [judging.rejudge(one, tolerance=3.0) for one in records.load_part(tmp_path / "out.json")[0]]
    assert [one.gates[0].verdict for one in again] == ["incomparable", "not measured", "pass"]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ([], "must have `models`"),
        ({"models": []}, "must have `models`"),
        ({"models": [{"model": "conv.onnx"}]}, r"models\[1\]: must have model and baseline"),
        ({"models": [{"model": "none.onnx", "baseline": "conv.onnx"}]}, "does not exist"),
        ({"models": [{"model": "conv.onnx", "baseline": "conv.onnx", "speed": 1}]}, "speed: unknown"),
        ({"models": [{"model": "conv.onnx", "baseline": "conv.onnx", "tolerance": "much"}]}, "tolerance much"),
        ({"models": [{"model": "conv.onnx", "baseline": "conv.onnx"}] * 2}, "two rows are named 'conv'"),
        ({"models": [{"model": "conv.onnx", "baseline": "conv.onnx"}], "limit": 3}, "limit: unknown"),
        ({"models": [{"model": "conv.onnx", "baseline": "conv.onnx"}], "time_limit_s": -3}, "time_limit_s -3"),
        ({"models": [{"model": "conv.onnx", "baseline": None}]}, "baseline=None: must be a path"),
        ({"models": [{"model": "conv.onnx", "baseline": "typo.onnx"}]}, "the baseline does not exist"),
        ({"models": [{"model": "conv.onnx", "baseline": "conv.onnx", "max_p50_ms": "abc"}]}, "max_p50_ms abc"),
        ({"models": [{"model": "conv.onnx", "baseline": "conv.onnx", "max_p50_ms": 0}]}, "max_p50_ms 0"),
        ({"models": [{"model": "conv.onnx", "baseline": "conv.onnx", "tolerance": 5}]}, "is 500 %"),
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
