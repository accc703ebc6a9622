"""Quantisers side by side: the same float32 files and calibration rows, ours and theirs, timed in turns.

    python -m distill.versus.quantize make CASES --run resnet20=RUN --run depthwise=RUN@03-student
    python -m distill.versus.quantize run CASES results.jsonl --peer onnxruntime=python --peer nncf=nncf/bin/python …
    python -m distill.versus.quantize report results.jsonl

Each tool is a Python of its own that has it installed. What a tool has written already is not made again, and a case
that stands in the results is left out, so that a stopped campaign goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from distill.benchmarks import Options, bench, resolve_target, units
from distill.benchmarks.timing.jobs import Timing
from distill.export.parity_check import run_onnx
from distill.export.stripping import to_bytes
from distill.intervals import Estimate, paired_drop
from distill.quantize.choose_precision import choose
from distill.quantize.repair_loop import Loss
from distill.quantize.sensitivity import divergence
from distill.quantize.settings import QuantizeSettings
from distill.types import Array, Feed
from distill.versus.gate import append, read_rows

from . import quantize_cases, quantize_peer

OURS = "distill"
FLOAT = "float32"
_BATCHES = (1, 32)
_STEP = 32
_BUDGET = 0.005
_PEER_SECONDS = 1800


def read_part(folder: Path, part: str) -> tuple[list[Feed], Array | None]:
    """Read rows in batches, and their labels."""
    with np.load(folder / f"{part}.npz") as stored:
        rows = {name: stored[name] for name in stored.files}
    labels = rows.pop("labels", None)
    count = len(next(iter(rows.values())))
    return [{name: value[i : i + _STEP] for name, value in rows.items()} for i in range(0, count, _STEP)], labels


def ours(folder: Path) -> None:
    """Quantise as the verb does: one file for all batch sizes that keeps half a point of the validation rows."""
    core = onnx.load(str(folder / "model.onnx"))
    calibration, _ = read_part(folder, "calibration")
    rows, labels = read_part(folder, "validation")
    judged = json.loads((folder / "case.json").read_text(encoding="utf-8"))["judged"]
    reference = run_onnx(core, rows)
    target = resolve_target(None, threads=1, batch_sizes=_BATCHES)

    def judge(model: onnx.ModelProto) -> Loss:
        answers = run_onnx(model, rows)
        before, after = reference.argmax(1), answers.argmax(1)
        far = divergence(reference, answers)
        if judged == "noise":  # answers of random weights have no meaning that could change
            return Loss(0.0 if np.isfinite(far) else 1.0, far)
        drop = (after != before).mean() if labels is None else (before == labels).mean() - (after == labels).mean()
        return Loss(float(drop), far)

    def measure(models: Sequence[onnx.ModelProto]) -> list[list[Estimate]]:
        with tempfile.TemporaryDirectory(prefix="distill-versus-") as place:
            paths = [Path(place, f"{number}.onnx") for number in range(len(models))]
            for path, model in zip(paths, models, strict=True):
                path.write_bytes(to_bytes(model))
            timed = bench(paths, Options(target=target, batches=_BATCHES, rows=rows[0]))
        sizes = zip(*(case.rows for case in timed.cases), strict=True)
        return [[row.ratio or Estimate(1.0, 1.0, 1.0) for row in of_model] for of_model in sizes]

    choice = choose(
        core,
        QuantizeSettings(),
        target=target,
        calibration=calibration,
        rows=rows,
        judge=judge,
        measure=measure,
        max_drop=_BUDGET,
    )
    (folder / f"{OURS}.onnx").write_bytes(to_bytes(choice.chosen.model))
    record = {"chosen": choice.chosen.name, "why": choice.why, "tried": [one.name for one in choice.attempts]}
    (folder / f"{OURS}.json").write_text(json.dumps(record) + "\n", encoding="utf-8")


def quantized(folder: Path, tool: str, python: str) -> str | None:
    """Have a tool write its file beside the case's; returns why it has not."""
    out, failed = folder / f"{tool}.onnx", folder / f"{tool}.failed"
    if out.exists():
        return None
    if failed.exists():
        return failed.read_text(encoding="utf-8").strip()
    begun = time.perf_counter()
    if tool == OURS:
        ours(folder)
        why = ""
    else:
        command = [python, quantize_peer.__file__, tool, "model.onnx", "calibration.npz", out.name]
        try:
            done = subprocess.run(
                command, cwd=folder, capture_output=True, text=True, check=False, timeout=_PEER_SECONDS
            )
            lines = [line for line in done.stderr.strip().splitlines() if line.strip()]
            why = "" if done.returncode == 0 and out.exists() else (lines or [f"exit {done.returncode}"])[-1]
        except subprocess.TimeoutExpired:
            why = f"took more than {_PEER_SECONDS} s"
    if why:
        out.unlink(missing_ok=True)
        failed.write_text(why + "\n", encoding="utf-8")
    else:
        out.with_suffix(".seconds").write_text(f"{time.perf_counter() - begun:.1f}\n", encoding="utf-8")
    return why or None


