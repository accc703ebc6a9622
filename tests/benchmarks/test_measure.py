from __future__ import annotations

import ast
import dataclasses
import importlib
import json
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from distill.benchmarks import BenchmarkSettings, Target, compare, measure, resolve_target, runner
from distill.benchmarks import target as target_module
from distill.benchmarks.timing import machine, process
from distill.benchmarks.verdict import remarks
from distill.errors import NotMeasuredError, UserError

Conv = Callable[..., Path]


def pair(turns: list[list[float]], **other: Any) -> dict[str, Any]:
    """A session pair as `runner.py` reports it."""
    plain = {
        **{"first": 0, "load_s": [0.1, 0.2], "finite": [True, True], "settled": True, "end_to_end_s": []},
        **{"clock_mhz": None, "throttled": [False] * (len(turns) // 2)},
    }
    return {**plain, **other, "turns": turns}


def test_a_file_against_itself_is_about_one(conv: Conv, here: Target) -> None:
    path = conv(layers=4)
    settings = BenchmarkSettings(session_pairs=4, seconds_per_pair=0.2)
    found = compare(path, path, here, 2, settings=settings)
    assert found.speedup.low / 1.1 <= 1 <= found.speedup.high * 1.1
    assert found.session_pairs == len(found.log_ratios) == 4
    assert 0 <= found.contended_share <= 1
    assert found.baseline.inputs == {"x": [2, 2, 6, 6]}
    assert 0 < found.baseline.quiet_s <= found.baseline.p50_s
    assert found.baseline.samples > 4
    assert json.loads(json.dumps(dataclasses.asdict(found)))["baseline"]["provider"] == "CPUExecutionProvider"


def test_one_file_is_timed_alone(conv: Conv, quick: BenchmarkSettings, here: Target) -> None:
    found = measure(conv(), here, 3, settings=quick)
    assert (found.target, found.batch, found.threads) == (here.name, 3, 1)
    assert 0 < found.quiet_s <= found.p50_s
    assert found.load_s > 0
    assert found.end_to_end_s is None


def test_strings_odd_names_and_different_inputs_can_be_timed(
    save: Callable[..., Path], conv: Conv, quick: BenchmarkSettings, here: Target
) -> None:
    inputs = [helper.make_tensor_value_info(name, TensorProto.STRING, ["n", 1]) for name in ("file", "a/b:0")]
    nodes = [helper.make_node("Identity", [name], [f"{name}_out"]) for name in ("file", "a/b:0")]
    outputs = [helper.make_tensor_value_info(f"{item.name}_out", TensorProto.STRING, ["n", 1]) for item in inputs]
    path = save(nodes, inputs, outputs, name="strings.onnx")
    found = compare(conv(), path, here, 2, settings=quick, candidate_rows={"file": np.array([["Bern"]])})
    assert found.candidate.inputs == {"file": [2, 1], "a/b:0": [2, 1]}
    assert "different inputs" in found.warnings[0]


def test_outputs_that_are_not_finite_and_too_many_threads_are_told(
    save: Callable[..., Path], quick: BenchmarkSettings
) -> None:
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 2]) for name in "xy")
    path = save([helper.make_node("Log", ["x"], ["y"])], [x], [y])
    target = resolve_target(None, threads=machine.usable_threads() + 1)
    found = measure(path, target, 1, settings=quick, rows={"x": np.array([[-1, 0]], np.float32)})
    assert any("not all finite" in warning for warning in found.warnings)
    assert any("benchmark.threads=" in warning for warning in found.warnings)


def test_a_broken_graph_is_the_users_and_a_failing_call_is_not_measured(
    save: Callable[..., Path], quick: BenchmarkSettings, here: Target
) -> None:
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 2]) for name in "xy")
    with pytest.raises(UserError, match=r"unknown\.onnx.*cannot load"):
        measure(
            save([helper.make_node("NoSuchOp", ["x"], ["y"])], [x], [y], name="unknown.onnx"), here, 1, settings=quick
        )
    shape = onnx.numpy_helper.from_array(np.array([7], np.int64), "shape")
    path = save([helper.make_node("Reshape", ["x", "shape"], ["y"])], [x], [y], [shape], name="fails.onnx")
    with pytest.raises(NotMeasuredError, match=r"fails\.onnx: not measured, a call failed"):
        measure(path, here, 1, settings=quick)


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("import os; os.abort()", "died of SIGABRT" if sys.platform != "win32" else "ended with"),
        ("raise ValueError('boom')", "ended with exit code 1: ValueError: boom"),
        ("import time; time.sleep(60)", r"did not end within 0\.4 s"),
    ],
)
def test_a_crash_and_a_hang_are_contained(
    conv: Conv, here: Target, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: str, message: str
) -> None:
    (tmp_path / "fake.py").write_text(script)
    monkeypatch.setattr(process, "RUNNER", tmp_path / "fake.py")
    timeout_s = 0.4 if "sleep" in script else 60
    with pytest.raises(NotMeasuredError, match=message):
        measure(conv(), here, 1, settings=BenchmarkSettings(timeout_s=timeout_s))


