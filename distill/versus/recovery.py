"""What pruning costs in accuracy: ours, torch-pruning's, and a small dense student, distilled as long from one teacher.

    python -m distill run fashion-mnist --out runs/resnet20
    python -m distill.versus.recovery runs/resnet20 results.jsonl --epochs 10 --seeds 0 1 2
    python -m distill.versus.recovery runs/resnet20 results.jsonl --report

Every contender ends with equal multiply-accumulates, starts from the run's trained teacher (the dense student from
nothing), has equally many epochs in all on the same views of the same rows, and is judged on the test split, which
nothing was chosen by. What stands in the results is left out, so that a stopped campaign goes on where it was.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from distill.config.loading import load_config
from distill.distillation.losses import Kd
from distill.distillation.teachers import teacher_for
from distill.errors import UserError
from distill.models.resnet import BasicBlock, ResNet
from distill.prune import PruneSettings, count, prune_channels, recalibrate
from distill.prune.scores.importance import ImportanceName
from distill.runtime.artifacts import Recipe, example, load_model
from distill.tasks import load_task
from distill.tasks.base import Task
from distill.training.batches import shuffled
from distill.training.forward import predict
from distill.training.lesson import Lesson, batch_loss
from distill.training.loop import fit
from distill.training.settings import TrainSettings
from distill.versus.gate import append, read_rows

from .pruning import uniform

CPU = torch.device("cpu")
Start = tuple[nn.Module, int]
"""A model to be distilled, and how many of its epochs it has had on the way there."""

_TEMPERATURE, _WEIGHT, _VIEWS = 4.0, 0.9, 6
_BATCHES = 50
_RATE, _RATE_FROM_NOTHING = 0.05, 0.1


def main() -> None:
    """Read the command line and run what is not in the results yet."""
    parser = argparse.ArgumentParser(prog="python -m distill.versus.recovery", description=__doc__)
    parser.add_argument("run", type=Path, help="folder of a finished run of fashion-mnist")
    parser.add_argument("results", type=Path)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--shares", type=float, nargs="+", default=[0.5, 0.25], help="of the MACs, that stay")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--cache", type=Path, default=Path("cache"), help="folder for the teacher's logits")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--report", action="store_true", help="print the table of what was found")
    words = parser.parse_args()
    if words.report:
        print(report(read_rows(words.results)))
        return
    torch.set_num_threads(words.threads)
    rows = read_rows(words.results) if words.results.is_file() else []
    done = {(row["way"], row["share"], row["seed"], row["epochs"]) for row in rows}
    bench = Bench(words.run, words.cache)
    for share in words.shares:
        for seed in words.seeds:
            for way in words.ways:
                if (way, share, seed, words.epochs) not in done:
                    row = bench.tried(way, share, seed, words.epochs)
                    append(words.results, row)
                    print(row, flush=True)


class Bench:
    """The data, the teacher, and its answers to the views of the training rows."""

    def __init__(self, run: Path, cache: Path) -> None:
        config = load_config(json.loads((run / "run.json").read_text(encoding="utf-8"))["config"])
        for field, name in (("teacher.model", config.teacher.model), ("data.source", config.data.source)):
            if ":" in str(name):
                raise UserError(f"{run}: {field}={name!r}: a file never chooses code; give a run of what is built in")
        self.task: Task = load_task(config.data, seed=config.seed)
        recipe = Recipe(config.teacher.model, dict(config.teacher.args), "teacher", config.seed)
        self.teacher = load_model(run / "stages" / "01-teacher", self.task, recipe)
        cache.mkdir(parents=True, exist_ok=True)
        answers = teacher_for(self.teacher, self.task, views=_VIEWS, key="recovery", folder=cache, device=CPU)
        self.lesson = Lesson(answers, Kd(temperature=_TEMPERATURE, weight=_WEIGHT), _VIEWS)
        self.example = example(self.task)
        self.before = self.tested(self.teacher)

    def tested(self, model: nn.Module) -> np.ndarray[Any, Any]:
        """Return for each row of the test split whether the answer is right."""
        logits, target = predict(model, self.task, self.task.data["test"], CPU)
        return np.asarray(logits.argmax(axis=1) == target)

    def tried(self, way: str, share: float, seed: int, epochs: int) -> dict[str, Any]:
        """Make a model of ``share`` of the teacher's MACs in one way, distill it, and test it."""
        torch.manual_seed(seed)
        begun = time.perf_counter()
        start, spent = WAYS[way](self, share, seed)
        raw = self.tested(recalibrate(start, self.inputs(seed)))
        rate = _RATE_FROM_NOTHING if way == "dense" else _RATE
        model = self.distilled(start, epochs - spent, seed, rate)
        right = self.tested(model)
        drop = self.before.astype(float) - right
        return {
            "way": way,
            "share": share,
            "seed": seed,
            "epochs": epochs,
            "macs": count(model, *self.example).macs / count(self.teacher, *self.example).macs,
            "parameters": count(model, *self.example).parameters,
            "teacher": float(self.before.mean()),
            "before_training": float(raw.mean()),
            "accuracy": float(right.mean()),
            "drop": float(drop.mean()),
            "half_width": float(1.96 * drop.std(ddof=1) / len(drop) ** 0.5),
            "seconds": time.perf_counter() - begun,
        }

    def distilled(self, model: nn.Module, epochs: int, seed: int, rate: float) -> nn.Module:
        """Train a model on the teacher's soft logits and the labels."""
        settings = TrainSettings(epochs=epochs, learning_rate=rate)
        trained, _ = fit(model, self.task, settings, seed=seed, device=CPU, lesson=self.lesson)
        return trained

    def inputs(self, seed: int) -> list[Any]:
        """Return the model's own arguments for some training rows."""
        found = []
        for _, batch in shuffled(self.task.data["train"], 128, seed=seed, epoch=0, view=0):
            found.append(self.task.inputs(batch))
            if len(found) == _BATCHES:
                break
        return found


