from __future__ import annotations

from pathlib import Path

import pytest
import torch

from distill.benchmarks import resolve_target, why_unmeasurable
from distill.benchmarks.timing.jobs import Timing
from distill.versus import gpu
from distill.versus.gpu import PARTS, LeftOutError, Outcome, Row, Setup

CPU = Setup(
    target=resolve_target(None), device="cpu", pixels=32, batches=(1,), timing=Timing(2, 0.05), steps=1, smoke=True
)
needs_no_gpu = pytest.mark.skipif(why_unmeasurable(resolve_target("cuda")) is None, reason="there is a GPU here")


@needs_no_gpu
def test_without_a_gpu_every_part_is_left_out_by_its_reason(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main([]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("no GPU; torch")
    for part in PARTS:
        assert f"- {part}: left out, this machine has no NVIDIA GPU" in printed
    assert "failed" not in printed


@needs_no_gpu
@pytest.mark.parametrize("part", ["CUDA provider", "bf16 training", "2:4", "preset twice"])
def test_a_part_that_needs_torchs_gpu_is_left_out_without(part: str, tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("torch sees a GPU")
    with pytest.raises(LeftOutError, match="finds no GPU"):
        PARTS[part](Setup(), tmp_path)


def test_a_part_that_fails_crashes_or_takes_too_long_ends_no_other(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(part: str, limit_s: float) -> Outcome:
        if part == "fp16":
            return Outcome(part, failed="RuntimeError: no kernel image")
        return Outcome(part, row=Row("ResNet-18", "2 ms", "1 ms", "2.00×"))

    monkeypatch.setattr(gpu, "why_unmeasurable", lambda target: None)
    results = gpu.outcomes(run=run)
    assert [result.part for result in results] == [*PARTS]
    printed = gpu.table(results)
    assert printed.count("| 2.00× |") == len(PARTS) - 1
    assert "- fp16: **failed**, RuntimeError: no kernel image" in printed
    assert all("are over" in str(result.left_out) for result in gpu.outcomes(0.0, run))
    monkeypatch.setattr(gpu, "outcomes", lambda seconds: results)
    assert gpu.main([]) == 1


def test_a_child_that_dies_or_hangs_has_failed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = tmp_path / "python"
    monkeypatch.setattr(gpu.sys, "executable", str(program))
    for content, word in (("exit 3", "exit code 3"), ("exec sleep 60", "did not end within")):
        program.write_text(f"#!/bin/sh\n{content}\n")
        program.chmod(0o755)
        assert word in str(gpu._in_child("fp16", 0.5).failed)


@pytest.mark.parametrize("part", ["fp16", "bf16 training"])
def test_a_part_gives_a_row(part: str, tmp_path: Path) -> None:
    """What the parts share works on the CPU too."""
    result = gpu.outcome_of(part, CPU)
    assert result.failed is None
    assert result.row is not None
    assert "×" in result.row.ratio
