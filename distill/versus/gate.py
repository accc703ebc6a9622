"""Measures the gate itself: how often it cries wolf, what it catches, how long it takes.

    python -m distill.versus.gate live aa.jsonl --what aa --gates 50
    python -m distill.versus.gate live spin.jsonl --what spin --gates 60
    python -m distill.versus.gate live graph.jsonl --what graph --gates 60
    python -m distill.versus.gate live hog.jsonl --what hog --gates 40
    python -m distill.versus.gate report *.jsonl
    python -m distill.versus.gate curve docs/operating-curve.svg *.jsonl

Every gate is appended to its file as soon as it is done; the same command goes on where it was stopped. `report` also
replays: it draws whole session pairs of one cell with replacement and judges them as the live gate would, with a
slow-down injected into each; single turns are never shuffled, since that would destroy the machine's moods.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from distill.benchmarks.onnx_file.inputs import make_inputs
from distill.benchmarks.runner import FASTEST, MEDIAN, effect
from distill.benchmarks.target import resolve_target
from distill.benchmarks.timing.jobs import ArmSpec, Timing, prepared, time_job
from distill.benchmarks.timing.machine import machine
from distill.benchmarks.timing.process import run_job
from distill.benchmarks.verdict.rule import Rule, judge

# name -> (channels, side, layers): about 50 microseconds, 1 and 20 milliseconds on one core of a server.
SIZES = {"50 µs": (16, 14, 6), "1 ms": (16, 28, 25), "20 ms": (48, 56, 25)}
# Slow-downs that are injected, as shares of more work, and the tolerance that they are about.
INJECTED = ((0.08, 0.05), (0.03, 0.05), (0.04, 0.02))
TOLERANCES = (0.05, 0.02)
REPLAYS = 5000


def chain(path: Path, channels: int, side: int, layers: int, extra: float = 0.0) -> Path:
    """Write a chain of 3x3 convolutions with ReLU; `extra` is a share of more work of the same kind.

    More work is one more convolution, whose channels are as many as that share takes.
    """
    rng = np.random.default_rng(0)
    nodes: list[onnx.NodeProto] = []
    weights: list[TensorProto] = []

    def convolve(source: str, out: str, width_in: int, width_out: int) -> None:
        scale = math.sqrt(2 / (9 * width_in))
        weight = (scale * rng.standard_normal((width_out, width_in, 3, 3))).astype(np.float32)
        weights.append(numpy_helper.from_array(weight, f"w{len(weights)}"))
        nodes.append(helper.make_node("Conv", [source, weights[-1].name], [f"{out}c"], pads=[1] * 4))
        nodes.append(helper.make_node("Relu", [f"{out}c"], [out]))

    previous = "x"
    for layer in range(layers):
        convolve(previous, f"h{layer}", channels, channels)
        previous = f"h{layer}"
    outputs = [helper.make_tensor_value_info(previous, TensorProto.FLOAT, ["n", channels, side, side])]
    if extra:
        more = max(1, round(extra * layers))
        for layer in range(more):
            convolve(previous, f"m{layer}", channels, channels)
            previous = f"m{layer}"
        outputs = [helper.make_tensor_value_info(previous, TensorProto.FLOAT, ["n", channels, side, side])]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", channels, side, side])]
    graph = helper.make_graph(nodes, "chain", inputs, outputs, weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def cells(what: str) -> Iterator[dict[str, Any]]:
    """List what a campaign measures: a model's size, threads, and what is injected."""
    for size in SIZES:
        for threads in (1, 2):
            if what in ("aa", "hog"):
                yield {"what": what, "size": size, "threads": threads, "injected": 0.0, "tolerance": min(TOLERANCES)}
            elif threads == 1:
                for injected, tolerance in INJECTED:
                    yield {"what": what, "size": size, "threads": 1, "injected": injected, "tolerance": tolerance}


def live(out: Path, what: str, gates: int, sizes: Sequence[str] | None = None) -> None:
    """Run gates until every cell of these sizes has as many as asked for, in turns so that all meet every mood."""
    wanted = [cell for cell in cells(what) if cell["size"] in (sizes or SIZES)]
    done = Counter(_name(row) for row in read_rows(out) if row["what"] == what)
    with tempfile.TemporaryDirectory(prefix="distill-campaign-") as place, _hog(what == "hog"):
        while any(done[_name(cell)] < gates for cell in wanted):
            for cell in wanted:
                if done[_name(cell)] < gates:
                    row = {**cell, **one_gate(Path(place), cell, seed=done[_name(cell)])}
                    append(out, row)
                    done[_name(cell)] += 1
                    print(
                        f"{_name(cell)} {done[_name(cell)]}/{gates}: {row['verdict']} {row['theta']:+.4f}", flush=True
                    )