def ours(bench: Bench, share: float, seed: int, importance: ImportanceName = "gauss_newton") -> Start:
    """Prune by what the logits lose, or another importance; what is far goes in two steps."""
    steps = 1 if share >= 0.5 else 2
    batches = []
    for index, batch in shuffled(bench.task.data["train"], 128, seed=seed, epoch=0, view=0):
        batches.append((index, batch))
        if len(batches) == _BATCHES:
            break

    def loss(model: nn.Module, numbered: tuple[Tensor, Any]) -> Tensor:
        return batch_loss(model, bench.task, *numbered, CPU, lesson=bench.lesson)

    settings = PruneSettings(macs=share, importance=importance, round_to=2, max_ratio=0.8, steps=steps)
    narrow, _ = prune_channels(
        bench.teacher,
        settings,
        example=bench.example,
        batches=batches,
        loss=loss,
        logits=bench.task.logits,
        recover=lambda model, step: recalibrate(model, bench.inputs(seed)),
        seed=seed,
    )
    return narrow, 0


def torch_pruning(bench: Bench, share: float, seed: int) -> Start:
    """Let torch-pruning cut the teacher with its defaults."""
    model = copy.deepcopy(bench.teacher)
    return uniform(model, bench.example[0][0], share), 0


def dense(bench: Bench, share: float, seed: int) -> Start:
    """Build a narrower network of the teacher's kind, untrained."""
    blocks = list(Counter(m.conv1.out_channels for m in bench.teacher.modules() if isinstance(m, BasicBlock)).values())
    whole = count(bench.teacher, *bench.example).macs
    built = []
    for width in range(4, 17):
        torch.manual_seed(seed)
        model = ResNet(widths=[width, 2 * width, 4 * width], blocks=blocks, **_ends(bench.teacher))
        built.append((abs(count(model, *bench.example).macs / whole - share), width, model))
    return min(built, key=lambda one: one[:2])[2], 0


def _ends(teacher: nn.Module) -> dict[str, int]:
    """Return how many channels come in and how many classes go out."""
    layers = [module for module in teacher.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    first, last = layers[0], layers[-1]
    assert isinstance(first, nn.Conv2d)
    assert isinstance(last, nn.Linear)
    return {"channels": first.in_channels, "classes": last.out_features}


WAYS: dict[str, Callable[[Bench, float, int], Start]] = {
    "ours": ours,
    "ours-taylor": partial(ours, importance="taylor"),
    "torch-pruning": torch_pruning,
    "dense": dense,
}


def report(rows: Sequence[dict[str, Any]]) -> str:
    """Return what was found as Markdown; several seeds are averaged."""
    if not rows:
        raise UserError("there are no results yet")
    lines = ["| MACs | way | seeds | MACs left | untrained | accuracy | drop from the teacher | minutes |"]
    lines += ["| --: | :-- | --: | --: | --: | --: | --: | --: |"]
    for share in sorted({row["share"] for row in rows}, reverse=True):
        for way in WAYS:
            found = [row for row in rows if row["way"] == way and row["share"] == share]
            if not found:
                continue
            drops = [100 * row["drop"] for row in found]
            spread = f" ({min(drops):.2f} to {max(drops):.2f})" if len(found) > 1 else ""
            half = mean(100 * row["half_width"] for row in found)
            lines.append(
                f"| {1 / share:g}× fewer | {way} | {len(found)} | {mean(row['macs'] for row in found):.1%} "
                f"| {mean(row['before_training'] for row in found):.1%} "
                f"| {mean(row['accuracy'] for row in found):.2%} | {mean(drops):.2f} ±{half:.2f}{spread} "
                f"| {mean(row['seconds'] for row in found) / 60:.1f} |"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
