"""What a measurement of files says about them."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from distill.benchmarks import Target
from distill.benchmarks.timing import jobs, process
from distill.benchmarks.verdict import bench as bench_module
from distill.errors import NotMeasuredError, UserError

Conv = Callable[..., Path]


@pytest.fixture
def options(here: Target) -> Callable[..., Any]:
    return lambda **other: bench_module.Options(
        **{"target": here, "timing": jobs.Timing(pairs=2, seconds_per_pair=0.05), **other}
    )


def test_every_file_is_looked_at_and_compared_with_the_first(conv: Conv, options: Callable[..., Any]) -> None:
    paths = [conv(layers=layers, name=f"c{layers}.onnx") for layers in (1, 40, 80)]
    found = bench_module.bench(paths, options(batches=(1, 2)))
    assert [model.facts.name for model in found.models] == ["c1", "c40", "c80"]
    assert [(case.batch, case.threads) for case in found.cases] == [(1, 1), (2, 1)]
    rows = found.cases[0].rows
    assert rows[0].ratio is None
    assert rows[1].ratio is not None
    assert rows[2].ratio is not None
    assert 1 < rows[1].ratio.value < rows[2].ratio.value
    assert all(model.load_s > 0 and model.finite for model in found.models)
    assert all(row.p99_s is None or row.p99_s >= row.p50_s * 0.9 for row in rows)
    assert sum(found.models[1].nodes.values()) >= 40


def test_files_of_one_name_are_told_apart_by_their_folders(conv: Conv, tmp_path: Path) -> None:
    paths = []
    for folder in ("old", "new"):
        (tmp_path / folder).mkdir()
        paths.append(tmp_path / folder / "model.onnx")
        paths[-1].write_bytes(conv().read_bytes())
    assert [facts.name for facts in bench_module.named(paths)] == ["old/model", "new/model"]
    assert [facts.name for facts in bench_module.named([paths[0], paths[0]])] == ["model", "model"]


def test_open_axes_are_named_by_the_user(save: Any, options: Callable[..., Any]) -> None:
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", "length", 4]) for name in "xy")
    path = save([helper.make_node("Relu", ["x"], ["y"])], [x], [y])
    found = bench_module.bench([path], options(dims={"length": 7}))
    assert found.cases[0].shapes == [{"x": [1, 7, 4]}]
    with pytest.raises(UserError, match=r"say --dim length=SIZE"):
        bench_module.bench([path], options())
    with pytest.raises(UserError, match="the open axes are n, length"):
        bench_module.bench([path], options(dims={"width": 7}))
    with pytest.raises(UserError, match="is the batch; say --batch 7"):
        bench_module.bench([path], options(dims={"n": 7}))


def test_a_file_that_kills_the_process_is_named(
    conv: Conv, options: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "dies.py").write_text("import os; os.abort()")
    monkeypatch.setattr(process, "RUNNER", tmp_path / "dies.py")
    with pytest.raises(NotMeasuredError, match=r"conv\.onnx: not measured, the timing process died of SIGABRT"):
        bench_module.bench([conv()], options())


def test_an_unfused_file_and_subnormal_weights_are_named(save: Any, options: Callable[..., Any]) -> None:
    def constant(name: str, value: Any, dtype: Any) -> Any:
        return numpy_helper.from_array(np.asarray(value, dtype), name)

    stored = [constant("scale", 0.1, np.float32), constant("zero", 0, np.int8)]
    stored.append(constant("w", np.full((4, 4), 1e-40), np.float32))
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["d"]),
        helper.make_node("MatMul", ["d", "w"], ["y"], name="product"),
    ]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 4]) for name in "xy")
    found = bench_module.bench([save(nodes, [x], [y], stored)], options())
    text = " ".join(found.models[0].warnings)
    assert "1 of 1 compute nodes ran in float" in text
    assert "product" in text
    assert "16 weights are subnormal" in text


def test_another_interpreter_runs_its_own_arm(conv: Conv, options: Callable[..., Any]) -> None:
    runner = Path(importlib.import_module("distill.benchmarks.runner").__file__ or "")
    paths = [conv(layers=1, name="a.onnx"), conv(layers=60, name="b.onnx")]
    found = bench_module.bench(paths, options(commands={0: (sys.executable, str(runner), "--serve")}))
    ratio = found.cases[0].rows[1].ratio
    assert ratio is not None
    assert ratio.value > 1.5
    with pytest.raises(NotMeasuredError, match=r"a\.onnx: its process died"):
        bench_module.bench(paths, options(commands={0: (sys.executable, "-c", "raise SystemExit(3)")}))


def test_a_torch_callable_is_timed_in_a_process_of_its_own(
    conv: Conv, options: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "nets.py").write_text(
        "from torch import nn\n"
        "def make():\n"
        "    return nn.Sequential(*(nn.Conv2d(2, 2, 3, padding=1) for _ in range(9)))\n"
    )
    monkeypatch.chdir(tmp_path)
    found = bench_module.bench([conv(layers=9), "eager:./nets.py:make"], options())
    assert [model.facts.name for model in found.models] == ["conv", "eager ./nets.py:make"]
    assert found.cases[0].rows[1].p50_s > 0
    assert found.cases[0].rows[1].ratio is not None
    with pytest.raises(UserError, match=r"has no signature; give its inputs"):
        bench_module.bench(["./nets.py:make"], options())
    given = {"x": np.zeros((1, 2, 6, 6), np.float32)}
    with pytest.raises(UserError, match=r"nets\.py:none: .*nets\.py has no 'none'; there is: make"):
        bench_module.bench(["./nets.py:none"], options(rows=given))


@pytest.mark.parametrize(
    ("made_for", "saturating", "machine", "says"),
    [
        ("arm", 0.0, {"family": "x86", "flags": ["avx512_vnni"]}, "was made for arm, this machine is x86"),
        ("x86", 0.5, {"family": "x86", "flags": ["avx2"]}, "50.0 % of its neighbouring int8 weight pairs rely on VNNI"),
        (None, 0.5, {"family": "x86", "flags": ["avx2"]}, "which this machine's processor lacks"),
        (None, 0.5, {"family": "x86", "flags": None}, "which this machine's processor may lack"),
        ("x86", 0.5, {"family": "x86", "flags": ["avx_vnni"]}, None),
        ("x86", 0.0, {"family": "x86", "flags": []}, None),
        (None, 0.5, {"family": "arm", "flags": None}, None),
    ],
)
def test_a_machine_that_a_file_was_not_made_for_is_told(
    conv: Conv, made_for: str | None, saturating: float, machine: dict[str, Any], says: str | None
) -> None:
    import dataclasses

    about = importlib.import_module("distill.benchmarks.onnx_file.facts").read_facts(conv())
    about = dataclasses.replace(about, made_for=made_for, saturating=saturating)
    model = importlib.import_module("distill.benchmarks.records").Model(about, {}, 0.0, 0, "CPU", 0.0, None, True)
    found = importlib.import_module("distill.benchmarks.verdict.remarks").isa_remark(model, machine)
    assert (not found) == (says is None)
    assert says is None or says in found[0]
