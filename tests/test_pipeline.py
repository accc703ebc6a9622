"""A whole run: what it records, what it keeps, what it makes again, what it ships."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from safetensors.torch import load_file
from tiny_run import Config, Finished, Variant, merged, run_quietly

import distill
from distill.errors import UserError
from distill.export import read_metadata
from distill.records import RunResult
from distill.report import markdown
from distill.runfolder import file_sha256

STAGES = ["teacher", "control", "student", "prune", "quantize", "export"]


def raw_run(done: Finished) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((done.folder / "run.json").read_text(encoding="utf-8"))
    return found


def statuses(done: Finished) -> dict[str, str]:
    return {stage.name: stage.status for stage in done.result.stages}


def check_vectors(deploy: Path) -> None:
    vectors = np.load(deploy / "vectors.npz")
    session = ort.InferenceSession(deploy / "model.onnx", providers=["CPUExecutionProvider"])
    feed = {one.name: vectors[one.name] for one in session.get_inputs()}
    (logits,) = session.run(["logits"], feed)
    allowed = vectors["atol"] + vectors["rtol"] * np.abs(vectors["logits"]).max()
    assert np.abs(logits - vectors["logits"]).max() <= allowed
    assert len(logits) == 16


# What a run records ---------------------------------------------------------------------------------------------------


def test_run_json_keeps_its_contract(finished: Finished) -> None:
    raw = raw_run(finished)
    assert {"schema", "config", "machine", "stages", "final", "comparison"} <= raw.keys()
    assert raw["schema"] == 1
    assert [stage["name"] for stage in raw["stages"]] == STAGES
    for stage in raw["stages"]:
        names = ["status", "reused", "seconds", "parameters", "macs", "file_bytes", "validation", "test", "latency"]
        assert {*names, "warnings", "detail"} <= stage.keys()
        assert stage["status"] in ("done", "reverted", "unmeasured", "off")
        assert stage["reused"] is False
        assert stage["seconds"] >= 0
        assert stage["parameters"] > 0
        assert stage["macs"] > 0
        assert stage["file_bytes"] > 1000
        assert stage["validation"]["metrics"]["accuracy"]["low"] <= stage["validation"]["metrics"]["accuracy"]["value"]
        assert stage["test"]["samples"] == 42
        for row in stage["latency"]:
            assert row["target"] == "x86"
            assert row["provider"] == "CPUExecutionProvider"
            assert row["inputs"] == {"image": [1, 8, 8, 1]}
            assert (row["batch"], row["threads"]) == (1, 1)
            assert 0 < row["quiet_s"] <= row["p50_s"] < 1
            assert row["samples"] > 0
        assert len(stage["latency"]) == 1
    comparison = raw["comparison"]
    assert comparison["speedup"].keys() == comparison["metric_drop"].keys() == {"value", "low", "high"}
    assert comparison["metric"] == "accuracy"
    assert comparison["size_ratio"] == raw["stages"][0]["file_bytes"] / raw["stages"][-1]["file_bytes"]
    assert abs(comparison["metric_drop"]["value"]) <= 1


def test_the_final_stage_is_the_last_that_was_kept(finished: Finished) -> None:
    kept = [name for name in STAGES[:-1] if name != "control" and statuses(finished)[name] == "done"]
    assert finished.result.final == kept[-1]
    assert finished.result.stage("export").parameters == finished.result.stage(kept[-1]).parameters


def test_the_run_loads_back_as_its_result(finished: Finished) -> None:
    loaded = RunResult.load(finished.folder)
    assert loaded.to_json() == finished.result.to_json()
    assert loaded.stages == RunResult.from_json(loaded.to_json()).stages
    assert loaded.stage("quantize").test == finished.result.stage("quantize").test
    with pytest.raises(KeyError):
        loaded.stage("no such stage")


def test_stages_shrink_the_model(finished: Finished) -> None:
    of = finished.result.stage
    assert of("control").parameters == of("student").parameters < of("teacher").parameters
    assert of("prune").parameters < of("student").parameters
    assert of("prune").macs < of("student").macs < of("teacher").macs
    assert of("quantize").file_bytes < of("student").file_bytes < of("teacher").file_bytes


def test_the_runtime_agrees_with_torch(finished: Finished) -> None:
    for name in ("teacher", "control", "student", "prune"):
        parity = finished.result.stage(name).detail["parity"]
        assert parity["ok"], name
        assert parity["top1_agreement"] == 1
        assert parity["samples"] == 42
    shipped = finished.result.stage("export").detail["parity"]
    assert shipped["ok"]
    assert shipped["max_abs"] == 0


def test_no_pickle_is_written(finished: Finished) -> None:
    suffixes = {path.suffix for path in finished.folder.rglob("*") if path.is_file()}
    assert suffixes <= {".json", ".safetensors", ".onnx", ".npz", ".md", ".html", ".lock", ""}
    assert not list(finished.folder.rglob("*.tmp"))
    vectors = np.load(finished.folder / "deploy" / "vectors.npz", allow_pickle=False)
    assert set(vectors) == {"image", "logits", "atol", "rtol"}


# What it ships --------------------------------------------------------------------------------------------------------


def test_the_deploy_folder_is_complete(finished: Finished) -> None:
    deploy = finished.folder / "deploy"
    assert {path.name for path in deploy.iterdir()} == {"model.onnx", "labels.json", "vectors.npz", "README.md"}
    assert json.loads((deploy / "labels.json").read_text()) == ["level", "slanting", "upright"]
    check_vectors(deploy)
    detail = finished.result.stage("export").detail
    assert detail["sha256"] == file_sha256(deploy / "model.onnx")
    assert set(detail["files"]) == {path.name for path in deploy.iterdir()}


def test_the_shipped_file_says_what_it_is_and_nothing_of_this_machine(finished: Finished) -> None:
    path = finished.folder / "deploy" / "model.onnx"
    about = read_metadata(path)
    assert json.loads(about["labels"]) == ["level", "slanting", "upright"]
    assert {"task", "metric", "stage", "target", "teacher_sha256", "config_sha256", "onnxruntime"} <= about.keys()
    assert about["teacher_sha256"] == file_sha256(finished.folder / "stages/01-teacher/model.safetensors")
    content = path.read_bytes()
    for word in (str(finished.folder), str(finished.folder.parent), str(Path.home()), finished.config["data"]["path"]):
        assert word.encode() not in content
    proto = onnx.load(path)
    onnx.checker.check_model(proto, full_check=True)
    assert proto.ir_version == onnx.helper.find_min_ir_version_for(proto.opset_import)
    assert proto.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.UINT8
    assert [one.name for one in proto.graph.output] == ["logits"]


def test_the_reports_are_there(finished: Finished) -> None:
    page = (finished.folder / "report.html").read_text(encoding="utf-8")
    text = (finished.folder / "report.md").read_text(encoding="utf-8")
    assert "<html" in page
    for name in STAGES:
        assert name in text
        assert name in page


# What it makes again --------------------------------------------------------------------------------------------------


def test_the_same_command_makes_nothing_again(
    variant: Variant, finished: Finished, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*args: Any, **options: Any) -> None:
        raise AssertionError("measured again")

    monkeypatch.setattr("distill.context.compare", never)
    monkeypatch.setattr("distill.context.measure", never)
    monkeypatch.setattr("distill.context.profile", never)
    again = variant()
    assert all(stage.reused for stage in again.result.stages)
    before, after = raw_run(finished), raw_run(again)
    for raw in (before, after):
        raw.pop("folder")
        for stage in raw["stages"]:
            stage.pop("reused")
            if stage["name"] == "export":
                stage.pop("seconds")
    assert before == after
    assert file_sha256(again.folder / "deploy/model.onnx") == file_sha256(finished.folder / "deploy/model.onnx")


def test_a_changed_setting_makes_again_what_it_touches(variant: Variant) -> None:
    done = variant({"quantize": {"calibration": "percentile"}})
    assert {stage.name for stage in done.result.stages if not stage.reused} >= {"quantize"}
    assert all(done.result.stage(name).reused for name in ("teacher", "control", "student", "prune"))


def test_a_deploy_folder_that_was_touched_is_packed_again(variant: Variant, finished: Finished) -> None:
    variant()
    (variant().folder / "deploy/model.onnx").write_bytes(b"not a model")
    again = variant()
    assert not again.result.stage("export").reused
    assert file_sha256(again.folder / "deploy/model.onnx") == file_sha256(finished.folder / "deploy/model.onnx")


def test_one_seed_and_equal_decisions_give_equal_bytes(
    finished: Finished, tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In another folder, from data in another place, with nothing at hand of the first run but its decisions."""
    monkeypatch.setattr("distill.context.Context.latency", lambda self, path, teacher: ((), ()))
    elsewhere = tmp_path / "moved" / images.name
    shutil.copytree(images, elsewhere)
    config = merged(finished.config, {"data": {"path": str(elsewhere)}})
    again = run_quietly(config, tmp_path / "deep" / "other", decisions=finished.folder / "run.json")
    assert not any(stage.reused for stage in again.result.stages)
    assert raw_run(again)["decisions"] == raw_run(finished)["decisions"]
    assert file_sha256(again.folder / "deploy/model.onnx") == file_sha256(finished.folder / "deploy/model.onnx")
    for name in ("01-teacher", "03-student", "04-prune"):
        one, other = (load_file(run.folder / "stages" / name / "model.safetensors") for run in (finished, again))
        assert all(bool((one[key] == other[key]).all()) for key in one)


