"""The composite action and the workflow in the docs, as far as they can be run without GitHub."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
Conv = Callable[..., Path]


@pytest.fixture(scope="module")
def action() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "action.yml").read_text(encoding="utf-8"))


def step(action: dict[str, Any], name: str) -> dict[str, Any]:
    return next(one for one in action["runs"]["steps"] if one.get("name") == name)


@pytest.fixture
def gate_step(action: dict[str, Any], tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run the action's gate as GitHub does, with this interpreter in the place of the one that it installs."""
    python = tmp_path / "distill-bench/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n', encoding="utf-8")
    python.chmod(0o755)

    def run(**inputs: str) -> subprocess.CompletedProcess[str]:
        given = {name: str(about.get("default", "")) for name, about in action["inputs"].items()} | inputs
        words = {
            key: given[value.removeprefix("${{ inputs.").removesuffix(" }}")]
            for key, value in step(action, "Gate")["env"].items()
        }
        environment = {**os.environ, **words, "RUNNER_TEMP": str(tmp_path), "GITHUB_ACTIONS": "true"}
        environment |= {name: str(tmp_path / name) for name in ("GITHUB_OUTPUT", "GITHUB_STEP_SUMMARY")}
        shell = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step(action, "Gate")["run"]]
        return subprocess.run(shell, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)

    return run


def test_first_run_keeps_a_baseline_and_a_slower_model_fails_by_it(
    gate_step: Callable[..., subprocess.CompletedProcess[str]], conv: Conv, tmp_path: Path
) -> None:
    conv(layers=1, name="fast.onnx")
    conv(layers=120, name="slow.onnx")
    words = {"baseline": "gate/main.json", "save-baseline": "gate/main.json", "arguments": "--seconds 0.1 --pairs 2"}
    first = gate_step(model="fast.onnx", **words)
    assert first.returncode == 0, first.stderr
    assert "does not exist yet" in (tmp_path / "GITHUB_STEP_SUMMARY").read_text(encoding="utf-8")
    kept = (tmp_path / "gate/main.onnx").read_bytes()

    second = gate_step(model="slow.onnx", **words)
    assert second.returncode == 1, second.stdout + second.stderr
    assert "::error" in second.stdout
    assert (tmp_path / "gate/main.onnx").read_bytes() == kept
    written = Path((tmp_path / "GITHUB_OUTPUT").read_text(encoding="utf-8").splitlines()[-1].removeprefix("json="))
    assert json.loads(written.read_text(encoding="utf-8"))["gates"][0]["verdict"] == "fail"


def test_paths_that_begin_like_options_are_paths(
    gate_step: Callable[..., subprocess.CompletedProcess[str]], conv: Conv, tmp_path: Path
) -> None:
    (tmp_path / "-o.onnx").write_bytes(conv().read_bytes())
    (tmp_path / "--strict").mkdir()
    more = "--seconds 0.05 --pairs 2 \n --max-p50-ms 60000"
    done = gate_step(model="-o.onnx", **{"save-baseline": "--strict/main.json", "arguments": more})
    assert done.returncode == 2, done.stderr  # --max-regression without a baseline: the words arrived as they were
    assert "--max-regression: would be ignored" in done.stderr
    words = {"baseline": "--strict/main.json", "save-baseline": "--strict/main.json", "arguments": more}
    done = gate_step(model="-o.onnx", **words)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "--strict/main.onnx").read_bytes() == conv().read_bytes()
    (tmp_path / "-p").touch()
    done = gate_step(model="--help", baseline="*", arguments="--strict --batch *")
    assert done.returncode == 2
    assert "*" in done.stderr  # neither a list of files nor the help


def test_actions_are_pinned_by_commit_and_a_fork_plants_no_baseline() -> None:
    for name in ("action.yml", "docs/gate.yml", "docs/bench.md"):
        used = re.findall(r"uses: (actions/\S+)(.*)", (ROOT / name).read_text(encoding="utf-8"))
        assert used
        assert all(re.fullmatch(r"actions/[\w-]+@[0-9a-f]{40}", one) for one, _ in used), name
        assert all(re.fullmatch(r" # v\d+\.\d+\.\d+", version) for _, version in used), name
    workflow = yaml.safe_load((ROOT / "docs/gate.yml").read_text(encoding="utf-8"))
    assert workflow["permissions"] == {"contents": "read", "actions": "read"}
    steps = workflow["jobs"]["gate"]["steps"]
    fetch = next(one["run"] for one in steps if "Fetch" in one.get("name", ""))
    assert "--event push" in fetch
    assert "--branch main" in fetch
    assert "push" in next(one["if"] for one in steps if "upload-artifact" in one.get("uses", ""))


def test_what_it_installs_is_what_the_gate_imports(action: dict[str, Any]) -> None:
    listed = step(action, "Install")["run"].split('pip" install --quiet --', 1)[1].splitlines()[0].split()
    code = "import sys, distill.cli, distill.verbs.bench_tasks, distill.benchmarks.show.tables; "
    code += "print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    imported = set(done.stdout.split())
    assert imported.isdisjoint({"torch", "optuna", "sklearn", "torch_pruning", "jinja2", "plotly"})
    assert {"numpy", "onnx", "typer", "rich", "pydantic"} <= imported & {*listed}


def test_the_workflow_of_the_docs_speaks_the_actions_language(action: dict[str, Any]) -> None:
    workflow = yaml.safe_load((ROOT / "docs/gate.yml").read_text(encoding="utf-8"))
    steps = workflow["jobs"]["gate"]["steps"]
    ours = next(one for one in steps if "distill" in one.get("uses", ""))
    assert ours["with"].keys() <= action["inputs"].keys()
    uploaded = next(one for one in steps if "upload-artifact" in one.get("uses", ""))
    assert uploaded["with"]["name"] in next(one["run"] for one in steps if "Fetch" in one.get("name", ""))
    assert ours["with"]["baseline"].startswith(uploaded["with"]["path"])
