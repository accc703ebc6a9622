"""Pruning for a speed, beside torch-pruning at equal multiply-accumulates; and what a ratio of channels buys.

    python -m distill.versus.pruning speed results.jsonl     # speedup: 2.0 on ResNet-18 and MobileNetV2
    python -m distill.versus.pruning curves results.jsonl    # ratio -> latency, widths at the ends of steps and not
    python -m distill.versus.pruning report results.jsonl

Weights are random: latency depends on shapes only. What stands in the results is left out, so that a stopped campaign
goes on where it was.
"""

from __future__ import annotations

import argparse
import copy
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from distill.benchmarks import BenchmarkSettings, Options, bench, resolve_target
from distill.benchmarks.timing.jobs import Timing
from distill.errors import UserError
from distill.export import export_onnx, to_bytes
from distill.prune import PruneSettings, count, prune_channels
from distill.runtime.timing import Shipped
from distill.versus.gate import append, read_rows

from .networks import mobilenet_v2, resnet18

NETWORKS: dict[str, Callable[[], nn.Module]] = {"resnet18": resnet18, "mobilenet-v2": mobilenet_v2}
_SPEED_CASES = tuple((name, batch) for name in NETWORKS for batch in (1, 8))
_CURVES = (("resnet18", 64), ("mobilenet-v2", 64), ("mobilenet-v2", 128))
_RATIOS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)
_SEARCH = BenchmarkSettings(session_pairs=3, seconds_per_pair=1.0)
_CLOSE = 0.01
_BISECTIONS = 12


def main() -> None:
    """Read the command line and run what it asks for."""
    parser = argparse.ArgumentParser(prog="python -m distill.versus.pruning", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    for verb, what in (("speed", "a speed-up of 2"), ("curves", "ratio against latency"), ("report", "print tables")):
        one = verbs.add_parser(verb, help=what)
        one.add_argument("results", type=Path)
        one.add_argument("--size", type=int, default=64, help="pixels (speed)")
        one.add_argument("--pairs", type=int, default=6, help="session pairs of the last comparison")
        one.add_argument("--cache", type=Path, default=None, help="folder for what layers cost on this machine")
    words = parser.parse_args()
    if words.verb == "report":
        print(report(read_rows(words.results)))
        return
    done = {row["case"] for row in read_rows(words.results)} if words.results.is_file() else set()
    rows = _speeds(words, done) if words.verb == "speed" else _curves(words, done)
    for row in rows:
        append(words.results, row)
        print(row, flush=True)


def _speeds(words: argparse.Namespace, done: set[str]) -> Iterator[dict[str, Any]]:
    for name, batch in _SPEED_CASES:
        case = f"speed {name} {words.size} px, batch {batch}"
        if case not in done:
            yield {"case": case} | speed(name, batch, words.size, pairs=words.pairs, cache=words.cache)


def speed(name: str, batch: int, size: int, *, pairs: int, cache: Path | None) -> dict[str, Any]:
    """Prune for twice the speed, and uniformly by torch-pruning to as many multiply-accumulates; time two at a time.

    What a slow file does to caches and clocks, the others would pay for if all three took turns.
    """
    model, example = _network(name, size)
    begun = time.perf_counter()
    target = resolve_target("x86", batch_sizes=(batch,))
    device = Shipped(_write(example), target, batch, settings=_SEARCH).device(cache)
    settings = PruneSettings(speedup=2.0, importance="group_norm", max_ratio=0.8)
    ours, record = prune_channels(
        model, settings, example=((example,), {}), batches=None, loss=None, logits=_same, device=device
    )
    seconds = time.perf_counter() - begun
    share = record.macs_after / record.macs_before
    theirs = uniform(model, example, share)
    (before, faster), (_, uniformly), (_, over) = (
        _timed(two, example, batch, pairs) for two in ([model, ours], [model, theirs], [theirs, ours])
    )
    return {
        "seconds": seconds,
        "macs": share,
        "macs_uniform": count(theirs, (example,), {}).macs / record.macs_before,
        "parameters": record.parameters_after / record.parameters_before,
        "widths": record.widths,
        "warnings": list(record.warnings),
        "ms": [1e3 * row.p50_s for row in (before, faster, uniformly)],
        "ratios": [_ratio(row) for row in (before, faster, uniformly)],
        "over_uniform": _ratio(over),
    }


def uniform(model: nn.Module, example: Tensor, share: float) -> nn.Module:
    """Let torch-pruning cut every layer by one ratio, its defaults otherwise, until ``share`` of the MACs is left."""
    import torch_pruning as tp

    before = count(model, (example,), {}).macs
    low, high = 0.0, 1.0
    best: tuple[float, nn.Module] | None = None
    for _ in range(_BISECTIONS):
        ratio = (low + high) / 2
        narrow = copy.deepcopy(model)
        last = [module for module in narrow.modules() if isinstance(module, nn.Linear)][-1]
        pruner = tp.pruner.BasePruner(
            narrow,
            example,
            importance=tp.importance.GroupMagnitudeImportance(),
            pruning_ratio=ratio,
            ignored_layers=[last],
        )
        pruner.step()
        left = count(narrow, (example,), {}).macs / before
        if best is None or abs(left - share) < best[0]:
            best = abs(left - share), narrow
        if best[0] <= _CLOSE:
            break
        low, high = (ratio, high) if left > share else (low, ratio)
    assert best is not None
    return best[1]


def _curves(words: argparse.Namespace, done: set[str]) -> Iterator[dict[str, Any]]:
    for name, size in _CURVES:
        for snapped in (True, False):
            case = f"curve {name} {size} px, {'steps' if snapped else 'any width'}"
            if case not in done:
                yield {"case": case} | curve(name, size, snapped=snapped, pairs=words.pairs, cache=words.cache)


def curve(name: str, size: int, *, snapped: bool, pairs: int, cache: Path | None) -> dict[str, Any]:
    """Prune by each of several ratios, with widths moved to the ends of steps or not, and time all in turns."""
    model, example = _network(name, size)
    target = resolve_target("x86", batch_sizes=(1,))
    device = Shipped(_write(example), target, 1, settings=_SEARCH).device(cache)
    # What the whole takes is measured at the end, of all in turns.
    device = replace(device, measure=lambda _: 1.0)
    models, macs = [], []
    for ratio in _RATIOS:
        settings = PruneSettings(
            ratio=ratio, importance="group_norm", max_ratio=0.8, round_to=8 if snapped else 1, global_=False
        )
        narrow, record = prune_channels(
            model,
            settings,
            example=((example,), {}),
            batches=None,
            loss=None,
            logits=_same,
            device=device if snapped else None,
        )
        models.append(narrow)
        macs.append(record.macs_after / record.macs_before)
    found = _timed(models, example, 1, pairs)
    return {
        "asked": list(_RATIOS),
        "macs": macs,
        "ms": [1e3 * row.p50_s for row in found],
        "ratios": [_ratio(row) for row in found],
    }


def _network(name: str, size: int) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return NETWORKS[name]().eval(), torch.randn(2, 3, size, size)


def _same(output: Tensor) -> Tensor:
    return output


def _write(example: Tensor) -> Callable[[nn.Module, Path], None]:
    def write(model: nn.Module, path: Path) -> None:
        path.write_bytes(to_bytes(export_onnx(model, args=(example,), input_names=["x"])))

    return write


def _timed(models: Sequence[nn.Module], example: Tensor, batch: int, pairs: int) -> Sequence[Any]:
    """Time exported models in turns, one thread; each is compared with the first."""
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder, f"m{number}.onnx") for number in range(len(models))]
        for model, path in zip(models, paths, strict=True):
            _write(example)(model, path)
        options = Options(target=resolve_target("x86"), batches=(batch,), timing=Timing(pairs=pairs))
        return bench(paths, options).cases[0].rows


