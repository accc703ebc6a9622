"""What a machine with a GPU shows, in one command of at most eight minutes: the table of the README.

    python -m distill.versus.gpu [--seconds 480]

Each part runs in a process of its own, so that one that fails, crashes or hangs ends no other. Printed are the device
with its versions, a Markdown table, what was left out, and what failed, each with its reason; a part that failed makes
the exit code 1. Weights are random but for the preset's: time depends on shapes only. On a machine without a GPU every
part is left out.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from onnx import ModelProto
from torch import nn

from distill import clean
from distill.benchmarks import Options, Target, bench, resolve_target, units, why_unmeasurable
from distill.benchmarks.timing.jobs import Timing
from distill.benchmarks.timing.machine import gpus, machine
from distill.errors import DistillError, NotMeasuredError
from distill.export import export_onnx, to_bytes
from distill.versus.networks import resnet18

BUDGET_S = 480.0
_CLASSES = 1000


@dataclass(frozen=True)
class Row:
    """A line of the table: what was compared, and both figures, by batch size where there are several."""

    subject: str
    before: str
    after: str
    ratio: str


class LeftOutError(Exception):
    """A part cannot run on this machine; the message says why."""


@dataclass(frozen=True)
class Setup:
    """What the parts run on, and how much; another than the default is for trying them without a GPU."""

    target: Target = dataclasses.field(default_factory=lambda: resolve_target("cuda"))
    device: Literal["cpu", "cuda"] = "cuda"
    pixels: int = 224
    batches: tuple[int, ...] = (1, 32)
    timing: Timing = dataclasses.field(default_factory=lambda: Timing(pairs=4, seconds_per_pair=1.0, timeout_s=120))
    steps: int = 30
    smoke: bool = False

    def torch_device(self) -> torch.device:
        """Return the device that torch computes on; left out where torch finds none."""
        if self.device == "cuda" and not torch.cuda.is_available():
            raise LeftOutError(f"torch {torch.__version__} finds no GPU here")
        return torch.device(self.device)

    @property
    def network(self) -> str:
        """Say which network is timed."""
        return f"ResNet-18, {self.pixels} px"


def provider(setup: Setup, folder: Path) -> Row:
    """Compare PyTorch's eager mode with the float32 file on the target's provider."""
    setup.torch_device()
    path = _written(folder / "float32.onnx", _core(setup.pixels))
    cells = _compared(["eager:distill.versus.networks:resnet18", path], setup)
    return Row(f"{setup.network}: PyTorch eager, ONNX on {setup.target.provider}, float32", *cells)


def fp16(setup: Setup, folder: Path) -> Row:
    """Compare the float32 file with the fp16 file that `quantize` writes for the target."""
    paths = [_written(folder / "float32.onnx", _core(setup.pixels)), _fp16(setup, folder)]
    return Row(f"{setup.network}: float32, fp16", *_compared(paths, setup))


def cuda_graphs(setup: Setup, folder: Path) -> Row:
    """Compare the fp16 file with itself, replayed as a captured CUDA graph; each is timed alone."""
    path = _fp16(setup, folder)
    graphs = dataclasses.replace(setup.target, options=(("enable_cuda_graph", "1"),))
    cells = _apart((path, setup.target), (path, graphs), setup)
    return Row(f"{setup.network}: fp16, fp16 as a CUDA graph", *cells)


def tensorrt(setup: Setup, folder: Path) -> Row:
    """Compare fp16 on CUDA with int8 of `quantize` on TensorRT, where that loads; each is timed alone."""
    from distill.quantize import quantize_onnx

    target = resolve_target("tensorrt")
    calibration = [{"x": rows} for rows in _images(setup.pixels, 32).reshape(4, 8, 3, setup.pixels, setup.pixels)]
    model, _ = quantize_onnx(_core(setup.pixels), target=target, calibration=calibration)
    path = _written(folder / "int8.onnx", model)
    try:
        cells = _apart((_fp16(setup, folder), setup.target), (path, target), setup)
    except NotMeasuredError as error:
        if target.provider in str(error):
            raise LeftOutError(str(error)) from error
        raise
    return Row(f"{setup.network}: fp16 on CUDA, int8 on TensorRT", *cells)


def bf16_training(setup: Setup, folder: Path) -> Row:
    """Compare training steps in float32 with steps in bf16, as `fit` computes them."""
    device, batch = setup.torch_device(), 128
    images = torch.randn(batch, 3, setup.pixels // 2, setup.pixels // 2, device=device)
    labels = torch.randint(_CLASSES, (batch,), device=device)
    rates = [batch / _step_s(precision, images, labels, setup) for precision in ("fp32", "bf16")]
    before, after = (f"{rate:,.0f} images/s" for rate in rates)
    subject = f"training ResNet-18, {setup.pixels // 2} px, batch {batch}: float32, bf16"
    return Row(subject, before, after, f"{rates[1] / rates[0]:.2f}×")


def preset(setup: Setup, folder: Path) -> Row:
    """Run the preset `digits` twice: the second run reuses the stages of the first."""
    import distill

    setup.torch_device()
    overrides = (f"device={setup.device}", f"target={setup.target.name}")
    seconds, files, reused = [], [], 0
    for _ in range(2):
        begin = time.perf_counter()
        result = distill.run("digits", overrides=overrides, out=folder / "run", smoke=setup.smoke)
        seconds.append(time.perf_counter() - begin)
        files.append((folder / "run" / "deploy" / "model.onnx").read_bytes())
        reused = sum(stage.reused for stage in result.stages)
    if files[0] != files[1]:
        raise DistillError("the second run shipped other bytes than the first")
    speedup = result.comparison.speedup if result.comparison else None
    subject = f"preset digits on {setup.device}, twice: shipped {units.speedup(speedup)} over its teacher"
    again = f"{units.elapsed(seconds[1])}, {reused} stages reused"
    return Row(subject, units.elapsed(seconds[0]), again, f"{seconds[0] / seconds[1]:.1f}×")


def two_of_four(setup: Setup, folder: Path) -> Row:
    """Compare a layer with itself in the 2:4 pattern that `prune --sparsity` sets, by torch's sparse kernels."""
    from torch.sparse import to_sparse_semi_structured

    from distill.prune.sparse.sparsify import sparsify

    device, width, rows = setup.torch_device(), 4096, 4096
    if device.type != "cuda" or torch.cuda.get_device_capability() < (8, 0):
        raise LeftOutError("sparse kernels need an NVIDIA GPU of compute capability 8.0 or more")
    dense, _ = sparsify(nn.Sequential(nn.Linear(width, width, bias=False)), "2:4")
    weight = dense.get_parameter("0.weight").detach().to(device, torch.float16)
    sparse, x = to_sparse_semi_structured(weight), torch.randn(width, rows, device=device, dtype=torch.float16)
    off = (sparse @ x - weight @ x).abs().max().item() / (weight @ x).abs().max().item()
    if off > 1e-2:
        raise DistillError(f"the sparse product is off by {100 * off:.1f} % of the largest value")
    seconds = [
        _call_s(functools.partial(torch.matmul, matrix, x), device, 10 * setup.steps) for matrix in (weight, sparse)
    ]
    subject = f"product of {width}×{width} with {width}×{rows} in fp16: dense, 2:4"
    before, after = map(units.duration, seconds)
    return Row(subject, before, after, f"{seconds[0] / seconds[1]:.2f}×")