# What is off ----------------------------------------------------------------------------------------------------------


def test_prune_off(variant: Variant) -> None:
    done = variant({"prune": "off"})
    assert statuses(done)["prune"] == "off"
    assert done.result.stage("student").reused
    assert "off" in done.result.stage("prune").detail["reason"]
    assert done.result.stage("quantize").parameters == done.result.stage("student").parameters


def test_a_ratio_of_zero_is_prune_off(variant: Variant) -> None:
    assert statuses(variant({"prune": {"ratio": 0.0}}))["prune"] == "off"


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
    monkeypatch.setattr("distill.context.compare", None)
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
    assert done.result.stage("prune").detail["pruning"]["parameters_before"] == done.result.stage("teacher").parameters


def test_the_student_may_be_the_teacher(variant: Variant) -> None:
    done = variant({"student": "teacher", "quantize": "off"})
    assert statuses(done)["control"] == statuses(done)["student"] == "off"
    assert done.result.stage("teacher").reused
    assert done.result.stage("prune").detail["pruning"]["parameters_before"] == done.result.stage("teacher").parameters
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
    assert "above the limit of 2.00 points" in prune.detail["decision"]["reason"]
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


# Targets --------------------------------------------------------------------------------------------------------------


def element_types(path: Path) -> set[int]:
    return {one.data_type for one in onnx.load(path).graph.initializer}


