"""What a configuration may choose: stages that are off, limits that revert one, budgets, other targets."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import onnx
import pytest
from tiny_run import Finished, Variant, budget_standing, check_vectors, raw_run, run_quietly, statuses

from distill.errors import UserError
from distill.intervals import Estimate
from distill.report import markdown
from distill.runtime.budget import Timed
from distill.runtime.folder import file_sha256

# What is off ----------------------------------------------------------------------------------------------------------


def test_prune_off(variant: Variant) -> None:
    done = variant({"prune": "off"})
    assert statuses(done)["prune"] == "off"
    assert done.result.stage("student").reused
    assert "off" in done.result.stage("prune").detail.reason
    assert done.result.stage("quantize").parameters == done.result.stage("student").parameters


def test_a_ratio_of_zero_is_prune_off(variant: Variant) -> None:
    assert statuses(variant({"prune": {"ratio": 0.0}}))["prune"] == "off"


def test_int8_that_loses_too_much_is_repaired(variant: Variant) -> None:
    clipped = variant({"quantize": {"calibration": "percentile", "percentile": 55}, "max_drop": 0.03})
    found = clipped.result.stage("quantize").detail.quantization
    assert found.how.startswith("int8 ") and "percentile" not in found.how
    assert found.calibration != "percentile"
    lost = {name: clipped.result.stage(name).validation for name in ("student", "prune", "quantize")}
    drops = {name: one.drop.value for name, one in lost.items() if one is not None and one.drop is not None}
    # Within the budget, or no worse than the float network that it was made of.
    assert drops["quantize"] <= max(0.03, drops["student"], drops["prune"])


def test_quantize_off(variant: Variant) -> None:
    done = variant({"quantize": "off"})
    assert statuses(done)["quantize"] == "off"
    assert done.result.final in ("student", "prune")
    nodes = {node.op_type for node in onnx.load(done.folder / "deploy/model.onnx").graph.node}
    assert "QuantizeLinear" not in nodes
    check_vectors(done.folder / "deploy")


def test_export_off(variant: Variant) -> None:
    done = variant({"export": "off"})
    assert statuses(done)["export"] == "off"
    assert not done.result.deployable
    assert done.result.comparison.size_ratio is not None
    assert "NOT DEPLOYABLE" in markdown(done.result)


def test_benchmark_off(variant: Variant, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distill.runtime.context.compare", None)
    done = variant({"benchmark": "off"})
    assert set(statuses(done).values()) <= {"unmeasured", "reverted"}
    assert all(stage.latency == () for stage in done.result.stages)
    assert done.result.comparison.speedup is None
    assert any("unmeasured: benchmark is off" in text for text in done.result.warnings)


def test_control_off(variant: Variant) -> None:
    done = variant({"distill": {"control": False}})
    assert statuses(done)["control"] == "off"
    assert done.result.stage("student").reused


def test_distill_off_goes_on_from_the_teacher(variant: Variant) -> None:
    done = variant({"distill": "off", "quantize": "off"})
    assert statuses(done) == {
        "teacher": "done", "control": "off", "student": "off", "prune": statuses(done)["prune"], "quantize": "off",
        "export": "done",
    }  # fmt: skip
    assert any("distill is off" in text for text in done.result.warnings)
    assert done.result.stage("prune").detail.pruning.parameters_before == done.result.stage("teacher").parameters


def test_the_student_may_be_the_teacher(variant: Variant) -> None:
    done = variant({"student": "teacher", "quantize": "off"})
    assert statuses(done)["control"] == statuses(done)["student"] == "off"
    assert done.result.stage("teacher").reused
    assert done.result.stage("prune").detail.pruning.parameters_before == done.result.stage("teacher").parameters
    assert not any("distill is off" in text for text in done.result.warnings)
    check_vectors(done.folder / "deploy")


# What earns its place -------------------------------------------------------------------------------------------------


def test_a_stage_that_drops_too_much_is_reverted(variant: Variant) -> None:
    done = variant({"prune": {"ratio": 0.7, "round_to": 1, "epochs": 0}, "max_drop": 0.02, "quantize": "off"})
    prune = done.result.stage("prune")
    assert prune.status == "reverted"
    assert prune.validation is not None
    assert prune.validation.drop is not None
    assert prune.validation.drop.value > 0.02
    assert "above the limit of 2.00 points" in prune.detail.decision.reason
    assert done.result.final == "student"
    assert done.result.stage("export").parameters == done.result.stage("student").parameters
    check_vectors(done.folder / "deploy")


@pytest.mark.parametrize("kept", [True, False])
def test_decisions_are_replayed(variant: Variant, finished: Finished, tmp_path: Path, kept: bool) -> None:
    raw = raw_run(finished)
    for name in ("prune", "quantize"):
        raw["decisions"][name] |= {"kept": kept, "reason": "because it was so then"}
    (tmp_path / "then.json").write_text(json.dumps(raw))
    done = variant(decisions=tmp_path / "then.json")
    expected = "done" if kept else "reverted"
    assert (statuses(done)["prune"], statuses(done)["quantize"]) == (expected, expected)
    assert done.result.final == ("quantize" if kept else "student")
    assert raw_run(done)["decisions"] == raw["decisions"]


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"decisions": 3}'])
def test_decisions_that_are_none_are_refused(finished: Finished, tmp_path: Path, text: str) -> None:
    (tmp_path / "no.json").write_text(text)
    with pytest.raises(UserError, match=r"--decisions .*no\.json"):
        run_quietly(finished.config, tmp_path / "run", decisions=tmp_path / "no.json")


def test_a_budget_that_is_missed_ends_with_a_verdict(variant: Variant) -> None:
    done = variant({"benchmark": {"max_latency_s": 1e-9}})
    assert done.result.comparison.latency_verdict == "missed"
    assert done.result.exit_code == 1
    assert all(stage.reused for stage in done.result.stages if stage.name != "export")


# Where nothing meets the budget ---------------------------------------------------------------------------------------


def test_a_pruned_student_that_misses_by_less_is_not_undone(variant: Variant, tmp_path: Path) -> None:
    """A student that learnt next to nothing, and learns more while it recovers from pruning."""
    changes = {
        "distill": {"epochs": 1, "learning_rate": 1e-6, "control": False},
        "prune": {"learning_rate": 0.05, "epochs": 4},
        "benchmark": "off",
        "max_drop": 0.0,
        "seed": 3,
    }
    done = variant(changes)
    drops = {
        stage.name: stage.validation.drop.value
        for stage in done.result.stages
        if stage.name in ("student", "prune", "quantize") and stage.validation and stage.validation.drop
    }
    assert drops["prune"] < drops["student"]
    assert drops[done.result.final] == min(drops.values()) > 0
    assert done.result.final != "student"
    assert statuses(done)["prune"] == "unmeasured"
    assert done.result.exit_code == 1
    assert any("nothing meets the budget" in text and done.result.final in text for text in done.result.warnings)
    assert "nothing met the budget" in markdown(done.result)
    again = run_quietly(done.config, tmp_path / "again", decisions=done.folder / "run.json")
    assert again.result.exit_code == 1
    assert raw_run(again)["decisions"] == raw_run(done)["decisions"]
    assert file_sha256(again.folder / "deploy/model.onnx") == file_sha256(done.folder / "deploy/model.onnx")


@pytest.mark.parametrize(
    ("drops", "kept", "final"),
    [
        ({"student": 0.9, "prune": 0.7, "quantize": 0.8}, {"prune"}, "prune"),
        ({"student": 0.9, "prune": 0.7, "quantize": 0.7}, {"prune", "quantize"}, "quantize"),
        ({"student": 0.7, "prune": 0.8, "quantize": 0.9}, set(), "student"),
        ({"student": 0.7, "prune": 0.8, "quantize": 0.6}, {"quantize"}, "quantize"),
    ],
)
def test_the_nearest_ships(
    variant: Variant,
    finished: Finished,
    drops: dict[str, float],
    kept: set[str],
    final: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """By what validation is made to say; the comparison of times is made to say that every stage is faster."""
    faster = Timed({1: Estimate(2.0, 1.9, 2.1)})
    with monkeypatch.context() as patch:
        patch.setattr(
            "distill.pipeline._standing", lambda ctx, run, artifact: budget_standing(drops[artifact.stage], 0.5)
        )
        patch.setattr("distill.runtime.context.Context.speedup", lambda *rest: faster)
        done = variant({"benchmark": {"max_latency_s": 9.0}, "distill": {"control": False}})
    assert done.result.final == final
    assert {name for name in ("prune", "quantize") if statuses(done)[name] == "done"} == kept
    assert {stage.name for stage in done.result.stages if stage.status == "reverted"} == {"prune", "quantize"} - kept
    for name in ("prune", "quantize"):
        assert done.result.stage(name).detail.decision.kept is (name in kept)
    assert done.result.decisions["ship"]["final"] == final
    shutil.copytree(finished.folder, tmp_path / "again")
    again = run_quietly(done.config, tmp_path / "again", decisions=done.folder / "run.json")
    assert again.result.final == final
    assert statuses(again) == statuses(done)
    assert file_sha256(again.folder / "deploy/model.onnx") == file_sha256(done.folder / "deploy/model.onnx")


def test_a_drop_is_not_given_up_for_time_but_in_the_end(variant: Variant, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pruned one is undone, so that int8 begins with an accurate one; as that does not do, the pruned one ships."""
    known = {"student": (0.1, 9.0), "prune": (0.6, 1.1), "quantize": (0.2, 3.0)}

    def pretended(ctx: Any, run: Any, artifact: Any) -> Any:
        drop, p50_s = known[artifact.stage]
        return budget_standing(drop, 0.5, p50_s, 1.0)

    monkeypatch.setattr("distill.pipeline._standing", pretended)
    monkeypatch.setattr("distill.runtime.context.Context.speedup", lambda *rest: Timed({1: Estimate(2.0, 1.9, 2.1)}))
    done = variant({"distill": {"control": False}})
    assert done.result.stage("quantize").parameters == done.result.stage("student").parameters
    assert done.result.final == "prune"
    assert (statuses(done)["prune"], statuses(done)["quantize"]) == ("done", "reverted")
    assert done.result.stage("export").parameters == done.result.stage("prune").parameters
    assert not done.result.decisions["prune"]["kept"]