def one_gate(place: Path, cell: dict[str, Any], seed: int) -> dict[str, Any]:
    """Run one live gate as `bench NEW --baseline OLD` does, and keep each session pair's effect."""
    base = chain(place / "base.onnx", *SIZES[cell["size"]])
    other = base
    if cell["what"] == "graph":
        other = chain(place / "other.onnx", *with_room(cell), extra=cell["injected"])
        base = chain(place / "base.onnx", *with_room(cell))
    target = resolve_target(None, threads=cell["threads"])
    rule = Rule(cell["tolerance"])
    timing = Timing(pairs=max(rule.looks), seed=seed, gate=rule.for_runner())
    begun = time.perf_counter()
    arms = [ArmSpec(path, make_inputs(path, 1)) for path in (base, other)]
    with prepared(arms, target, "campaign") as specs:
        if cell["what"] == "spin":
            specs[1] = {**specs[1], "spin": cell["injected"]}
        spinning = Path(__file__).with_name("gate_spinning.py") if cell["what"] == "spin" else None
        answer = run_job(time_job(specs, target, timing), timeout_s=300, subject="campaign", runner=spinning)
    seconds = time.perf_counter() - begun
    fastest, medians = ([effect(pair, value=value) for pair in answer["pairs"]] for value in (FASTEST, MEDIAN))
    judged = judge(fastest, medians, rule)
    return {
        "fastest": fastest,
        "medians": medians,
        "verdict": judged.verdict,
        "theta": math.log(judged.slowdown),
        "seconds": seconds,
        "at": time.time(),
        "cpu": machine()["cpu"],
        "onnxruntime": machine()["versions"]["onnxruntime"],
    }


def with_room(cell: dict[str, Any]) -> tuple[int, int, int]:
    """Return a chain of so many layers that the injected share is whole layers, of the size's total work or more."""
    channels, side, layers = SIZES[cell["size"]]
    step = round(1 / cell["injected"])
    return channels, side, step * max(1, round(layers / step))


class _hog:  # noqa: N801 - a context manager that reads like a function
    """Something that keeps one core busy for as long as it is open, if asked."""

    def __init__(self, wanted: bool) -> None:
        self.process = multiprocessing.Process(target=_burn, daemon=True) if wanted else None

    def __enter__(self) -> None:
        if self.process:
            self.process.start()

    def __exit__(self, *error: object) -> None:
        if self.process:
            self.process.terminate()


def _burn() -> None:
    while True:
        pass


def _name(row: dict[str, Any]) -> str:
    injected = f" {100 * row['injected']:+.0f} % at {100 * row['tolerance']:.0f} %" if row["injected"] else ""
    return f"{row['what']} {row['size']}, {row['threads']} thread(s){injected}"


def append(path: Path, row: dict[str, Any]) -> None:
    """Add a gate to a file as soon as it is done; what a stopped campaign left half written stays a line of its own."""
    cut_off = path.exists() and not path.read_bytes().endswith(b"\n")
    with path.open("a", encoding="utf-8") as file:
        file.write("\n" * cut_off + json.dumps(row) + "\n")


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Read the gates of a file; a last line that was cut off is left out."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return rows


def again(row: dict[str, Any], tolerance: float) -> str:
    """Judge a stored gate at some tolerance."""
    return str(judge(row["fastest"], row["medians"], Rule(tolerance)).verdict)


def replay(rows: Sequence[dict[str, Any]], tolerance: float, injected: float, count: int, seed: int) -> Counter[str]:
    """Judge gates made of session pairs that are drawn with replacement, whole, with a slow-down put into each."""
    pool = np.asarray([pair for row in rows for pair in zip(row["fastest"], row["medians"], strict=True)])
    rng, rule = np.random.default_rng(seed), Rule(tolerance)
    drawn = pool[rng.integers(len(pool), size=(count, max(rule.looks)))] + math.log1p(injected)
    return Counter(str(judge(list(row[:, 0]), list(row[:, 1]), rule).verdict) for row in drawn)


def report(paths: Iterable[Path]) -> None:
    """Print what the gates of all files say, a cell a row, as Markdown."""
    rows = [row for path in paths for row in read_rows(path)]
    found: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        found[_name(row)].append(row)
    print("| cell | gates | tolerance | fail | pass | improved | inconclusive | sd of θ | median s | longest s |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|")
    for name, group in found.items():
        for tolerance in TOLERANCES if not group[0]["injected"] else (group[0]["tolerance"],):
            counts = Counter(again(row, tolerance) for row in group)
            spread = float(np.std([row["theta"] for row in group], ddof=1)) if len(group) > 1 else math.nan
            seconds = [row["seconds"] for row in group]
            cells_ = [counts[key] for key in ("fail", "pass", "improved", "inconclusive")]
            print(
                f"| {name} | {len(group)} | {100 * tolerance:.0f} % | {' | '.join(map(str, cells_))} "
                f"| {100 * spread:.2f} % | {np.median(seconds):.1f} | {max(seconds):.1f} |"
            )
    print(f"\nReplays of whole session pairs, {REPLAYS} a row\n")
    print(
        "| cell | slow-down | tolerance | fail | pass | improved | inconclusive |\n|---|---:|---:|---:|---:|---:|---:|"
    )
    for name, group in found.items():
        if group[0]["what"] in ("aa", "hog"):
            for injected, tolerance in ((0.0, 0.05), (0.0, 0.02), *INJECTED):
                replayed = replay(group, tolerance, injected, REPLAYS, seed=1)
                shares = [replayed[key] / REPLAYS for key in ("fail", "pass", "improved", "inconclusive")]
                words = " | ".join(f"{100 * share:.2f} %" for share in shares)
                print(f"| {name} | {100 * injected:+.0f} % | {100 * tolerance:.0f} % | {words} |")