def test_another_processor_gets_its_own_scheme_and_no_figures(variant: Variant) -> None:
    done = variant({"target": "arm"})
    assert done.result.target["name"] == "arm"
    assert set(statuses(done).values()) <= {"unmeasured", "reverted"}
    assert all(stage.latency == () for stage in done.result.stages)
    assert done.result.stage("quantize").detail["quantization"]["scheme"] == "s8s8"
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


# A task of the user's own ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def custom_run(custom: Config, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    return run_quietly(custom, tmp_path_factory.mktemp("custom") / "run")


def test_two_inputs_and_a_dict_go_through_every_stage(custom_run: Finished) -> None:
    assert list(statuses(custom_run)) == STAGES
    assert set(statuses(custom_run).values()) <= {"done", "reverted"}
    session = ort.InferenceSession(custom_run.folder / "deploy/model.onnx", providers=["CPUExecutionProvider"])
    assert {one.name: one.shape[1:] for one in session.get_inputs()} == {"left": [6], "right": [2]}
    check_vectors(custom_run.folder / "deploy")
    teacher = custom_run.result.stage("teacher")
    assert teacher.test is not None
    assert teacher.test.metrics["accuracy"].value > 0.7
    assert [row.batch for row in teacher.latency] == [1, 4]
    assert custom_run.result.stage("prune").detail["pruning"]["parameters_after"] < 1000


