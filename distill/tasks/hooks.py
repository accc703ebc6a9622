"""What the user's function returned, or stands in for: data and hooks, keys of a dict or attributes of an object."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from distill.errors import UserError
from distill.references.functions import call_user
from distill.tasks.base import SPLITS, Batch, Facts, Inputs
from distill.tasks.metrics import accuracy, f1, positive_number
from distill.tasks.outputs import checked_logits, cross_entropy, plain_logits
from distill.types import Array
from distill.wording import did_you_mean

HOOK_KEYS = ("inputs", "target", "logits", "loss", "metrics")
KEYS = (*SPLITS, *HOOK_KEYS, "collate", "labels", "metric", "preprocess", "facts", "open_axes")

Where = Callable[[int], str]
"""Names a sample of a batch, by its place in it."""


class Hooks:
    """Reads the user's keys or attributes, and calls their hooks, or what stands in for them, with checks around them.

    ``labels`` are () until they are known.

    Raises:
        UserError: what the function returned has unknown keys, no train data, or something of a wrong type.
    """

    def __init__(self, data: Any, source: str) -> None:
        self.source = source
        if isinstance(data, Mapping):
            for key in data:
                if key not in KEYS:
                    raise UserError(f"{source} returned the key {key!r}{did_you_mean(str(key), KEYS)}")
            self._values = dict(data)
        elif isinstance(data, Dataset | DataLoader | nn.Module | tuple | list | None):
            raise UserError(
                f"{source} returned a {type(data).__name__}; expected a dict such as {{'train': data, 'test': data}}"
            )
        else:
            self._values = {key: getattr(data, key) for key in KEYS if getattr(data, key, None) is not None}
        if self._values.get("train") is None:
            keys = ", ".join(map(str, self._values)) or "nothing"
            raise UserError(f"{source} returned no 'train'; it has {keys}. Return at least {{'train': data}}")
        for key in (*HOOK_KEYS, "collate"):
            if not (self.get(key) is None or callable(self.get(key))):
                raise UserError(f"{source}: {key} is a {type(self.get(key)).__name__}; expected a function")
        self.preprocess: nn.Module | None = self.get("preprocess")
        if not isinstance(self.preprocess, nn.Module | None):
            raise UserError(
                f"{source}: preprocess is a {type(self.preprocess).__name__}; expected an nn.Module, so that it can be "
                "exported with the model"
            )
        self.labels = self._labels()

    def get(self, key: str) -> Any:
        """Return what the user gave under ``key``, or None."""
        return self._values.get(key)

    def _labels(self) -> tuple[str, ...]:
        names = self.get("labels")
        if names is None:
            return ()
        if isinstance(names, str | int) or not hasattr(names, "__iter__"):
            raise UserError(f"{self.source}: labels={names!r}; expected a list of names, one a class")
        labels = tuple(str(name) for name in names)
        if len(labels) < 2 or len(set(labels)) != len(labels):
            raise UserError(f"{self.source}: labels={list(labels)}; expected at least two different names")
        return labels

    def facts(self) -> Facts:
        """Return what the user tells model factories."""
        facts = self.get("facts")
        if facts is not None and not isinstance(facts, Mapping):
            raise UserError(f"{self.source}: facts is a {type(facts).__name__}; expected a dict")
        return dict(facts or {})

    def inputs(self, batch: Batch) -> Inputs:
        """Return the model's tensors: by the user's hook, or all parts of the batch but its last."""
        return _as_inputs(self._call("inputs", _first_parts, batch))

    def target(self, batch: Batch, sample_name: Where = "sample {} of the batch".format) -> Tensor:
        """Return the class numbers, int64 [B]: by the user's hook, or the last part of the batch.

        ``sample_name(i)`` names sample i in messages; without ``labels`` any number from 0 will do.
        """
        target = self._call("target", lambda batch: _parts(batch)[-1], batch)
        return _as_target(target, len(self.labels), sample_name)

    def logits(self, output: Any) -> Tensor:
        """Return the logits [B, classes]: by the user's hook, or the tensor itself, or its ``logits``."""
        return checked_logits(self._call("logits", plain_logits, output), len(self.labels))

    def loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the user's loss, a scalar, or the mean cross entropy."""
        value = self._call("loss", cross_entropy, logits, target)
        if not isinstance(value, Tensor) or value.numel() != 1:
            raise UserError(f"loss returned {_kind(value)}; expected a scalar tensor")
        return value.reshape(())

    def metrics(self, logits: Array, target: Array) -> dict[str, float]:
        """Return the user's metrics, or accuracy and f1 (macro; of two classes that of the last)."""
        values = self._call("metrics", self._accuracy_and_f1, logits, target)
        try:
            return {str(name): float(value) for name, value in dict(values).items()}
        except (TypeError, ValueError):
            raise UserError(f"metrics returned {_kind(values)}; expected a dict of names and numbers") from None

    def _accuracy_and_f1(self, logits: Array, target: Array) -> dict[str, float]:
        positive = positive_number(None, self.labels)
        return {"accuracy": accuracy(logits, target), "f1": f1(logits, target, positive=positive)}

    def _call(self, key: str, default: Callable[..., Any], *args: Any) -> Any:
        hook = self.get(key)
        return call_user(hook, key, *args) if hook else default(*args)


