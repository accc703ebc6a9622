"""A whole run: what it records, what it keeps, what it makes again, what it ships."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from safetensors.torch import load_file
from tiny_run import STAGES, Config, Finished, Variant, check_vectors, leaks, merged, raw_run, run_quietly, statuses

import distill
from distill.export import read_metadata
from distill.report import markdown
from distill.runtime.folder import file_sha256
from distill.runtime.records import RunResult

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
        parity = finished.result.stage(name).detail.parity
        assert parity.ok, name
        assert parity.top1_agreement == 1
        assert parity.samples == 42
    shipped = finished.result.stage("export").detail.parity
    assert shipped.ok
    assert shipped.max_abs == 0


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
    assert detail.sha256 == file_sha256(deploy / "model.onnx")
    assert set(detail.files) == {path.name for path in deploy.iterdir()}


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

    monkeypatch.setattr("distill.runtime.context.compare", never)
    monkeypatch.setattr("distill.runtime.context.measure", never)
    monkeypatch.setattr("distill.runtime.context.profile", never)
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
    monkeypatch.setattr("distill.runtime.context.Context.latency", lambda self, path, teacher: ((), ()))
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


# Warnings -------------------------------------------------------------------------------------------------------------


def test_a_loaded_teacher_with_a_split_of_ours_may_have_seen_the_test(variant: Variant, finished: Finished) -> None:
    weights = finished.folder / "stages/01-teacher/model.safetensors"
    done = variant({"teacher": {"weights": str(weights)}})
    assert leaks(done)
    assert not leaks(finished)
    assert done.result.stage("teacher").detail.loaded is True
    assert "leakage" in markdown(done.result)
    assert done.result.stage("teacher").test == finished.result.stage("teacher").test
    assert done.result.stage("student").reused


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


# What was altered -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "again"),
    [
        ("stages/03-student/model.safetensors", "student"),
        ("stages/01-teacher/model.onnx", "teacher"),
        ("stages/01-teacher/model.json", "teacher"),
        ("stages/05-quantize/core.onnx", "quantize"),
        ("deploy/labels.json", "export"),
        ("deploy/vectors.npz", "export"),
        ("deploy/README.md", "export"),
        ("cache/validation*.safetensors", None),
        ("decisions/profile-*.json", None),
    ],
)
def test_what_was_altered_is_made_again_by_the_same_command_and_told(
    variant: Variant, finished: Finished, pattern: str, again: str | None
) -> None:
    folder = variant().folder
    (folder / "deploy" / "mine.txt").write_text("the user's")
    path = sorted(folder.glob(pattern))[0]
    content = path.read_bytes()
    path.write_bytes(content[:-9] + bytes(9))
    done = variant()
    told = [text for text in done.result.warnings if path.name in text]
    assert len(told) == 1
    assert "again" in told[0]
    assert [stage.name for stage in done.result.stages if not stage.reused] == ([again] if again else [])
    if not pattern.startswith("decisions"):  # its seconds are not the same
        assert path.read_bytes() == content
    for name in ("model.onnx", "labels.json", "vectors.npz", "README.md"):
        assert file_sha256(folder / "deploy" / name) == file_sha256(finished.folder / "deploy" / name)
    assert (folder / "deploy" / "mine.txt").read_text() == "the user's"
    assert not any(path.name in text for text in variant().result.warnings)


def test_every_file_of_a_stage_and_of_deploy_is_in_the_record(finished: Finished) -> None:
    for stage in finished.result.stages:
        hashes = stage.detail.hashes
        folder = (
            finished.folder / "deploy"
            if stage.name == "export"
            else next(finished.folder.glob(f"stages/*-{stage.name}"))
        )
        there = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
        assert set(hashes) == there - {"stage.json"}
        assert all(file_sha256(folder / name) == sha for name, sha in hashes.items())


def test_deploy_with_a_file_deleted_or_a_folder_in_its_place_is_repaired(variant: Variant, finished: Finished) -> None:
    deploy = variant().folder / "deploy"
    (deploy / "labels.json").unlink()
    (deploy / "vectors.npz").unlink()
    (deploy / "vectors.npz").mkdir()
    (deploy / "README.md").write_text("")
    variant()
    for name in ("model.onnx", "labels.json", "vectors.npz", "README.md"):
        assert file_sha256(deploy / name) == file_sha256(finished.folder / "deploy" / name)
