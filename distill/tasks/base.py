"""What the pipeline needs to know about a task, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from torch import Tensor, nn

from distill.export.preprocess import Preprocess
from distill.types import Array, Feed

Batch = Any
Inputs = tuple[tuple[Any, ...], dict[str, Any]]
"""Positional and keyword tensors of one call."""
OpenAxes = tuple[Mapping[int, str], ...]
Facts = Mapping[str, Any]
"""What a model factory may ask for by parameter name: ``classes``, ``channels``, ``features``, ``image_size``, or
whatever the user's own data tell it."""

SPLITS = ("train", "validation", "test")


class Data(Protocol):
    """One split: samples that are fetched by number, in any order, any number of times."""

    def __len__(self) -> int:
        """Count the samples."""

    def fetch(self, index: Tensor, view: int | None) -> Batch:
        """Collate the samples ``index`` (int64 [B]).

        ``view`` is a number that fixes the augmentation: the same view of the same sample is the same bytes, always,
        whatever else is in the batch. None is the sample as it is.
        """


class Trainable(Protocol):
    """What training needs to know about a task, or about samples that are no whole task."""

    @property
    def labels(self) -> tuple[str, ...]:
        """Return one name a class, in the order of the logits; none where logits may have any shape."""

    @property
    def metric(self) -> str:
        """Return the metric that a budget is stated in; higher is better."""

    @property
    def data(self) -> Mapping[str, Data]:
        """Return ``train``, and ``validation`` where epochs are to be scored."""

    @property
    def module_preprocess(self) -> nn.Module | None:
        """Return preprocessing of the user's own, called on what ``inputs`` returned and exported with the model."""

    def inputs(self, batch: Batch) -> Inputs:
        """Return the positional and keyword tensors that the model is called with."""

    def target(self, batch: Batch) -> Tensor:
        """Return the class numbers, int64 [B]."""

    def logits(self, output: Any) -> Tensor:
        """Return the logits, [B, classes], out of whatever the model returned."""

    def loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the hard-label loss, a scalar."""

    def metrics(self, logits: Array, target: Array) -> dict[str, float]:
        """Return each metric of float32 logits [N, classes] and int64 targets [N], as fractions; higher is better."""


class Task(Trainable, Protocol):
    """A task gives data, metrics, loss and the way from a batch to the model's inputs and from its output to logits."""

    name: str
    kind: str
    """``image``, ``tabular`` or ``custom``."""
    data: dict[str, Data]
    """``train``, ``validation``, ``test``."""
    facts: Facts
    graph_preprocess: Preprocess | None
    """From the shipped file's raw inputs to the model's float input, written as ONNX nodes."""
    open_axes: OpenAxes
    """For each input tensor, positional ones first, its axes of any length beside the batch, with their names.

    () where all samples have one shape.
    """
    given_splits: tuple[str, ...]
    """The splits that the data came with; the others are cut by us."""
    warnings: tuple[str, ...]

    def raw(self, batch: Batch) -> Feed | None:
        """Return what the shipped file is fed with for this batch; None when that is what ``inputs`` returns."""

    def fingerprint(self) -> str:
        """Return a hash of the data and of everything else that decides what training sees."""