def judged_rows(folder: Path, tools: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Judge each tool's file on the test rows; those that do not run say so under `error`."""
    rows, labels = read_part(folder, "test")
    reference = run_onnx(onnx.load(str(folder / "model.onnx")), rows)
    truth = reference.argmax(1) if labels is None else labels
    found: dict[str, dict[str, Any]] = {}
    right: dict[str, Array] = {}
    for tool in tools:
        path = folder / ("model.onnx" if tool == FLOAT else f"{tool}.onnx")
        try:
            answers = run_onnx(onnx.load(str(path)), rows)
        except Exception as error:  # whatever a peer's file does to the runtime belongs into the table
            found[tool] = {"error": f"does not run: {str(error).splitlines()[0]}"}
            continue
        right[tool] = answers.argmax(1) == truth
        noise = float(((reference - answers) ** 2).sum())
        found[tool] = {
            "right": float(right[tool].mean()),
            "sqnr_db": None if noise == 0 else 10 * float(np.log10(float((reference**2).sum()) / noise)),
        }
    for tool, hits in right.items():
        mine = right[OURS]
        drop = paired_drop(int((hits & ~mine).sum()), int((~hits & mine).sum()), len(truth))
        found[tool] |= {"ours_behind": [drop.value, drop.low, drop.high], "n": len(truth)}
    return found


def measured(folder: Path, tools: Sequence[str], found: dict[str, dict[str, Any]], timing: Timing) -> dict[str, Any]:
    """Time what runs, all in turns, and add what came of it to ``found``; returns the machine."""
    running = [tool for tool in tools if "error" not in found[tool]]
    rows, _ = read_part(folder, "test")
    paths = [folder / ("model.onnx" if tool == FLOAT else f"{tool}.onnx") for tool in running]
    report = bench(
        paths, Options(target=resolve_target(None, threads=1), batches=_BATCHES, timing=timing, rows=rows[0])
    )
    for place, tool in enumerate(running):
        model = report.models[place]
        found[tool] |= {
            "bytes": model.facts.bytes,
            "integer_share": model.integer_share,
            "nodes": model.nodes,
            "compute": model.compute_nodes,
        }
        for case in report.cases:
            ratio = case.rows[place].ratio
            found[tool][f"p50_s@{case.batch}"] = case.rows[place].p50_s
            found[tool][f"ratio@{case.batch}"] = None if ratio is None else [ratio.value, ratio.low, ratio.high]
    # Of those that are as fast as ours the interval of the direct comparison counts, so ours is the first once more.
    others = [tool for tool in running if tool != OURS]
    order = [paths[running.index(tool)] for tool in (OURS, *others)]
    again = bench(order, Options(target=resolve_target(None, threads=1), batches=_BATCHES, timing=timing, rows=rows[0]))
    for case in again.cases:
        for tool, row in zip(others, case.rows[1:], strict=True):
            if row.ratio is not None:
                found[tool][f"over_ours@{case.batch}"] = [row.ratio.value, row.ratio.low, row.ratio.high]
    return report.machine


def run(root: Path, results: Path, peers: Mapping[str, str], names: Sequence[str], timing: Timing) -> None:
    """Quantise, judge and time every case that the results lack."""
    done = {row["case"] for row in read_rows(results)}
    for folder in sorted(path.parent for path in root.glob("*/case.json")):
        if folder.name in done or (names and folder.name not in names):
            continue
        tools, failed = [FLOAT], {}
        for tool, python in {OURS: sys.executable, **peers}.items():
            why = quantized(folder, tool, python)
            if why is None:
                tools.append(tool)
            else:
                failed[tool] = {"error": why}
            print(f"{folder.name}: {tool}: {why or 'quantised'}", flush=True)
        found = judged_rows(folder, tools)
        machine = measured(folder, tools, found, timing)
        for tool in [*tools, *failed]:
            path = folder / f"{tool}.seconds"
            found.setdefault(tool, failed.get(tool, {}))
            found[tool]["seconds"] = float(path.read_text(encoding="utf-8")) if path.exists() else None
        row = {
            "case": folder.name,
            "judged": json.loads((folder / "case.json").read_text(encoding="utf-8"))["judged"],
            "tools": found,
            "ours": json.loads((folder / f"{OURS}.json").read_text(encoding="utf-8")),
            "batches": _BATCHES,
            "machine": machine,
            "pairs": timing.pairs,
        }
        append(results, row)
        print(table(row), flush=True)


def table(row: Mapping[str, Any]) -> str:
    """Lay out a case in Markdown."""
    judged = {"accuracy": "accuracy", "agreement": "agreement", "noise": "SQNR"}[row["judged"]]
    batches = batches_of(row)
    timed = " ".join(f"batch {batch} | speed-up |" for batch in batches)
    lines = [
        f"**{row['case']}** on {row['machine']['cpu']}",
        "",
        f"| tool | {timed} {judged} | size | integer |",
        "| :-- |" + " --: |" * (2 * len(batches) + 3),
    ]
    for tool, one in row["tools"].items():
        if "error" in one:
            lines.append(f"| {tool} | {one['error'][:80]} |" + " |" * (2 * len(batches) + 2))
            continue
        cells = []
        for batch in batches:
            cells += [units.duration(one[f"p50_s@{batch}"]), _speed(one.get(f"ratio@{batch}"))]
        if row["judged"] == "noise":
            cells.append("" if one["sqnr_db"] is None else f"{one['sqnr_db']:.1f} dB")
        else:
            cells.append(f"{100 * one['right']:.2f} %")
        cells += [units.size(one["bytes"]), units.share(one["integer_share"])]
        lines.append(f"| {tool} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def batches_of(row: Mapping[str, Any]) -> Sequence[int]:
    """Return the batch sizes of a row; those of the first campaign are not written in it."""
    return row.get("batches", (1, 8))  # type: ignore[no-any-return]


def _speed(ratio: Sequence[float] | None) -> str:
    if ratio is None:
        return ""
    value, low, high = ratio
    return f"{1 / value:.2f}× [{1 / high:.2f}, {1 / low:.2f}]"


def behind(row: Mapping[str, Any]) -> list[str]:
    """Say where a tool is surely faster than ours, or may be more accurate by more than 0.3 points."""
    said = []
    for tool, one in row["tools"].items():
        if tool.startswith(OURS) or tool == FLOAT or "error" in one:
            continue
        for batch in batches_of(row):
            over = one.get(f"over_ours@{batch}")
            if over is not None and over[2] < 1:
                said.append(f"{row['case']}, batch {batch}: {tool} takes {over[0]:.3f} of our time")
        lost = one.get("ours_behind")
        if row["judged"] != "noise" and lost is not None and lost[2] > 0.003:
            said.append(f"{row['case']}: {tool} may be {100 * lost[2]:.2f} points more accurate ({100 * lost[0]:+.2f})")
    return said


def _pair(text: str) -> tuple[str, str]:
    name, _, value = text.partition("=")
    if not name or not value:
        raise argparse.ArgumentTypeError(f"{text}: is NAME=VALUE")
    return name, value


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m distill.versus.quantize", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    made = verbs.add_parser("make", help="write the cases")
    made.add_argument("cases", type=Path)
    made.add_argument("--run", type=_pair, action="append", default=[], help="NAME=FOLDER[@STAGE] of a finished run")
    made.add_argument("--only-runs", action="store_true", help="leave the built-in cases out")
    ran = verbs.add_parser("run", help="quantise, judge and time")
    ran.add_argument("cases", type=Path)
    ran.add_argument("results", type=Path)
    ran.add_argument("--peer", type=_pair, action="append", default=[], help=f"of {', '.join(quantize_peer.TOOLS)}")
    ran.add_argument("--case", action="append", default=[], help="only this one")
    ran.add_argument("--pairs", type=int, default=6)
    shown = verbs.add_parser("report", help="print the tables")
    shown.add_argument("results", type=Path)
    given = parser.parse_args()
    if given.verb == "make":
        for name, where in given.run:
            folder, _, stage = where.partition("@")
            if not (given.cases / name).exists():
                quantize_cases.from_run(given.cases / name, Path(folder), stage or "01-teacher")
        for folder in () if given.only_runs else quantize_cases.built_in(given.cases):
            print(folder, flush=True)
    elif given.verb == "run":
        run(given.cases, given.results, dict(given.peer), given.case, Timing(pairs=given.pairs))
    else:
        rows = read_rows(given.results)
        print("\n".join(table(row) for row in rows))
        print("\n".join(line for row in rows for line in behind(row)))


if __name__ == "__main__":
    main()
