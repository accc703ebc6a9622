"""Stored documents that are damaged by seed: each is refused by its name, found out again, or read for what it says."""

from __future__ import annotations

import gzip
import io
import json
import random
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import safetensors.torch
import torch
from onnx import TensorProto, helper, numpy_helper
from test_hostile_files import typed
from torch import nn
from wrong import damage

from distill.benchmarks.parse import read_npz
from distill.benchmarks.records import Report
from distill.benchmarks.verdict import gate
from distill.benchmarks.verdict.baseline import only_last
from distill.distillation.teachers import StoredTeacher
from distill.errors import UserError
from distill.references.weights import load_weights
from distill.sealed_files import sealed_array
from distill.tasks.table_file import read_table

QUICK = ("--pairs", "4", "--seconds", "0.02")


def chain(name: str, layers: int) -> None:
    rng, nodes, weights = np.random.default_rng(0), [], []
    for number in range(layers):
        weights.append(
            numpy_helper.from_array(0.2 * rng.standard_normal((2, 2, 3, 3)).astype(np.float32), f"w{number}")
        )
        nodes.append(helper.make_node("Conv", [f"c{number}", f"w{number}"], [f"c{number + 1}"], pads=[1] * 4))
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 2, 6, 6]) for n in ("c0", f"c{layers}"))
    graph = helper.make_graph(nodes, "g", [x], [y], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=7), name)


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a folder with a baseline, a failed gate, a shard, and a bundle that was measured: all really timed."""
    folder = tmp_path_factory.mktemp("measured")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        chain("fast.onnx", 1)
        chain("slow.onnx", 40)
        assert typed("bench", "fast.onnx", "--save-baseline", "base.json", *QUICK) == 0
        Path("base.onnx").unlink()
        duel = ("bench", "slow.onnx", "--baseline", "fast.onnx", "--max-regression", "50%", *QUICK)
        assert typed(*duel, "--out", "report.json") == 1
        Path("gate.yaml").write_text("models: [{name: a, model: fast.onnx, baseline: fast.onnx}]")
        assert typed("bench", "--manifest", "gate.yaml", "--shard", "1/1", "--out", "shard.json", *QUICK) == 0
        assert typed(*duel, "--export-runner", "bundle") == 0
        subprocess.run([sys.executable, "-I", "runner.py"], cwd="bundle", check=True, timeout=120)
    return folder


READ: dict[str, tuple[str, tuple[str, ...]]] = {
    "a baseline": ("base.json", ("bench", "slow.onnx", "--baseline", "DOCUMENT")),
    "a report": ("report.json", ("bench", "--rejudge", "DOCUMENT", "--junit", "o.xml", "--summary", "o.md")),
    "a shard": ("shard.json", ("bench", "--merge", "DOCUMENT")),
    "a result": ("bundle/result.json", ("bench", "--import", "DOCUMENT")),
}
SEEDS = 60


@pytest.mark.parametrize("kind", READ)
def test_a_damaged_document_of_bench_is_refused_or_read(
    kind: str,
    measured: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Where it is good enough for a measurement, the candidate is one that was found slower."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "slow.onnx").write_bytes((measured / "slow.onnx").read_bytes())
    slow = only_last(Report.load(measured / "report.json"))
    monkeypatch.setattr(gate, "bench", lambda paths, options: slow)
    name, words = READ[kind]
    text = (measured / name).read_bytes()
    document, path = json.loads(text), tmp_path / "document.json"
    ends: dict[str, tuple[int, str]] = {}
    for seed in range(SEEDS):
        rng = random.Random(seed)
        (tmp_path / "old").mkdir(exist_ok=True)
        if path.is_symlink() or path.exists():
            path.rename(tmp_path / "old" / f"{kind}{seed}")
        path.write_bytes(text)
        if seed < len(damage.IN_PLACE):
            how = list(damage.IN_PLACE)[seed]
            damage.in_its_place(path, how)
        elif seed % 4:
            how, changed = damage.in_a_value(document, rng)
            path.write_text(changed)
        else:
            how, content = damage.in_the_text(text, rng)
            path.write_bytes(content)
        code = typed(*(str(path) if word == "DOCUMENT" else word for word in words))
        said = "".join(capfd.readouterr())
        assert "Traceback" not in said, how
        assert code != 2 or "document.json" in said, (how, said)
        ends[how] = (code, said)
    assert {how: end for how, end in ends.items() if end[0] not in (0, 1, 2, 3, 4, 5)} == {}
    assert sum(code == 2 for code, _ in ends.values()) > SEEDS // 3


BELIEVED = (float("nan"), float("inf"), -1.0, 0, 0.0, "1e-5", None, True, [1e-5], 10**400, {})


@pytest.mark.parametrize("place", [(1,), (4,), (2,), (0,)])
def test_no_turn_that_no_clock_can_say_is_believed(
    place: tuple[int], measured: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A turn is [arm, median, calls, undisturbed calls, fastest]."""
    document = json.loads((measured / "report.json").read_text())
    for value in BELIEVED:
        if place in ((2,), (0,)) and value in (0, 0.0):
            continue
        document["cases"][0]["pairs"][1]["turns"][0][place[0]] = value
        (tmp_path / "r.json").write_text(json.dumps(document))
        assert typed("bench", "--rejudge", tmp_path / "r.json") == 2, value
        said = capfd.readouterr().err
        assert f"cases.0.pairs.1.turns.0.{place[0]}" in said, (value, said)
        assert "make it again" in said


