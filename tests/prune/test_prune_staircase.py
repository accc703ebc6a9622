"""Layers are timed alone, by the kernel that the runtime would use for them; what is known is not measured again."""

from __future__ import annotations

import errno
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from distill.benchmarks import resolve_target
from distill.errors import NotMeasuredError
from distill.prune.widths import layer_costs as staircase
from distill.prune.widths.latency import shapes_of
from distill.prune.widths.layer_costs import LayerShape, Precision, Staircase, probes

DENSE = LayerShape("conv", 16, 32, (6, 6), 1, (3, 3), (1, 1), (1, 1), (1, 1))
DEPTHWISE = LayerShape("conv", 16, 16, (6, 6), 2, (3, 3), (2, 2), (1, 1), (1, 1), 0)
GROUPED = LayerShape("conv", 16, 32, (6, 6), 1, (3, 3), (1, 1), (1, 1), (1, 1), 4)
PRODUCT = LayerShape("linear", 24, 40, (5,), 2)
SHAPES = (DENSE, DEPTHWISE, GROUPED, PRODUCT, replace(DENSE, positions=(9,), kernel=(3,), stride=(1,), padding=(1,),
                                                      dilation=(1,)))  # fmt: skip


@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_every_kind_of_layer_is_timed(precision: Precision) -> None:
    known = Staircase(resolve_target("x86"), precision)(SHAPES)
    assert set(known) == set(SHAPES)
    assert all(0 < seconds < 1 for seconds in known.values())


@pytest.mark.parametrize(("precision", "kernels"), [("float32", {"Conv", "Gemm"}), ("int8", {"QLinearConv", "QGemm"})])
def test_the_kernels_are_those_that_ship(precision: Precision, kernels: set[str], tmp_path: Path) -> None:
    model, feed = probes([DENSE, PRODUCT], precision)
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    outputs = session.run(None, feed)
    assert [value.shape for value in outputs] == [(1, 32, 6, 6), (10, 40)]
    assert all(np.isfinite(value).all() and value.any() for value in outputs)
    import onnx

    ran = {node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node}
    assert kernels <= ran


def test_what_is_known_is_not_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = resolve_target("x86")
    first = Staircase(target, cache=tmp_path)([DENSE, PRODUCT])
    monkeypatch.setattr(staircase, "kernel_seconds", None)
    assert Staircase(target, cache=tmp_path)([PRODUCT, DENSE]) == first
    with pytest.raises(TypeError):  # kernels of another kind have files of their own
        Staircase(target, "int8", cache=tmp_path)([DENSE])
    with pytest.raises(TypeError):  # and so have other numbers of threads
        Staircase(resolve_target("x86", threads=2), cache=tmp_path)([DENSE])


def test_a_file_that_cannot_be_read_is_measured_anew(tmp_path: Path) -> None:
    target = resolve_target("x86")
    Staircase(target, cache=tmp_path)([PRODUCT])
    (file,) = tmp_path.iterdir()
    whole, told = file.read_text(encoding="utf-8"), list[str]()
    odd = ("NaN", "-1e-6", "0.0", "Infinity", "1e999", "true", '"1"', "null")
    values = [re.sub(r"[\d.e-]+(?=\n})", value, whole) for value in odd]
    for text in ("", "[1]", '{"a": "b"}', "{", "[" * 100_000, *values):
        file.write_text(text, encoding="utf-8")
        assert Staircase(target, cache=tmp_path, tell=told.append)([PRODUCT])[PRODUCT] > 0
    file.unlink()
    file.mkdir()
    assert PRODUCT in Staircase(target, cache=tmp_path, tell=told.append)([PRODUCT])
    assert len(told) == 6 + len(odd)
    assert all(str(file) in text and "layers are timed again" in text for text in told)


def test_layers_of_other_machines_are_not_timed_here() -> None:
    assert Staircase.why_not(resolve_target("x86")) is None
    assert "only" in str(Staircase.why_not(resolve_target("x86", measure="ssh board")))
    assert "only" in str(Staircase.why_not(resolve_target("cuda")))


def test_many_widths_are_split_over_sessions(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(staircase, "_BYTES", 4 * (16 * 36 + 16 * 32 * 9) * 3)

    def pretended(model: bytes, feed: dict[str, Any], *_: Any, **__: Any) -> dict[str, list[float]]:
        asked.append(len(feed) - 1)
        return {f"p{number}": [2e-6 + number * 1e-6] for number in range(len(feed))}

    monkeypatch.setattr(staircase, "kernel_seconds", pretended)
    shapes = [DENSE.at(16, width) for width in range(24, 33)]
    known = Staircase(resolve_target("x86"))(shapes)
    assert sum(asked) == len(shapes)
    assert len(asked) > 1
    # What a profile adds to the tiniest layer is taken off all of them.
    assert known[shapes[0]] == pytest.approx(2e-6)


def test_shapes_are_those_of_the_calls() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, padding="same", groups=8), nn.Flatten(2), nn.Linear(36, 5)
    ).eval()
    found = shapes_of(model, ((torch.randn(2, 3, 12, 12),), {}), 4)
    assert found["0"] == [LayerShape("conv", 3, 8, (12, 12), 4, (3, 3), (2, 2), (1, 1), (1, 1))]
    assert found["1"] == [LayerShape("conv", 8, 8, (6, 6), 4, (3, 3), (1, 1), (1, 1), (1, 1), 0)]
    assert found["3"] == [LayerShape("linear", 36, 5, (8,), 4)]
    assert found["1"][0].at(3, 16).width_in == 16
    assert found["3"][0].macs == 4 * 8 * 36 * 5


@pytest.mark.parametrize("error", [None, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))], ids=["no-folder", "full"])
def test_a_cache_that_cannot_be_written_costs_nothing_but_time(
    error: OSError | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    if error is None:
        cache.write_text("a file")

    def full(path: Path, content: str) -> None:
        raise error or AssertionError

    said: list[str] = []
    monkeypatch.setattr(staircase.files, "write_whole", full)
    seconds = Staircase(resolve_target("x86"), cache=cache, tell=said.append)([PRODUCT])
    assert set(seconds) == {PRODUCT}
    assert "cannot be written" in said[-1]
    assert "layers are timed again" in said[-1]


def test_a_profile_that_is_cut_off_is_no_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    end = onnxruntime.InferenceSession.end_profiling

    def cut_off(session: onnxruntime.InferenceSession) -> str:
        path = Path(end(session))
        path.write_bytes(path.read_bytes()[:512])  # as on a disk that is full
        return str(path)

    monkeypatch.setattr(onnxruntime.InferenceSession, "end_profiling", cut_off)
    with pytest.raises(NotMeasuredError, match="not written whole"):
        Staircase(resolve_target("x86"))([PRODUCT])