def as_function(data: Any) -> tuple[Callable[..., Any], str]:
    """Return a function that returns the data as ``data.source`` does, and a name for them.

    Args:
        data: arrays such as (x, y), a data set, a DataLoader, a triple of these (train, validation, test), a mapping of
            these by split, with hooks beside them if need be, or a function that returns such a mapping.
    """
    if callable(data):
        return data, getattr(data, "__name__", type(data).__name__)
    splits = _splits(data)
    train = splits.get("train") if isinstance(splits, Mapping) else splits
    train = train.dataset if isinstance(train, DataLoader) else train
    return lambda: splits, "arrays" if isinstance(train, tuple | Mapping) else type(train).__name__


def _splits(data: Any) -> Any:
    if isinstance(data, Mapping):
        return data
    if (
        isinstance(data, tuple | list)
        and data
        and all(isinstance(part, tuple | Mapping | Dataset | DataLoader) for part in data)
    ):
        if len(data) != len(SPLITS):
            raise UserError(
                f"data: is {len(data)} data sets; give {', '.join(SPLITS)}, or a mapping such as {{'train': data}}"
            )
        return dict(zip(SPLITS, data, strict=True))
    if isinstance(data, tuple | Dataset | DataLoader) or not hasattr(data, "train"):
        return {"train": tuple(data) if isinstance(data, list) else data}
    return data


def _parts(batch: Batch) -> tuple[Any, ...]:
    if isinstance(batch, tuple | list) and len(batch) >= 2:
        return tuple(batch)
    content = f"with the keys {', '.join(map(str, batch))}" if isinstance(batch, Mapping) else "of one part"
    raise UserError(
        f"a batch is a {type(batch).__name__} {content}; expected (x, y), or the hooks inputs(batch) and target(batch)"
    )


def _first_parts(batch: Batch) -> Any:
    parts = _parts(batch)
    return parts[0] if len(parts) == 2 else parts[:-1]


def _as_inputs(inputs: Any) -> Inputs:
    """Take a tensor, a tuple of tensors, a dict of tensors, or (args, kwargs)."""
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = {}
    match inputs:
        case Mapping():
            kwargs = dict(inputs)
        case (tuple() | list() as first, Mapping() as second):
            args, kwargs = tuple(first), dict(second)
        case tuple() | list():
            args = tuple(inputs)
        case _:
            args = (inputs,)
    for name, value in named_inputs(args, kwargs):
        if not isinstance(value, Tensor):
            raise UserError(f"{name} of the model is {_kind(value)}; inputs(batch) returns tensors: args, kwargs")
    if not args and not kwargs:
        raise UserError("inputs(batch) returned no tensors; expected args, kwargs")
    return args, kwargs


def named_inputs(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Return a model's arguments with a name for messages each."""
    return [*((f"input {number}", value) for number, value in enumerate(args)), *kwargs.items()]


def _as_target(target: Any, classes: int, sample_name: Where) -> Tensor:
    if not isinstance(target, Tensor):
        raise UserError(f"the target is {_kind(target)}; expected a tensor of class numbers, one a sample")
    if target.ndim != 1:
        raise UserError(
            f"the target is {_kind(target)}; expected one class number a sample, shape [batch]"
            + ("; use y.squeeze(1)" if target.ndim == 2 and target.shape[1] == 1 else "")
        )
    if target.is_floating_point() or target.is_complex():
        whole = not target.is_complex() and bool((target == target.round()).all())
        mend = (
            "such as y.long()"
            if whole
            else ("one a class; these are numbers to predict, which `prune` and `quantize` take, but no run")
        )
        raise UserError(f"the target is of type {target.dtype}; expected whole numbers from 0, {mend}")
    numbers = target.long()
    wrong = (numbers < 0) | (numbers >= classes) if classes else numbers < 0
    if bool(wrong.any()):
        place = int(wrong.nonzero()[0])
        limit = f"0 to {classes - 1}" if classes else "0 or more"
        raise UserError(
            f"{sample_name(place)}: labels out of range: the target is {int(numbers[place])}, expected {limit}; "
            "mend the sample or `labels`"
        )
    return numbers


def _kind(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {list(value.shape)}"
    return f"a {type(value).__name__}"