def test_the_users_own_collate_and_loss_are_used(custom: Config, custom_run: Finished, tmp_path: Path) -> None:
    """Other class weights are another loss, and so another teacher."""
    import sys

    mine = sys.modules["mine"]
    assert mine.CALLS
    folder = tmp_path / "run"
    shutil.copytree(custom_run.folder, folder)
    place = Path(custom["data"].partition(":")[0])
    text = place.read_text(encoding="utf-8")
    place.write_text(text.replace("WEIGHTS = (1.0, 2.0, 1.0)", "WEIGHTS = (1.0, 9.0, 1.0)"), encoding="utf-8")
    try:
        off = {"distill": "off", "prune": "off", "quantize": "off", "export": "off", "benchmark": "off"}
        done = run_quietly(merged(custom, off), folder)
    finally:
        place.write_text(text, encoding="utf-8")
    assert not done.result.stage("teacher").reused


# Warnings -------------------------------------------------------------------------------------------------------------


def leaks(done: Finished) -> bool:
    return any(text.startswith("leakage:") for text in done.result.warnings)


def test_a_loaded_teacher_with_a_split_of_ours_may_have_seen_the_test(variant: Variant, finished: Finished) -> None:
    weights = finished.folder / "stages/01-teacher/model.safetensors"
    done = variant({"teacher": {"weights": str(weights)}})
    assert leaks(done)
    assert not leaks(finished)
    assert done.result.stage("teacher").detail["loaded"] is True
    assert "leakage" in markdown(done.result)
    assert done.result.stage("teacher").test == finished.result.stage("teacher").test
    assert done.result.stage("student").reused


def test_a_loaded_teacher_with_the_users_own_split_does_not_leak(
    custom: Config, custom_run: Finished, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(custom_run.folder, folder)
    weights = str(custom_run.folder / "stages/01-teacher/model.safetensors")
    done = run_quietly(merged(custom, {"teacher": {"weights": weights}}), folder)
    assert done.result.stage("teacher").detail["loaded"] is True
    assert not leaks(done)


def test_few_samples_are_told_to_be_few(variant: Variant) -> None:
    done = variant({"max_drop": 0.001, "quantize": "off", "prune": "off"})
    assert done.result.comparison.verdict in ("unresolved", "missed")
    if done.result.comparison.verdict == "unresolved":
        assert any("too few samples to tell" in text for text in done.result.warnings)


# The door -------------------------------------------------------------------------------------------------------------


def test_a_run_leaves_the_callers_configuration_alone(tiny: Config, finished: Finished) -> None:
    assert finished.config == tiny
    assert isinstance(finished.result, distill.RunResult)


def test_the_default_folder_is_named_after_the_configuration() -> None:
    from distill.pipeline import default_folder

    one, other = (distill.load_config("digits", [f"seed={seed}"]) for seed in (0, 1))
    assert default_folder(one).parent == Path("runs")
    assert default_folder(one).name.startswith("digits-")
    assert default_folder(one) == default_folder(distill.load_config("digits")) != default_folder(other)
    assert default_folder(one, smoke=True).name.endswith("-smoke")


def test_a_smoke_run_is_marked(tiny: Config, tmp_path: Path) -> None:
    done = run_quietly(merged(tiny, {"benchmark": "off", "prune": "off", "student": "teacher"}), tmp_path, smoke=True)
    assert not done.result.deployable
    assert (done.folder / "deploy/NOT_DEPLOYABLE").is_file()
    assert read_metadata(done.folder / "deploy/model.onnx")["deployable"] == "no"
    assert done.result.exit_code == 0
