"""What a cut leaves of a network before any training, by importance, and of torch-pruning's cut by weights.

    python -m distill.versus.damage results.jsonl --seeds 0 1 2
    python -m distill.versus.damage results.jsonl --report

Small networks of three kinds are trained on scikit-learn's handwritten digits (1,200 rows), cut to a share of their
multiply-accumulates, and compared with themselves on the other 597 rows: by accuracy, and by the distillation loss
between them. Batch-norm statistics are taken anew, weights are not trained again. Needs transformers. What stands in
the results is left out, so that a stopped campaign goes on where it was.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional

from distill.distillation.losses import soft_targets
from distill.errors import UserError
from distill.prune import PruneSettings, count, prune_channels, recalibrate
from distill.versus.gate import append, read_rows

from .networks import mobilenet_v2
from .pruning import uniform

PEER = "torch-pruning"
WAYS = (PEER, "random", "group_norm", "taylor", "hessian", "gauss_newton")
_TRAINED_ON, _BATCH = 1200, 32
_TEMPERATURE, _WEIGHT = 4.0, 0.9


@dataclass(frozen=True, kw_only=True)
class Network:
    """How one is made, what it is given of the pixels [N, 8, 8] in 0..16, and how long it learns."""

    make: Callable[[], nn.Module]
    given: Callable[[Tensor], Tensor]
    epochs: int
    rate: float
    peer: bool = True


def _mlp() -> nn.Module:
    widths = (64, 256, 256, 128)
    layers = [layer for pair in pairwise(widths) for layer in (nn.Linear(*pair), nn.ReLU())]
    return nn.Sequential(*layers, nn.Linear(128, 10))


def _bert() -> nn.Module:
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        vocab_size=17,
        hidden_size=64,
        num_hidden_layers=4,
        num_attention_heads=8,
        intermediate_size=256,
        max_position_embeddings=64,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    config.num_labels = 10
    return BertForSequenceClassification(config)


def _images(pixels: Tensor) -> Tensor:
    return functional.interpolate(pixels[:, None] / 16, scale_factor=4).expand(-1, 3, -1, -1).contiguous()


NETWORKS = {
    "MLP": Network(make=_mlp, given=lambda pixels: pixels.flatten(1) / 16, epochs=30, rate=1e-3),
    "MobileNetV2": Network(make=lambda: mobilenet_v2(10), given=_images, epochs=12, rate=2e-3),
    # torch-pruning's defaults leave BERT's heads alone.
    "BERT": Network(make=_bert, given=lambda pixels: pixels.long().flatten(1), epochs=40, rate=1e-3, peer=False),
}


def main() -> None:
    """Read the command line and run what is not in the results yet."""
    parser = argparse.ArgumentParser(prog="python -m distill.versus.damage", description=__doc__)
    parser.add_argument("results", type=Path)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--shares", type=float, nargs="+", default=[0.7, 0.5], help="of the MACs, that stay")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--report", action="store_true", help="print the table of what was found")
    words = parser.parse_args()
    if words.report:
        print(report(read_rows(words.results)))
        return
    torch.set_num_threads(words.threads)
    rows = read_rows(words.results) if words.results.is_file() else []
    done = {(row["network"], row["share"], row["seed"], row["way"]) for row in rows}
    for name in words.networks:
        ways = [way for way in WAYS if way != PEER or NETWORKS[name].peer]
        for seed in words.seeds:
            left = [(s, w) for s in words.shares for w in ways if (name, s, seed, w) not in done]
            bench = Bench(NETWORKS[name], seed) if left else None
            for share, way in left:
                assert bench is not None
                row = {"network": name, "share": share, "seed": seed, "way": way} | bench.tried(way, share)
                append(words.results, row)
                print(row, flush=True)


class Bench:
    """A trained network and the rows to judge it by."""

    def __init__(self, network: Network, seed: int) -> None:
        self.seed = seed
        digits = load_digits()
        order = torch.randperm(len(digits.target), generator=torch.Generator().manual_seed(seed))
        inputs = network.given(torch.tensor(digits.images, dtype=torch.float32))[order]
        labels = torch.tensor(digits.target)[order]
        self.known, self.unseen = (
            list(zip(*(torch.split(part[rows], _BATCH) for part in (inputs, labels)), strict=True))
            for rows in (slice(_TRAINED_ON), slice(_TRAINED_ON, None))
        )
        self.labels = labels[_TRAINED_ON:]
        torch.manual_seed(seed)
        self.teacher = self._trained(network)
        self.answers = self._answered(self.teacher)

    def tried(self, way: str, share: float) -> dict[str, Any]:
        """Cut a copy of the network to a share of its MACs in one way, and compare it with the network."""
        example = self.known[0][0][:2]
        if way == PEER:
            narrow = uniform(copy.deepcopy(self.teacher), example, share)
        else:
            narrow, _ = prune_channels(
                self.teacher,
                PruneSettings(macs=share, importance=way, round_to=4, max_ratio=0.9),
                example=((example,), {}),
                batches=self.known,
                loss=self._loss,
                logits=_logits,
                seed=self.seed,
            )
        answers = self._answered(recalibrate(narrow, (((rows,), {}) for rows, _ in self.known)).eval())
        return {
            "macs": count(narrow, (example,), {}).macs / count(self.teacher, (example,), {}).macs,
            "teacher": self._accuracy(self.answers),
            "accuracy": self._accuracy(answers),
            "divergence": float(soft_targets(answers, self.answers, _TEMPERATURE)),
        }

    def _loss(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        rows, labels = batch
        with torch.no_grad():
            taught = _logits(self.teacher(rows))
        logits = _logits(model(rows))
        hard = functional.cross_entropy(logits, labels)
        return (1 - _WEIGHT) * hard + _WEIGHT * soft_targets(logits, taught, _TEMPERATURE)

    def _trained(self, network: Network) -> nn.Module:
        model = network.make().train()
        optimizer = torch.optim.AdamW(model.parameters(), network.rate, weight_decay=0.01)
        steps = network.epochs * _TRAINED_ON // 64
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, network.rate, total_steps=steps)
        rows, labels = (torch.cat(parts) for parts in zip(*self.known, strict=True))
        for _ in range(steps):
            some = torch.randint(_TRAINED_ON, (64,))
            optimizer.zero_grad()
            functional.cross_entropy(_logits(model(rows[some])), labels[some]).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
        return model.eval()

    @torch.no_grad()
    def _answered(self, model: nn.Module) -> Tensor:
        return torch.cat([_logits(model(rows)) for rows, _ in self.unseen])

    def _accuracy(self, answers: Tensor) -> float:
        return float((answers.argmax(1) == self.labels).float().mean())


def _logits(output: Any) -> Tensor:
    logits: Tensor = getattr(output, "logits", output)
    return logits


def report(rows: Sequence[dict[str, Any]]) -> str:
    """Return what was found as Markdown, means over the seeds."""
    if not rows:
        raise UserError("there are no results yet")
    cases = list(dict.fromkeys((row["network"], row["share"]) for row in rows))
    lines = [
        "| network | MACs left | unpruned | " + " | ".join(WAYS) + " |",
        "| :-- | --: | --: |" + " --: |" * len(WAYS),
    ]
    for network, share in cases:
        here = [row for row in rows if (row["network"], row["share"]) == (network, share)]
        cells = []
        for way in WAYS:
            found = [row for row in here if row["way"] == way]
            accuracy = mean(row["accuracy"] for row in found) if found else 0.0
            cells.append(f"{accuracy:.1%} ({mean(row['divergence'] for row in found):.2f})" if found else "–")
        lines.append(f"| {network} | {share:.0%} | {mean(row['teacher'] for row in here):.1%} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
