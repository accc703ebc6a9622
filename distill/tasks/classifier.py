"""What classification tasks have in common whose samples are held as tensors."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Generic, TypeVar

from torch import Tensor, nn

from distill.export.preprocess import Preprocess
from distill.references.digest import Digest
from distill.tasks import metrics
from distill.tasks.base import Data, Facts, OpenAxes
from distill.tasks.outputs import checked_logits, cross_entropy, plain_logits
from distill.tasks.settings import BreastCancerSettings, CsvSettings, ImageSettings
from distill.types import Array

Split = TypeVar("Split", bound=Data)
Graph = TypeVar("Graph", bound=Preprocess)


class Classifier(Generic[Split, Graph]):
    """Labels, logits, loss and metrics of a task whose batches end with class numbers, int64 [B].

    ``own`` are the splits that the data came with; train alone is none.
    """

    available: tuple[str, ...] = ("accuracy", "f1")
    """The metrics that the task has."""

    def __init__(
        self,
        name: str,
        splits: Mapping[str, Split],
        labels: Sequence[str],
        preprocess: Graph,
        facts: Facts,
        settings: ImageSettings | BreastCancerSettings | CsvSettings,
        *,
        own: Collection[str] = (),
        warnings: Sequence[str] = (),
    ) -> None:
        self.name = name
        self.labels = tuple(labels)
        self.data: dict[str, Data] = dict(splits)
        self.facts: Facts = {"classes": len(labels), **facts}
        self.given_splits = tuple(own) if len(own) > 1 else ()
        self.graph_preprocess: Preprocess | None = preprocess
        self.module_preprocess: nn.Module | None = None
        self.open_axes: OpenAxes = ()
        self.warnings = tuple(warnings)
        self.metric = metrics.chosen_metric(settings.metric, self.available)
        self._positive = metrics.positive_number(settings.positive, labels)
        self._splits = dict(splits)
        self._preprocess = preprocess
        self._fingerprint: str | None = None

    def target(self, batch: tuple[Tensor, ...]) -> Tensor:
        """Return the class numbers, int64 [B]."""
        return batch[1]

    def logits(self, output: Any) -> Tensor:
        """Return the logits, [B, classes]; UserError if the model returned something else."""
        return checked_logits(plain_logits(output), len(self.labels))

    def loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the mean cross entropy."""
        return cross_entropy(logits, target)

    def metrics(self, logits: Array, target: Array) -> dict[str, float]:
        """Return the ``available`` metrics: accuracy, f1 (macro beyond two classes), auroc (one-vs-rest beyond two).

        auroc is NaN where the targets hold one class only.
        """
        values = {
            "accuracy": lambda: metrics.accuracy(logits, target),
            "f1": lambda: metrics.f1(logits, target, positive=self._positive),
            "auroc": lambda: metrics.auroc(logits, target, positive=self._positive),
        }
        return {name: values[name]() for name in self.available}

    def fingerprint(self) -> str:
        """Return a hash of the data, the splits, the preprocessing, the augmentation, the classes and the metric."""
        if self._fingerprint is None:
            self._fingerprint = self._hash(Digest().add([self.labels, self.metric, self._positive])).hexdigest()
        return self._fingerprint

    def _hash(self, digest: Digest) -> Digest:
        """Add everything that is particular to the family."""
        raise NotImplementedError
