"""Live gates on small files: modes, verdicts, and what is judged without a clock."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from distill.benchmarks import Target, records
from distill.benchmarks.timing import jobs
from distill.benchmarks.verdict import baseline, gate, judging
from distill.benchmarks.verdict import bench as bench_module
from distill.benchmarks.verdict import outcomes as verdicts
from distill.benchmarks.verdict.rule import Rule
from distill.errors import Exit, NotComparableError, NotMeasuredError, UserError

Conv = Callable[..., Path]


@pytest.fixture
def options(here: Target) -> Any:
    return bench_module.Options(target=here, timing=jobs.Timing(pairs=5, seconds_per_pair=0.05))


def ask(tolerance: float = 0.5, **other: Any) -> Any:
    return gate.Limits(rule=Rule(tolerance=tolerance), **other)


def test_much_more_work_fails_and_much_less_is_an_improvement(conv: Conv, options: Any) -> None:
    small, large = conv(layers=1, name="small.onnx"), conv(layers=120, name="large.onnx")
    failed = gate.gate(large, small, options, ask())
    assert failed.gates[0].verdict == "fail"
    assert failed.gates[0].cases[0].slowdown > 1.5
    assert verdicts.exit_code(failed.gates) == Exit.VERDICT_NO
    better = gate.gate(small, large, options, ask())
    assert better.gates[0].verdict == "improved"
    assert better.gates[0].cases[0].slowdown < 1
    assert verdicts.exit_code(better.gates) == Exit.OK
    assert [model.facts.name for model in better.models] == ["large", "small"]


def test_the_same_bytes_pass_untimed_unless_asked(conv: Conv, options: Any, tmp_path: Path) -> None:
    path = conv(layers=2)
    copy = tmp_path / "copy.onnx"
    shutil.copyfile(path, copy)
    found = gate.gate(copy, path, options, ask())
    assert (found.gates[0].mode, found.gates[0].verdict, found.cases) == ("identical", "pass", ())
    timed = gate.gate(copy, path, options, ask(4.0, time_identical=True))
    assert (timed.gates[0].mode, timed.gates[0].verdict) == ("duet", "pass")
    assert len(timed.cases[0].pairs) >= 4


def test_other_inputs_are_not_comparable_and_both_are_shown(conv: Conv, save: Any, options: Any) -> None:
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 3]) for name in ("image", "y"))
    other = save([helper.make_node("Relu", ["image"], ["y"])], [x], [y], name="other.onnx")
    with pytest.raises(NotComparableError, match=r"takes x float32 .*candidate takes image float32"):
        gate.gate(other, conv(), options, ask())


def test_outputs_that_are_no_longer_finite_are_not_timed(save: Any, options: Any) -> None:
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 3]) for name in "xy")
    good = save([helper.make_node("Relu", ["x"], ["y"])], [x], [y], name="good.onnx")
    bad = save([helper.make_node("Log", ["x"], ["y"])], [x], [y], name="bad.onnx")
    given = dataclasses.replace(options, rows={"x": -np.ones((1, 3), np.float32)})
    with pytest.raises(NotMeasuredError, match=r"bad\.onnx: its outputs are not all finite"):
        gate.gate(bad, good, given, ask())


def saved(path: Path, folder: Path, options: Any) -> Path:
    report = bench_module.bench([path], options)
    baseline.save_baseline(folder / "main.json", report, path)
    return folder / "main.json"


def test_a_saved_baseline_brings_its_file(conv: Conv, options: Any, tmp_path: Path) -> None:
    stored = saved(conv(layers=1, name="small.onnx"), tmp_path / "kept", options)
    found = gate.gate(conv(layers=120, name="large.onnx"), stored, options, ask())
    assert (found.gates[0].mode, found.gates[0].verdict) == ("duet", "fail")
    (tmp_path / "kept/main.onnx").write_bytes(conv(layers=3).read_bytes())
    with pytest.raises(UserError, match="not the file that"):
        gate.gate(conv(), stored, options, ask())


def test_a_report_alone_is_advisory_on_this_machine_and_incomparable_elsewhere(
    conv: Conv, options: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = saved(conv(layers=1, name="small.onnx"), tmp_path, options)
    stored.with_suffix(".onnx").unlink()
    slower = conv(layers=120, name="large.onnx")
    found = gate.gate(slower, stored, options, ask())
    assert found.gates[0].mode == "history"
    assert found.gates[0].cases[0].verdict == "fail"
    assert found.gates[0].verdict == "inconclusive"
    assert "advisory" in " ".join(found.gates[0].reasons)
    monkeypatch.setattr(bench_module, "fingerprint", lambda machine: "another")
    found = gate.gate(conv(layers=1, name="same.onnx"), stored, options, ask(max_size_growth=9.0))
    assert (found.gates[0].mode, found.gates[0].verdict) == ("incomparable", "incomparable")
    assert "another machine" in " ".join(found.gates[0].reasons)
    assert verdicts.exit_code(found.gates) == Exit.NOT_COMPARABLE
    assert verdicts.exit_code(found.gates, incomparable_ok=True) == Exit.OK
    grown = gate.gate(slower, stored, options, ask())
    assert grown.gates[0].verdict == "fail"
    assert {check.name for check in grown.gates[0].checks if check.verdict == "fail"} >= {"bytes", "macs"}
    assert judging.rejudge(grown) == grown
    allowed = judging.rejudge(grown, tolerance=999.0)
    assert (allowed.gates[0].mode, allowed.gates[0].verdict) == ("incomparable", "incomparable")


def test_no_baseline_yet_is_a_warning_and_three_when_strict(conv: Conv, options: Any, tmp_path: Path) -> None:
    found = gate.gate(conv(), tmp_path / "none.json", options, ask())
    assert found.gates[0].mode == "none"
    assert "does not exist yet" in found.gates[0].reasons[0]
    assert verdicts.exit_code(found.gates) == Exit.OK
    assert verdicts.exit_code(found.gates, strict=True) == Exit.INCONCLUSIVE


def test_a_budget_in_seconds_is_gated_too(conv: Conv, options: Any) -> None:
    report = bench_module.bench([conv()], options)
    assert gate.by_budget(report, ask(max_p50_s=10.0), "budget").gates[0].verdict == "pass"
    assert gate.by_budget(report, ask(max_p50_s=1e-9), "budget").gates[0].verdict == "fail"


def test_growth_and_lost_integer_kernels_fail(conv: Conv, options: Any) -> None:
    report = bench_module.bench([conv(layers=2)], options)
    model = report.models[0]

    def checks(old: Any, new: Any, **asked: Any) -> dict[str, Any]:
        pair = dataclasses.replace(report, models=(old, new))
        return {one.name: one for one in judging.static_checks(pair, ask(**asked).opened("a gate", "duet"))}

    smaller = dataclasses.replace(model, facts=dataclasses.replace(model.facts, bytes=model.facts.bytes // 2))
    found = checks(smaller, model, max_size_growth=0.1)
    assert found["bytes"].verdict == "fail"
    assert "is allowed" in found["bytes"].why
    assert found["macs"].verdict == "pass"
    integer = dataclasses.replace(model, integer_share=1.0)
    assert checks(integer, model)["integer_share"].verdict == "fail"
    away = dataclasses.replace(model, nodes={**model.nodes, "OtherExecutionProvider/Conv": 1})
    assert checks(model, away)["nodes_elsewhere"].verdict == "fail"
    # Nearly all that falls back is not fewer nodes elsewhere, whichever provider then ran most of them.
    cuda = dataclasses.replace(model, asked="CUDAExecutionProvider", provider="CUDAExecutionProvider")
    before = dataclasses.replace(cuda, nodes={"CUDAExecutionProvider/Conv": 40, "CPUExecutionProvider/Conv": 2})
    after = dataclasses.replace(
        cuda, provider="CPUExecutionProvider", nodes={"CUDAExecutionProvider/Conv": 1, "CPUExecutionProvider/Conv": 41}
    )
    assert checks(before, after)["nodes_elsewhere"].verdict == "fail"
    spoilt = dataclasses.replace(model, finite=False)
    assert checks(model, spoilt)["finite"].verdict == "not measured"
    assert checks(spoilt, spoilt)["finite"].verdict == "pass"


def test_an_accepted_file_passes_with_its_reason(conv: Conv, options: Any) -> None:
    failed = gate.gate(conv(layers=120, name="large.onnx"), conv(layers=1, name="small.onnx"), options, ask())
    accepted = judging.accept(failed, {failed.models[1].facts.sha256: "needed for the new classes"})
    assert (accepted.gates[0].verdict, accepted.gates[0].accepted) == ("pass", "needed for the new classes")
    assert judging.accept(failed, {"0" * 64: "another"}).gates[0].verdict == "fail"


def test_a_stored_report_is_judged_again_and_reads_back_as_it_was(conv: Conv, options: Any, tmp_path: Path) -> None:
    found = gate.gate(conv(layers=120, name="large.onnx"), conv(layers=1, name="small.onnx"), options, ask())
    records.save_reports(tmp_path / "r.json", [found])
    ((back,), _) = records.load_part(tmp_path / "r.json")
    assert back == dataclasses.replace(found)
    assert judging.rejudge(back) == found
    assert judging.rejudge(back, tolerance=999.0).gates[0].verdict == "pass"
    assert judging.rejudge(back, tolerance=999.0, max_p50_s=1e-9).gates[0].verdict == "fail"
    assert judging.rejudge(back, tolerance=999.0, max_size_growth=0.0).gates[0].verdict == "fail"


def test_from_python_two_paths_are_enough(conv: Conv) -> None:
    from distill.benchmarks import Limits, Rule
    from distill.benchmarks import gate as judge_files

    path = conv()
    found = judge_files(path, path, limits=Limits(rule=Rule(tolerance=0.1)))
    assert (found.gates[0].verdict, found.gates[0].mode, found.gates[0].tolerance) == ("pass", "identical", 0.1)


def test_what_cannot_be_compared_is_measured_alone_so_that_it_can_be_kept(conv: Conv, save: Any, options: Any) -> None:
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 3]) for name in ("image", "y"))
    other = save([helper.make_node("Relu", ["image"], ["y"])], [x], [y], name="other.onnx")
    found = gate.outcome(other, conv(), options, ask())
    assert (found.gates[0].mode, found.gates[0].verdict) == ("unread", "incomparable")
    assert len(found.cases) == 1
    assert judging.rejudge(found, tolerance=0.9) == dataclasses.replace(
        found, gates=(dataclasses.replace(found.gates[0], tolerance=0.9),)
    )


def test_only_a_json_may_be_yet_to_be_saved(conv: Conv, options: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"typo\.onnx: the baseline does not exist"):
        gate.gate(conv(), tmp_path / "typo.onnx", options, ask())


def test_axes_may_have_other_names_and_a_fixed_one_be_open_in_the_other(save: Any, options: Any) -> None:
    def made(name: str, axes: list[Any]) -> Path:
        x, y = (helper.make_tensor_value_info(one, TensorProto.FLOAT, axes) for one in "xy")
        return save([helper.make_node("Relu", ["x"], ["y"])], [x], [y], name=name)

    old, new, fixed = made("old.onnx", ["n", "length"]), made("new.onnx", ["b", "seq"]), made("fixed.onnx", [1, "seq"])
    sized = dataclasses.replace(options, dims={"seq": 7})
    for one in (new, fixed):
        found = gate.gate(one, old, sized, ask(9.0))
        assert found.cases[0].shapes == [{"x": [1, 7]}] * 2
    with pytest.raises(UserError, match="--dim width=3: the open axes are n, length, b, seq"):
        gate.gate(new, old, dataclasses.replace(options, dims={"width": 3}), ask())
    with pytest.raises(NotComparableError):
        gate.gate(made("flat.onnx", [2, 7]), made("wide.onnx", [2, 8]), options, ask())


def test_of_a_report_of_two_files_the_last_is_the_baseline(conv: Conv, options: Any, tmp_path: Path) -> None:
    small, large = conv(layers=1, name="small.onnx"), conv(layers=40, name="large.onnx")
    records.save_reports(tmp_path / "duet.json", [gate.gate(large, small, options, ask())])
    found = gate.gate(large, tmp_path / "duet.json", options, ask(9.0))
    assert found.gates[0].mode == "history"
    assert found.gates[0].before.model.facts.sha256 == found.models[0].facts.sha256


def test_a_report_without_a_file_in_it_is_no_baseline(conv: Conv, options: Any, tmp_path: Path) -> None:
    empty = gate.unread(ask().opened("a gate", "unread", "not measured"), options)
    records.save_reports(tmp_path / "empty.json", [empty])
    with pytest.raises(UserError, match="holds no measurement"):
        gate.gate(conv(), tmp_path / "empty.json", options, ask())