PARTS: dict[str, Callable[[Setup, Path], Row]] = {
    "CUDA provider": provider,
    "fp16": fp16,
    "CUDA graphs": cuda_graphs,
    "bf16 training": bf16_training,
    "2:4": two_of_four,
    "preset twice": preset,
    "TensorRT": tensorrt,
}


# What the parts share -------------------------------------------------------------------------------------------------


def _images(pixels: int, count: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.random.default_rng(0).standard_normal((count, 3, pixels, pixels)).astype(np.float32)


@functools.cache
def _core(pixels: int) -> ModelProto:
    torch.manual_seed(0)
    return export_onnx(resnet18(_CLASSES).eval(), args=(torch.randn(2, 3, pixels, pixels),), input_names=["x"])


def _fp16(setup: Setup, folder: Path) -> Path:
    from distill.quantize import to_half

    model, _ = to_half(_core(setup.pixels), samples=[{"x": _images(setup.pixels, 2)}])
    return _written(folder / "fp16.onnx", model)


def _written(path: Path, model: ModelProto) -> Path:
    path.write_bytes(to_bytes(model))
    return path


def _compared(files: Sequence[str | Path], setup: Setup) -> tuple[str, str, str]:
    """Time two things in turns; return both latencies and the speed-up, by batch size."""
    report = bench(files, Options(target=setup.target, batches=setup.batches, timing=setup.timing))
    before, after = (" / ".join(units.duration(case.rows[arm].p50_s) for case in report.cases) for arm in (0, 1))
    return before, after, " / ".join(units.faster(case.rows[1].ratio) for case in report.cases)


def _apart(first: tuple[Path, Target], second: tuple[Path, Target], setup: Setup) -> tuple[str, str, str]:
    """Time two files on targets of their own, which cannot take turns; the ratio is that of their medians."""
    p50_s = []
    for path, target in (first, second):
        timing = dataclasses.replace(setup.timing, timeout_s=max(target.timeout_s, setup.timing.timeout_s or 0))
        report = bench([path], Options(target=target, batches=setup.batches, timing=timing))
        p50_s.append([case.rows[0].p50_s for case in report.cases])
    before, after = (" / ".join(map(units.duration, seconds)) for seconds in p50_s)
    return before, after, " / ".join(f"{slow / fast:.2f}×" for slow, fast in zip(*p50_s, strict=True))


def _step_s(precision: str, images: torch.Tensor, labels: torch.Tensor, setup: Setup) -> float:
    """Return the seconds of a training step; a loss that is not finite is an error."""
    from distill.training.forward import autocast

    torch.manual_seed(0)
    model = resnet18(_CLASSES).to(images.device).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    context, _ = autocast(precision, images.device)
    loss = torch.zeros(())

    def step() -> None:
        nonlocal loss
        optimizer.zero_grad(set_to_none=True)
        with context():
            loss = nn.functional.cross_entropy(model(images), labels)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    seconds = _call_s(step, images.device, setup.steps)
    if not loss.isfinite():
        raise DistillError(f"{precision}: the loss is {loss.item()} after {setup.steps} steps")
    return seconds


def _call_s(call: Callable[[], object], device: torch.device, count: int) -> float:
    """Return the seconds of a call: the mean of many, after a third of them to warm up."""
    begin = 0.0
    for number in range(-(-count // 3) + count):
        if number == -(-count // 3):
            _wait(device)
            begin = time.perf_counter()
        call()
    _wait(device)
    return (time.perf_counter() - begin) / count


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


# Running them ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Outcome:
    """What came of a part: a row, or why there is none."""

    part: str
    row: Row | None = None
    left_out: str | None = None
    failed: str | None = None


def outcome_of(part: str, setup: Setup) -> Outcome:
    """Run a part in this process, whatever comes of it."""
    try:
        with tempfile.TemporaryDirectory(prefix="distill-gpu-") as folder:
            return Outcome(part, row=PARTS[part](setup, Path(folder)))
    except LeftOutError as error:
        return Outcome(part, left_out=str(error))
    except Exception as error:  # a part ends no other, whatever it raises
        return Outcome(part, failed=clean.line(f"{type(error).__name__}: {error}"))


def _in_child(part: str, limit_s: float) -> Outcome:
    """Run a part in a process of its own; one that dies or takes too long has failed."""
    command = [sys.executable, "-m", "distill.versus.gpu", "--part", part]
    try:
        ended = subprocess.run(command, capture_output=True, text=True, timeout=limit_s, check=False)
    except subprocess.TimeoutExpired:
        return Outcome(part, failed=f"did not end within {limit_s:.0f} s")
    lines = ended.stdout.splitlines()
    if ended.returncode or not lines:
        last = (ended.stderr.strip().splitlines() or ["it said nothing"])[-1]
        return Outcome(part, failed=f"its process ended with exit code {ended.returncode}: {clean.line(last)}")
    answer = json.loads(lines[-1])
    row = Row(**answer["row"]) if answer["row"] else None
    return Outcome(part, row, answer["left_out"], answer["failed"])


def outcomes(budget_s: float = BUDGET_S, run: Callable[[str, float], Outcome] = _in_child) -> list[Outcome]:
    """Run every part within the time for all of them, but none on a machine without a GPU."""
    reason = why_unmeasurable(resolve_target("cuda"))
    if reason is not None:
        return [Outcome(part, left_out=reason) for part in PARTS]
    end, results = time.monotonic() + budget_s, []
    for part in PARTS:
        left = end - time.monotonic()
        over = Outcome(part, left_out=f"the {budget_s:.0f} s for all parts are over")
        results.append(over if left < 5 else run(part, left))
        print(f"{part}: {units.elapsed(budget_s - (end - time.monotonic()))}", file=sys.stderr, flush=True)
    return results


def table(results: Sequence[Outcome]) -> str:
    """Write device and versions, the table, what was left out and what failed, as Markdown."""
    versions, cards = machine()["versions"], gpus()
    device = ", ".join(f"{card['name']} (driver {card['driver']})" for card in cards) or "no GPU"
    lines = [
        f"{clean.markdown(device)}; torch {torch.__version__}, CUDA {torch.version.cuda or 'none'}, onnxruntime "
        f"{versions['onnxruntime']}, Python {versions['python']}; {datetime.now(UTC):%Y-%m-%d}",
        "",
    ]
    rows = [(result.part, result.row) for result in results if result.row is not None]
    if rows:
        sizes = " / ".join(map(str, Setup().batches))
        lines += [f"| part | compared (batch {sizes}) | before | after | speed-up |", "|---|---|---:|---:|---:|"]
        for part, row in rows:
            cells = (part, row.subject, row.before, row.after, row.ratio)
            lines.append("| " + " | ".join(map(clean.markdown, cells)) + " |")
        lines.append("")
    lines += [f"- {result.part}: left out, {clean.markdown(result.left_out)}" for result in results if result.left_out]
    lines += [f"- {result.part}: **failed**, {clean.markdown(result.failed)}" for result in results if result.failed]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the parts and print the table; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m distill.versus.gpu", description=__doc__)
    parser.add_argument("--seconds", type=float, default=BUDGET_S, help="for all parts together")
    parser.add_argument("--part", choices=PARTS, help="run one part in this process, and print its outcome as JSON")
    options = parser.parse_args(arguments)
    if options.part:
        print(json.dumps(dataclasses.asdict(outcome_of(options.part, Setup()))))
        return 0
    results = outcomes(options.seconds)
    print(table(results))
    return int(any(result.failed for result in results))


if __name__ == "__main__":
    sys.exit(main())
