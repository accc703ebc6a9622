"""What batches of data say about channels: the loss is run backwards over each, and what it says is added up."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from distill.errors import UserError
from distill.prune.graph import ChannelGroup
from distill.prune.importance import FROM_BATCHES, OF_LOGITS
from distill.prune.settings import PruneSettings

Progress = Callable[[str, int, int], None]
Loss = Callable[[nn.Module, Any], Tensor]


class Evidence:
    """The batches, read anew each time, and the loss over them; ``logits`` takes those from the model's output."""

    def __init__(
        self,
        batches: Iterable[Any] | None,
        loss: Loss | None,
        logits: Callable[[Any], Tensor],
        settings: PruneSettings,
        progress: Progress | None,
    ) -> None:
        self._limit, self._loss, self._logits, self._progress = settings.batches, loss, logits, progress
        self._batches = batches

    @property
    def is_complete(self) -> bool:
        """Whether there are both batches and a loss."""
        return self._batches is not None and self._loss is not None

    @property
    def read(self) -> tuple[list[Any], Loss]:
        """The batches, as many as may be read, and the loss.

        Raises:
            UserError: one of them is missing.
        """
        if self._loss is None or self._batches is None:
            raise UserError("the importance needs batches and a loss")
        read = list(islice(self._batches, self._limit))
        if isinstance(self._batches, Iterator):
            self._batches = read  # it gives its batches once
        return read, self._loss

    def gathered(self, model: nn.Module, groups: Sequence[ChannelGroup], kind: str) -> dict[str, Tensor]:
        """Return what all batches together say about each group's channels; batch norms stay in eval mode.

        Raises:
            UserError: there is no batch, or the loss is no number or does not depend on the parameters.
        """
        found: dict[str, Tensor] = {}
        with _last_output(model) as last:
            for value in self._losses(model, kind):
                start = _signed_sum(self._logits, last) if kind in OF_LOGITS else value
                start.backward()  # type: ignore[no-untyped-call]
                with torch.no_grad():
                    for group in groups:
                        change = FROM_BATCHES[kind](group)
                        if change is not None:
                            found[group.name] = found.get(group.name, torch.zeros_like(change)) + change
        model.zero_grad(set_to_none=True)
        return found

    def mean_loss(self, model: nn.Module) -> float:
        """Return the mean loss over the batches; infinite where it is not a number."""
        with torch.no_grad():
            values = [float(value) for value in self._values(model, *self.read)]
        mean = sum(values) / len(values) if values else float("inf")
        return mean if mean == mean else float("inf")

    def _losses(self, model: nn.Module, kind: str) -> Iterator[Tensor]:
        batches, loss = self.read
        done = 0
        for value in self._values(model, batches, loss):
            if not isinstance(value, Tensor) or value.numel() != 1 or value.grad_fn is None:
                raise UserError("loss(model, batch) must return a scalar tensor that depends on the model's parameters")
            if not torch.isfinite(value).all():
                raise UserError(f"the loss of batch {done} is {value.item()}; the model or the batch is broken")
            yield value
            done += 1
            if self._progress is not None:
                self._progress("channel importance", done, len(batches))
        if not done:
            raise UserError(f"importance {kind!r} got no batch; give it at least one, or choose prune.importance")

    def _values(self, model: nn.Module, batches: Iterable[Any], loss: Loss) -> Iterator[Tensor]:
        for batch in batches:
            model.zero_grad(set_to_none=True)
            yield loss(model, batch)


@contextmanager
def _last_output(model: nn.Module) -> Iterator[list[Any]]:
    """Keep what the model said last: a list of one, or of none before it is called."""
    last: list[Any] = []

    def keep(module: nn.Module, args: Any, output: Any) -> None:
        last[:] = [output]

    hook = model.register_forward_hook(keep)
    try:
        yield last
    finally:
        hook.remove()
        last.clear()


def _signed_sum(logits: Callable[[Any], Tensor], last: list[Any]) -> Tensor:
    """Return Σ ±z / √rows over the logits of a batch: its gradient's square is the mean of a row's, over the signs.

    What is added to all logits of a row alike changes no answer, and does not count.

    Raises:
        UserError: the loss did not call the model, or its logits do not depend on the parameters.
    """
    if not last:
        raise UserError("loss(model, batch) must call the model: the importance 'gauss_newton' reads its logits")
    values = logits(last.pop()).float()
    if values.grad_fn is None:
        raise UserError("the logits do not depend on the model's parameters; the importance 'gauss_newton' needs that")
    told = values.isfinite()  # a mask of -inf has no gradient
    signs = torch.randint(2, values.shape).to(values) * 2 - 1
    if values.ndim > 1 and values.shape[-1] > 1:
        signs = signs - signs.mean(-1, keepdim=True)
    total: Tensor = (torch.where(told, values, 0) * signs).sum()
    return total / math.sqrt(values.shape[0])