def test_a_decision_on_what_ships_must_name_a_stage(variant: Variant, finished: Finished, tmp_path: Path) -> None:
    raw = raw_run(finished)
    for ship in ({"final": "control", "reason": "so"}, {"final": "prune"}, {"final": 3, "reason": "so"}, []):
        (tmp_path / "then.json").write_text(json.dumps({**raw, "decisions": {**raw["decisions"], "ship": ship}}))
        with pytest.raises(UserError, match="--decisions"):
            variant(decisions=tmp_path / "then.json")


def test_decisions_that_decide_nothing_here_are_told(variant: Variant, finished: Finished) -> None:
    done = variant({"quantize": "off"}, decisions=finished.folder / "run.json")
    assert any(text.startswith("--decisions: quantize: not used") for text in done.result.warnings)
    assert not any("not used" in text for text in variant(decisions=finished.folder / "run.json").result.warnings)


# Targets --------------------------------------------------------------------------------------------------------------


def element_types(path: Path) -> set[int]:
    return {one.data_type for one in onnx.load(path).graph.initializer}


def test_another_processor_gets_its_own_scheme_and_no_figures(variant: Variant) -> None:
    done = variant({"target": "arm"})
    assert done.result.target["name"] == "arm"
    assert set(statuses(done).values()) <= {"unmeasured", "reverted"}
    assert all(stage.latency == () for stage in done.result.stages)
    assert done.result.stage("quantize").detail.quantization.scheme == "s8s8"
    assert all(done.result.stage(name).reused for name in ("teacher", "control", "student", "prune"))
    core = onnx.load(done.folder / "stages/05-quantize/core.onnx")
    zeros = {node.input[2] for node in core.graph.node if node.op_type == "QuantizeLinear"}
    kinds = {one.data_type for one in core.graph.initializer if one.name in zeros}
    assert kinds == {onnx.TensorProto.INT8}
    headline = markdown(done.result).splitlines()
    assert any("unmeasured" in line and "arm" in line for line in headline[:12])
    assert done.result.comparison.speedup is None
    check_vectors(done.folder / "deploy")


