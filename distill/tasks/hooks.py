"""What the user's function returned: data and hooks, as keys of a dict or attributes of an object."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from distill.errors import UserError
from distill.references.loading import call_user
from distill.tasks.base import Batch, Inputs
from distill.tasks.outputs import checked_logits, plain_logits
from distill.wording import did_you_mean

SPLIT_KEYS = ("train", "validation", "test")
HOOK_KEYS = ("inputs", "target", "logits", "loss", "metrics")
KEYS = (*SPLIT_KEYS, *HOOK_KEYS, "collate", "labels", "metric", "preprocess", "facts", "open_axes")

Where = Callable[[int], str]


class Given:
    """Reads the user's keys or attributes, and calls their hooks with checks around them."""

    def __init__(self, made: Any, source: str) -> None:
        self.source = source
        if isinstance(made, Mapping):
            for key in made:
                if key not in KEYS:
                    raise UserError(f"{source} returned the key {key!r}{did_you_mean(str(key), KEYS)}")
            self._values = dict(made)
        elif isinstance(made, torch.utils.data.Dataset | torch.utils.data.DataLoader | nn.Module | tuple | list | None):
            raise UserError(
                f"{source} returned a {type(made).__name__}; expected a dict such as {{'train': data, 'test': data}}"
            )
        else:
            self._values = {key: getattr(made, key) for key in KEYS if getattr(made, key, None) is not None}
        if self._values.get("train") is None:
            keys = ", ".join(map(str, self._values)) or "nothing"
            raise UserError(f"{source} returned no 'train'; it has {keys}. Return at least {{'train': data}}")
        for key in (*HOOK_KEYS, "collate"):
            if not (self.get(key) is None or callable(self.get(key))):
                raise UserError(f"{source}: {key} is a {type(self.get(key)).__name__}; expected a function")
        preprocess = self.get("preprocess")
        if preprocess is not None and not isinstance(preprocess, nn.Module):
            raise UserError(
                f"{source}: preprocess is a {type(preprocess).__name__}; expected an nn.Module, so that it can be "
                "exported with the model"
            )

    def get(self, key: str) -> Any:
        """Return what the user gave under ``key``, or None."""
        return self._values.get(key)

    @property
    def preprocess(self) -> nn.Module | None:
        """The user's preprocessing module."""
        module: nn.Module | None = self.get("preprocess")
        return module

    def labels(self) -> tuple[str, ...] | None:
        """Return the class names, or None; UserError if there are fewer than two or one comes twice."""
        given = self.get("labels")
        if given is None:
            return None
        if isinstance(given, str | int) or not hasattr(given, "__iter__"):
            raise UserError(f"{self.source}: labels={given!r}; expected a list of names, one a class")
        labels = tuple(str(one) for one in given)
        if len(labels) < 2 or len(set(labels)) != len(labels):
            raise UserError(f"{self.source}: labels={list(labels)}; expected at least two different names")
        return labels

    def facts(self) -> dict[str, Any]:
        """Return what the user tells model factories."""
        given = self.get("facts")
        if given is not None and not isinstance(given, Mapping):
            raise UserError(f"{self.source}: facts is a {type(given).__name__}; expected a dict")
        return dict(given or {})

    def inputs(self, batch: Batch) -> Inputs:
        """Return the model's tensors: by the user's hook, or all parts of the batch but its last."""
        hook = self.get("inputs")
        return _as_inputs(call_user(hook, "inputs", batch) if hook else _first_parts(batch))

    def target(self, batch: Batch, classes: int | None, where: Where) -> Tensor:
        """Return the class numbers, int64 [B]: by the user's hook, or the last part of the batch.

        ``where(i)`` names sample i in messages; without ``classes`` any number from 0 will do.
        """
        hook = self.get("target")
        return _as_target(call_user(hook, "target", batch) if hook else _parts(batch)[-1], classes, where)

    def logits(self, output: Any, classes: int) -> Tensor:
        """Return the logits [B, classes]: by the user's hook, or the tensor itself, or its ``logits``."""
        hook = self.get("logits")
        return checked_logits(call_user(hook, "logits", output) if hook else plain_logits(output), classes)

    def loss(self, logits: Tensor, target: Tensor) -> Tensor | None:
        """Return the user's loss, a scalar, or None."""
        hook = self.get("loss")
        if hook is None:
            return None
        value = call_user(hook, "loss", logits, target)
        if not isinstance(value, Tensor) or value.numel() != 1:
            raise UserError(f"loss returned {_kind(value)}; expected a scalar tensor")
        return value.reshape(())

    def metrics(self, logits: Any, target: Any) -> dict[str, float] | None:
        """Return the user's metrics, or None."""
        hook = self.get("metrics")
        if hook is None:
            return None
        found = call_user(hook, "metrics", logits, target)
        try:
            return {str(name): float(value) for name, value in dict(found).items()}
        except (TypeError, ValueError):
            raise UserError(f"metrics returned {_kind(found)}; expected a dict of names and numbers") from None


def _parts(batch: Batch) -> tuple[Any, ...]:
    if isinstance(batch, tuple | list) and len(batch) >= 2:
        return tuple(batch)
    held = f"with the keys {', '.join(map(str, batch))}" if isinstance(batch, Mapping) else "of one part"
    raise UserError(
        f"a batch is a {type(batch).__name__} {held}; expected (x, y), or the hooks inputs(batch) and target(batch)"
    )


def _first_parts(batch: Batch) -> Any:
    parts = _parts(batch)
    return parts[0] if len(parts) == 2 else parts[:-1]


def _as_inputs(found: Any) -> Inputs:
    """Take a tensor, a tuple of tensors, a dict of tensors, or (args, kwargs)."""
    args: tuple[Any, ...]
    kwargs: dict[str, Any] = {}
    if isinstance(found, Mapping):
        args, kwargs = (), dict(found)
    elif isinstance(found, tuple | list):
        paired = len(found) == 2 and isinstance(found[0], tuple | list) and isinstance(found[1], Mapping)
        args, kwargs = (tuple(found[0]), dict(found[1])) if paired else (tuple(found), {})
    else:
        args = (found,)
    for name, value in [*((f"input {number}", one) for number, one in enumerate(args)), *kwargs.items()]:
        if not isinstance(value, Tensor):
            raise UserError(f"{name} of the model is {_kind(value)}; inputs(batch) returns tensors: args, kwargs")
    if not args and not kwargs:
        raise UserError("inputs(batch) returned no tensors; expected args, kwargs")
    return args, kwargs


def _as_target(found: Any, classes: int | None, where: Where) -> Tensor:
    if not isinstance(found, Tensor):
        raise UserError(f"the target is {_kind(found)}; expected a tensor of class numbers, one a sample")
    if found.ndim != 1:
        raise UserError(
            f"the target is {_kind(found)}; expected one class number a sample, shape [batch]"
            + ("; use y.squeeze(1)" if found.ndim == 2 and found.shape[1] == 1 else "")
        )
    if found.is_floating_point() or found.is_complex():
        raise UserError(f"the target is of type {found.dtype}; expected whole numbers from 0, such as y.long()")
    target = found.long()
    wrong = (target < 0) if classes is None else (target < 0) | (target >= classes)
    if bool(wrong.any()):
        place = int(wrong.nonzero()[0])
        limit = "0 or more" if classes is None else f"0 to {classes - 1}"
        raise UserError(
            f"{where(place)}: labels out of range: the target is {int(target[place])}, expected {limit}; "
            "mend the sample or `labels`"
        )
    return target


def _kind(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {list(value.shape)}"
    return f"a {type(value).__name__}"