def _ratio(row: Any) -> list[float] | None:
    return [row.ratio.value, row.ratio.low, row.ratio.high] if row.ratio else None


def report(rows: Sequence[dict[str, Any]]) -> str:
    """Return what was found as Markdown."""
    if not rows:
        raise UserError("there are no results yet")
    speeds = [row for row in rows if row["case"].startswith("speed ")]
    lines = []
    if speeds:
        lines += ["| network | before | speedup: 2.0 | MACs left | torch-pruning, uniform | ours over it |"]
        lines += ["| :-- | --: | --: | --: | --: | --: |"]
    for row in speeds:
        ours, theirs = row["ratios"][1], row["ratios"][2]
        lines.append(
            f"| {row['case'].removeprefix('speed ')} | {row['ms'][0]:.2f} ms | {_times(ours)} | {row['macs']:.0%} "
            f"| {_times(theirs)} at {row['macs_uniform']:.0%} | {_times(row['over_uniform'])} |"
        )
    for row in rows:
        if row["case"].startswith("curve "):
            lines += ["", f"**{row['case'].removeprefix('curve ')}**", ""]
            lines += ["| ratio | " + " | ".join(f"{ratio:.0%}" for ratio in row["asked"]) + " |"]
            lines += ["| :-- |" + " --: |" * len(row["asked"])]
            lines += ["| MACs left | " + " | ".join(f"{share:.0%}" for share in row["macs"]) + " |"]
            lines += ["| ms | " + " | ".join(f"{ms:.3g}" for ms in row["ms"]) + " |"]
            lines += ["| time, of ratio 0 | " + " | ".join(_share(ratio) for ratio in row["ratios"]) + " |"]
    return "\n".join(lines)


def _times(ratio: Sequence[float]) -> str:
    value, low, high = ratio
    return f"{1 / value:.2f}× [{1 / high:.2f}, {1 / low:.2f}]"


def _share(ratio: Sequence[float] | None) -> str:
    if ratio is None:
        return "1"
    value, low, high = ratio
    return f"{value:.2f} ±{(high - low) / 2:.2f}"


if __name__ == "__main__":
    main()