def operating_curve(tolerance: float, spread: float, slowdowns: Sequence[float], count: int = 400) -> list[float]:
    """Simulate the share of gates that fail, by true slow-down.

    Session pairs differ by a normal `spread` by their fastest calls, and by twice as much by their medians.
    """
    rng, rule = np.random.default_rng(0), Rule(tolerance)
    shares = []
    for slowdown in slowdowns:
        drawn = math.log1p(slowdown) + rng.normal(0, (spread, 2 * spread), (count, max(rule.looks), 2))
        shares.append(sum(judge(list(row[:, 0]), list(row[:, 1]), rule).verdict == "fail" for row in drawn) / count)
    return shares


def curve(path: Path, files: Iterable[Path] = ()) -> None:
    """Draw the simulated operating curves as an SVG, and what live gates of `files` did as dots on them."""
    slowdowns = [step / 400 for step in range(41)]
    drawn = ['<path d="M60 60V350H580" fill="none" stroke="#555"/>']
    drawn += [_text(60 + 52 * s, 370, f"{s} %") for s in range(0, 11, 2)]
    drawn += [_text(40, _height(share) + 4, f"{100 * share:.0f} %") for share in (0, 0.5, 0.95)]
    drawn.append(f'<path d="M60 {_height(0.95)}H580" stroke="#bbb" stroke-dasharray="2 2"/>')
    for tolerance, colour in _COLOURS.items():
        for spread, dash in _SPREADS.items():
            shares = operating_curve(tolerance, spread, slowdowns)
            points = " ".join(f"{_x(s):.1f},{_height(y):.1f}" for s, y in zip(slowdowns, shares, strict=True))
            style = f'fill="none" stroke="{colour}" stroke-width="2" stroke-dasharray="{dash}"'
            drawn.append(f'<polyline {style} points="{points}"/>')
    rows = [row for file in files for row in read_rows(file) if row["what"] != "hog"]
    for (injected, tolerance), verdicts in sorted(_verdicts(rows).items()):
        share = sum(one == "fail" for one in verdicts) / len(verdicts)
        place = f'cx="{_x(injected):.1f}" cy="{_height(share):.1f}"'
        label = f"{100 * injected:+.0f} % at {100 * tolerance:.0f} %: {100 * share:.1f} % of {len(verdicts)} failed"
        drawn.append(f'<circle {place} r="5" fill="{_COLOURS[tolerance]}"><title>{label}</title></circle>')
    drawn += [
        _text(320, 395, "true slow-down"),
        _text(320, 22, "share of gates that fail: blue at a tolerance of 5 %, red of 2 %; dots are live gates"),
        _text(320, 40, "simulated for session pairs that differ by 0.2 % (solid), 0.5 % (dashed), 1 % (dotted)"),
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 620 410" font-family="sans-serif" font-size="12">\n'
        '<rect width="620" height="410" fill="white"/>\n' + "\n".join(drawn) + "\n</svg>\n",
        encoding="utf-8",
    )


_COLOURS = {0.05: "#1f6feb", 0.02: "#d1495b"}
_SPREADS = {0.002: "", 0.005: "6 3", 0.01: "2 3"}


def _x(slowdown: float) -> float:
    return 60 + 5200 * slowdown


def _height(share: float) -> float:
    return 350 - 290 * share


def _text(x: float, y: float, text: str) -> str:
    return f'<text x="{x:.0f}" y="{y:.1f}" text-anchor="middle">{text}</text>'


def _verdicts(rows: Iterable[dict[str, Any]]) -> dict[tuple[float, float], list[str]]:
    """Collect verdicts by what was injected and the tolerance; a file against itself is judged at every tolerance."""
    found = defaultdict(list)
    for row in rows:
        for tolerance in (row["tolerance"],) if row["injected"] else TOLERANCES:
            found[row["injected"], tolerance].append(again(row, tolerance))
    return found


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    running = verbs.add_parser("live")
    running.add_argument("out", type=Path)
    running.add_argument("--what", choices=("aa", "spin", "graph", "hog"), required=True)
    running.add_argument("--gates", type=int, required=True)
    running.add_argument("--size", choices=tuple(SIZES), action="append", help="all when left out")
    verbs.add_parser("report").add_argument("files", type=Path, nargs="+")
    drawing = verbs.add_parser("curve")
    drawing.add_argument("out", type=Path)
    drawing.add_argument("files", type=Path, nargs="*")
    words = parser.parse_args()
    if words.verb == "live":
        live(words.out, words.what, words.gates, words.size)
    elif words.verb == "report":
        report(words.files)
    else:
        curve(words.out, words.files)


if __name__ == "__main__":
    main()