def test_a_key_that_comes_twice_is_refused(measured: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    text = (measured / "report.json").read_text()
    (tmp_path / "r.json").write_text(text.replace('"seed":', '"seed": 3,\n "seed":', 1))
    assert typed("bench", "--rejudge", tmp_path / "r.json") == 2
    assert "'seed' comes twice" in capfd.readouterr().err


ANSWERS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "no pairs": lambda answer: answer.pop("pairs", None),
    "no nodes": lambda answer: answer.pop("nodes", None),
    "another machine": lambda answer: answer.update(board=5),
    "half a machine": lambda answer: answer["board"].pop("cores"),
    "a word for seconds": lambda answer: answer.update(load_s="x", seconds="x"),
    "NaN": lambda answer: answer.update(load_s=float("nan"), seconds=float("nan")),
    "no outputs": lambda answer: answer.update(outputs=None, pairs=None),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_what_a_command_brings_back_from_a_board_is_looked_at(
    name: str, measured: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    whole = json.loads((measured / "bundle/result.json").read_text())
    looked_at = {**whole["answers"][0], "board": whole["board"]}
    ANSWERS[name](looked_at)
    Path("answer.json").write_text(json.dumps(looked_at))
    fetch = f"{sys.executable} -c \"print(open('answer.json').read())\""
    assert typed("bench", measured / "slow.onnx", "--measure", fetch, *QUICK) == 5
    said = capfd.readouterr().err
    assert "not measured" in said
    assert "Traceback" not in said


def arrays(write: Callable[..., Any], *values: Any, **named: Any) -> bytes:
    buffer = io.BytesIO()
    write(buffer, *values, **named)
    return buffer.getvalue()


def test_a_damaged_file_of_arrays_is_refused_or_computed_again(tmp_path: Path) -> None:
    values = np.random.default_rng(0).standard_normal((30, 3)).astype(np.float32)
    forms = {
        "a.npy": arrays(np.save, values),
        "a.npz": arrays(np.savez, logits=values),
        "b.npz": arrays(np.savez_compressed, logits=values),
    }
    sealed = tmp_path / "sealed.safetensors"
    sealed_array(sealed, lambda: values, lambda text: None)
    whole, told, refused = sealed.read_bytes(), list[str](), 0
    for seed in range(400):
        rng = random.Random(seed)
        for name, content in forms.items():
            path = tmp_path / name
            path.write_bytes(damage.in_bytes(content, rng))
            for read in (lambda: StoredTeacher.read(path, 30, 3), lambda: read_npz(path)):  # noqa: B023
                try:
                    read()
                except UserError as error:
                    assert str(path) in str(error)
                    refused += 1
        sealed.write_bytes(damage.in_bytes(whole, rng))
        assert np.array_equal(sealed_array(sealed, lambda: values, told.append), values)
        assert np.array_equal(sealed_array(sealed, lambda: pytest.fail("again"), told.append), values)
    assert refused > 400
    assert len(set(told)) >= 1
    assert all("computed again" in text for text in told)


def entry(content: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("logits.npy", content)
    return buffer.getvalue()


ENDLESS = f"{{'descr':'<f4','fortran_order':False,'shape':({'9' * 50},)}}\n".encode()


@pytest.mark.parametrize("content", [b"hello", b"", b"\x93NUMPY\x01\x00" + struct.pack("<H", len(ENDLESS)) + ENDLESS])
def test_an_archive_of_what_is_no_array_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    path.write_bytes(entry(content))
    for read in (lambda: StoredTeacher.read(path, 30, 3), lambda: read_npz(path)):
        with pytest.raises(UserError, match=r"a\.npz"):
            read()


def test_damaged_weights_are_refused_or_read(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2))
    safetensors.torch.save_file(model.state_dict(), tmp_path / "whole.safetensors")
    torch.save(model.state_dict(), tmp_path / "whole.pt")
    refused = 0
    for whole in sorted(tmp_path.iterdir()):
        content, path = whole.read_bytes(), tmp_path / f"damaged{whole.suffix}"
        for seed in range(300):
            path.write_bytes(damage.in_bytes(content, random.Random(seed)))
            try:
                load_weights(model, path, field="weights")
            except UserError as error:
                assert path.name in str(error)
                refused += 1
    assert refused > 300


def test_a_nested_tensor_is_no_weight(tmp_path: Path) -> None:
    model = nn.Linear(4, 2)
    nested = torch.nested.nested_tensor([torch.zeros(8)], layout=torch.jagged)
    torch.save(model.state_dict() | {"weight": nested}, tmp_path / "w.pt")
    with pytest.raises(UserError, match="weight"):
        load_weights(model, tmp_path / "w.pt", field="weights")


@pytest.mark.parametrize("kind", ["csv", "gz", "zip"])
def test_a_damaged_table_is_refused_or_read(kind: str, tmp_path: Path) -> None:
    rows = ("a,b,label\n" + "".join(f"{i}.5,x{i % 3},{'yes' if i % 2 else 'no'}\n" for i in range(40))).encode()
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("t.csv", rows)
    content = {"csv": rows, "gz": gzip.compress(rows), "zip": packed.getvalue()}[kind]
    path, refused = tmp_path / f"t.csv{'' if kind == 'csv' else '.' + kind}", 0
    for seed in range(400):
        path.write_bytes(damage.in_bytes(content, random.Random(seed)))
        try:
            read_table(path)
        except UserError as error:
            assert path.name in str(error)
            refused += 1
    assert refused > 20
