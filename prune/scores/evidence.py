"""What batches of data say about channels: a backward pass over each, from the loss or the logits, and all added up."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from distill.errors import UserError
from distill.prune.batchnorm import refreshed
from distill.prune.graph.groups import ChannelGroup
from distill.prune.scores.importance import FROM_BATCHES, OF_LOGITS
from distill.prune.scores.means import Means, read_by, watching
from distill.prune.scores.projection import class_axis, differentiable, outputs_of, signed_sum
from distill.prune.settings import PruneSettings
from distill.types import Progress

_DRAWS = 32  # of signs at least, over all batches: their noise is what the scores of few batches are made of
_FOR_MEANS = 16  # batches are enough for what layers read on average
FEW = 8
"""Batches that are enough to compare two models by their losses."""
Loss = Callable[[nn.Module, Any], Tensor]


class Evidence:
    """The batches, read anew for each step, and the loss over them; ``logits`` takes those from the model's output."""

    def __init__(
        self,
        batches: Iterable[Any] | None,
        loss: Loss | None,
        logits: Callable[[Any], Tensor],
        settings: PruneSettings,
        progress: Progress | None,
        seed: int = 0,
    ) -> None:
        self._limit, self._loss, self._logits, self._progress = settings.batches, loss, logits, progress
        self._seed, self._drawn, self._signs = seed, 0, 1
        self._batches = batches
        self._held: list[Any] | None = None

    def anew(self) -> None:
        """Read the batches again when they are next asked for."""
        self._held = None

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
        if self._held is None:
            self._held = list(islice(self._batches, self._limit))
        if isinstance(self._batches, Iterator):
            self._batches = self._held  # it gives its batches once
        return self._held, self._loss

    def means(self, model: nn.Module, groups: Sequence[ChannelGroup]) -> Means:
        """Return what layers with biases read of these groups on average, by their names.

        Raises:
            UserError: as ``gathered``.
        """
        with outputs_of(model) as said, watching(model, read_by(groups)) as watch:
            if watch.is_idle:
                return {}
            for value in self._losses(model, "gauss_newton", "channel means", limit=_FOR_MEANS):
                for scalar, keep in self._scalars(model, value, said, "gauss_newton", signs=1):
                    with watch.listening():
                        scalar.backward(retain_graph=keep)  # type: ignore[no-untyped-call]
                said.clear()
                watch.forget()
        model.zero_grad(set_to_none=True)
        return watch.means

    def gathered(self, model: nn.Module, groups: Sequence[ChannelGroup], kind: str) -> dict[str, Tensor]:
        """Return what all batches together say about each group's channels; batch norms stay in eval mode.

        Raises:
            UserError: there is no batch, the loss is no number or does not depend on the parameters, or there are no
                logits where they are needed.
        """
        found: dict[str, Tensor] = {}
        with outputs_of(model) as said:
            for value in self._losses(model, kind, "channel importance"):
                for scalar, keep in self._scalars(model, value, said, kind, signs=self._signs):
                    scalar.backward(retain_graph=keep)  # type: ignore[no-untyped-call]
                    with torch.no_grad():
                        for group in groups:
                            change = FROM_BATCHES[kind](group)
                            if change is not None:
                                found[group.name] = found.get(group.name, torch.zeros_like(change)) + change
                said.clear()
        model.zero_grad(set_to_none=True)
        return found

    def _scalars(
        self, model: nn.Module, value: Tensor, said: list[Any], kind: str, *, signs: int
    ) -> Iterator[tuple[Tensor, bool]]:
        """Yield what to go backward from, and whether more follows: the loss, or the logits with random signs."""
        if kind not in OF_LOGITS:
            yield value, False
            return
        outputs = differentiable(said, self._logits)
        # Anew for each batch of each step, and by nothing else, so that a step alone can be done again.
        self._drawn += 1
        generator = torch.Generator().manual_seed(self._seed * 1_000_003 + self._drawn)
        axes = [class_axis(value, logits) for logits, _ in outputs]
        for number in range(signs):
            model.zero_grad(set_to_none=True)
            parts = [signed_sum(*output, axis, generator) for output, axis in zip(outputs, axes, strict=True)]
            yield torch.stack(parts).sum(), number + 1 < signs

    def mean_loss(self, model: nn.Module, limit: int | None = None) -> float:
        """Return the mean loss over the batches, with batch-norm statistics of this very model; infinite if no number.

        Args:
            model: is not changed.
            limit: batches at most.
        """
        batches, loss = self.read
        batches = batches[:limit]

        def judged(copied: nn.Module, batch: Any) -> float:
            with torch.enable_grad():  # a loss may need gradients for itself
                return float(loss(copied, batch).detach())

        def run(copied: nn.Module, batch: Any) -> None:
            judged(copied, batch)

        with seeded(self._seed):
            settled = refreshed(model, batches, run)
            values = [judged(settled, batch) for batch in batches]
        mean = sum(values) / len(values) if values else float("inf")
        return mean if mean == mean else float("inf")

    def _losses(self, model: nn.Module, kind: str, what: str, limit: int | None = None) -> Iterator[Tensor]:
        batches, loss = self.read
        batches = batches[:limit]
        done = self._drawn = 0
        self._signs = -(-_DRAWS // max(1, len(batches)))
        for value in self._values(model, batches, loss):
            if not isinstance(value, Tensor) or value.numel() != 1 or value.grad_fn is None:
                raise UserError("loss(model, batch) must return a scalar tensor that depends on the model's parameters")
            if not torch.isfinite(value).all():
                raise UserError(f"the loss of batch {done} is {value.item()}; the model or the batch is broken")
            yield value
            done += 1
            if self._progress is not None:
                self._progress(what, done, len(batches))
        if not done:
            raise UserError(f"importance {kind!r} got no batch; give it at least one, or choose prune.importance")

    def _values(self, model: nn.Module, batches: Iterable[Any], loss: Loss) -> Iterator[Tensor]:
        for batch in batches:
            model.zero_grad(set_to_none=True)
            yield loss(model, batch)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed torch inside, and leave its generators outside as they were."""
    gpus = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()  # type: ignore[no-untyped-call]
    with torch.random.fork_rng(devices=list(gpus)):
        torch.manual_seed(seed)
        yield