def test_a_gpu_gets_half_precision(variant: Variant) -> None:
    done = variant({"target": "cuda", "device": "cpu"})
    assert done.result.target["precision"] == "fp16"
    path = done.folder / "stages/05-quantize/model.onnx"
    assert onnx.TensorProto.FLOAT16 in element_types(path)
    graph = onnx.load(path).graph
    assert "QuantizeLinear" not in {node.op_type for node in graph.node}
    assert graph.output[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    assert graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.UINT8
    check_vectors(done.folder / "deploy")


def test_a_board_is_measured_by_the_command_that_the_target_names(variant: Variant, tmp_path: Path) -> None:
    (tmp_path / "board.py").write_text(
        "import subprocess, sys\nsubprocess.run([sys.executable, '-I', 'runner.py'], cwd=sys.argv[1], check=True)\n"
    )
    command = f"{sys.executable} {tmp_path / 'board.py'}"
    done = variant({"target": {"name": "arm", "measure": command}})
    assert done.result.target["measure"] == command
    assert set(statuses(done).values()) <= {"done", "reverted"}
    assert done.result.comparison.speedup is not None
    assert {row.target for row in done.result.stage("teacher").latency} == {"arm"}
    assert done.result.machine["timed on"]["versions"]["onnxruntime"]
    assert "timed on" in (done.folder / "report.md").read_text()
    assert done.result.stage("quantize").detail.quantization.scheme == "s8s8"


def test_a_run_that_proves_nothing_says_so(tmp_path: Path) -> None:
    """One row in two hundred is of the other class, which nobody learns."""
    rows = [f"{number % 7},{number % 5},{'yes' if number % 201 == 0 else 'no'}" for number in range(1005)]
    (tmp_path / "rare.csv").write_text("\n".join(["a,b,y", *rows]) + "\n")
    train = {"epochs": 6, "batch_size": 32, "learning_rate": 0.05}
    done = run_quietly(
        {
            "task": "rare",
            "data": {"source": "csv", "path": str(tmp_path / "rare.csv"), "target": "y"},
            "teacher": {"model": "mlp", "args": {"hidden": [8]}, **train},
            "student": {"model": "mlp", "args": {"hidden": [8]}},
            "distill": {**train, "views": 1, "control": False},
            "prune": "off",
            "quantize": "off",
            "benchmark": "off",
            "device": "cpu",
        },
        tmp_path / "run",
    )
    text = markdown(done.result)
    assert "the teacher and the student give all" in text
    assert "no more than the share of the most frequent class" in text
    assert "data.metric=" in text
    assert "(float32)" in (done.folder / "deploy/README.md").read_text()
    assert "(int8)" not in (done.folder / "deploy/README.md").read_text()