def test_a_foreign_target_is_not_measured(conv: Conv, here: Target) -> None:
    foreign = resolve_target("arm" if here.name == "x86" else "x86")
    with pytest.raises(NotMeasuredError, match="the target is"):
        measure(conv(), foreign, 1)


@pytest.mark.skipif(bool(machine.gpus()), reason="a GPU is here, so the provider may well load")
@pytest.mark.parametrize("name", ["cuda", "tensorrt"])
def test_a_gpu_whose_provider_does_not_load_is_not_measured(
    conv: Conv, quick: BenchmarkSettings, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(target_module, "gpus", lambda: [{"name": "pretended"}])
    with pytest.raises(NotMeasuredError, match="ExecutionProvider"):
        measure(conv(), resolve_target(name), 1, settings=quick)


@pytest.mark.skipif(not machine.gpus(), reason="needs an NVIDIA GPU")
def test_a_gpu_times_with_and_without_copies(conv: Conv, quick: BenchmarkSettings) -> None:
    found = measure(conv(layers=3), resolve_target("cuda"), 4, settings=quick)
    assert found.provider == "CUDAExecutionProvider"
    assert found.provider_options["use_tf32"] == "1"
    assert found.end_to_end_s is not None


def test_a_bound_call_gives_what_a_plain_call_gives(conv: Conv, here: Target) -> None:
    session = importlib.import_module("distill.benchmarks.timing.sessions").open_session(conv(), here)
    feeds = {"x": np.random.default_rng(0).standard_normal((2, 2, 6, 6)).astype(np.float32)}
    bound = runner.bound_call(session, feeds, "cpu")()
    assert np.array_equal(bound.copy_outputs_to_cpu()[0], session.run(None, feeds)[0])


def test_spoilt_turns_are_left_out_by_pairs_unless_few_are_left() -> None:
    clean, broken = [[0, 2.0, 3, 3, 2.0], [1, 1.0, 3, 3, 0.5]], [[0, 9.0, 3, 0, 9.0], [1, 1.0, 3, 3, 0.5]]
    assert runner.sound_turns(pair(clean * 4 + broken), 2) == [(0, 2.0), (1, 1.0)] * 4
    assert len(runner.sound_turns(pair(clean * 3 + broken), 2)) == 8
    assert len(runner.sound_turns(pair(clean * 5, throttled=[True] + [False] * 4), 2)) == 8
    assert len(runner.sound_turns(pair(clean * 5, throttled=[True] * 5), 2)) == 10


def test_what_the_runner_noticed_becomes_warnings() -> None:
    noticed = [
        pair([[0, 1.0, 3, 3, 1.0]] * 2, settled=False, throttled=[True], clock_mhz=1000),
        pair([[0, 1.0, 3, 3, 1.0]] * 2, clock_mhz=1900),
    ]
    text = " ".join(remarks.of_case(noticed))
    assert "1 of 2 warm-ups" in text
    assert "throttled in parts of 1 of 2" in text
    assert "between 1000 and 1900 MHz" in text


def arm_of(call: Callable[[], object]) -> Any:
    arm = runner.Arm({"provider": "CPUExecutionProvider", "model": "m"}, 1)
    arm.call = arm.whole = call
    return arm


@pytest.mark.parametrize(
    ("call_s", "calls"), [(1e-5, 301), (8.5e-5, 36), (1e-3, 4), (0.02, 2), (0.1, 1), (3.0, 1), (0.0, 3_000_001)]
)
def test_a_turn_is_three_milliseconds_and_two_calls_unless_calls_are_slow(call_s: float, calls: int) -> None:
    assert runner.calls_for([call_s]) == pytest.approx([calls], abs=1)


def test_arms_that_are_about_as_fast_take_equally_many_calls() -> None:
    assert runner.calls_for([1.4e-3, 1.6e-3]) == [3, 3]
    assert runner.calls_for([1e-3, 50e-6]) == [4, 61]
    assert runner.calls_for([1e-4, 1.1e-4, 5e-3]) == [31, 31, 2]


def test_a_turn_tells_its_median_without_the_first_fifth_and_its_fastest_call_of_all() -> None:
    seen: Counter[int] = Counter()
    times = [1.0, 5.0, 4.0, 3.0, 2.0]
    assert runner.summed_up(times, [True] * 5, seen) == [3.5, 4, 4, 1.0]
    assert seen.total() == 4
    assert runner.summed_up(times, [True, True, False, False, True], seen) == [3.5, 4, 2, 1.0]
    assert runner.summed_up([7.0], [False], seen) == [7.0, 1, 0, 7.0]


@pytest.mark.parametrize(
    ("turns", "done"),
    [
        ([1.0, 1.0], False),
        ([1.0, 1.01, 1.02], True),
        ([1.5, 1.2, 1.0], False),
        ([2.0, 1.7, 1.4, 1.3, 1.2, 1.1], False),
        ([1.0, 1.3, 1.1, 1.4, 1.0, 1.2], True),
    ],
)
def test_a_warm_up_ends_when_calls_agree_or_get_no_faster(turns: list[float], done: bool) -> None:
    assert runner.settled(turns) is done


@pytest.mark.parametrize("count", [2, 3])
def test_a_round_is_all_arms_and_then_the_same_in_reverse_and_the_first_fifth_is_dropped(count: int) -> None:
    calls: list[int] = []
    arms = [arm_of(lambda number=number: calls.append(number)) for number in range(count)]  # type: ignore[misc]
    for arm in arms:
        arm.calls = 10
    timed = runner.take_turns(arms, 0.0, 60.0, runner.Gpu("CPUExecutionProvider"), random.Random(1))
    order = [turn[0] for turn in timed["turns"]]
    assert len(order) == 2 * count * runner.ROUNDS
    halves = [order[begin : begin + count] for begin in range(0, len(order), count)]
    assert all(first == second[::-1] for first, second in zip(halves[0::2], halves[1::2], strict=True))
    assert all(sorted(half) == list(range(count)) for half in halves)
    assert len({tuple(half) for half in halves}) > 1
    assert calls == [arm for arm in order for _ in range(10)]
    assert all(turn[2] == 8 for turn in timed["turns"])
    assert timed["throttled"] == [False] * len(halves)
    assert sum(arms[0].seen.values()) == 8 * order.count(0)


def test_slow_calls_get_more_time_up_to_a_limit_and_two_rounds_at_least() -> None:
    arms = [arm_of(lambda: time.sleep(0.004)) for _ in range(2)]
    for arm in arms:
        arm.calls = 1

    def rounds(seconds: float, patience: float) -> float:
        timed = runner.take_turns(arms, seconds, patience, runner.Gpu("CPUExecutionProvider"), random.Random(1))
        return len(timed["turns"]) / 4

    assert rounds(0.0, 0.0) == runner.LEAST_ROUNDS
    assert runner.LEAST_ROUNDS < rounds(0.0, 0.1) < runner.ROUNDS
    assert rounds(0.0, 60.0) == runner.ROUNDS


def test_the_runner_stands_alone_and_reads_as_python_38(conv: Conv, tmp_path: Path) -> None:
    source = Path(runner.__file__).read_text(encoding="utf-8")
    tree = ast.parse(source, feature_version=(3, 8))
    roots = {name.name.split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names}
    roots |= {str(node.module).split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert roots - set(sys.stdlib_module_names) == {"numpy", "onnxruntime", "pynvml"}
    (tmp_path / "board").mkdir()
    copy = tmp_path / "board" / "runner.py"
    copy.write_text(source, encoding="utf-8")
    job = {"task": "open", "arms": [{"model": str(conv()), "provider": "CPUExecutionProvider", "provider_options": {}}]}
    (tmp_path / "job.json").write_text(json.dumps(job))
    subprocess.run([sys.executable, copy, tmp_path / "job.json", tmp_path / "out.json"], check=True, timeout=60)
    assert json.loads((tmp_path / "out.json").read_text())["status"] == "ok"


def test_a_command_that_prints_without_end_is_stopped(
    conv: Conv, here: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "MOST_PRINTED", 1 << 20)
    endless = dataclasses.replace(here, measure="yes", timeout_s=300)
    with pytest.raises(NotMeasuredError, match="`yes` printed more than 1 MiB and was stopped"):
        measure(conv(), endless, 1)
