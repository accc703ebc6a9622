"""What batches of data say about channels: a backward pass over each, from the loss or the logits, and all added up."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any, Literal

import torch
from torch import Tensor, nn

from distill.errors import UserError
from distill.prune.batchnorm import refreshed
from distill.prune.graph.groups import ChannelGroup
from distill.prune.modules import Loss, hooked, reason, require_scalar, seeded, tensors_in
from distill.prune.scores.importance import DEFAULT, Importance
from distill.prune.scores.input_means import Means, read_by, watching
from distill.prune.scores.weights import Weights
from distill.prune.settings import PruneSettings
from distill.types import Progress

_DRAWS = 32  # of signs at least, over all batches: their noise is what the scores of few batches are made of
_FOR_MEANS = 16  # batches are enough for what layers read on average
FEW = 8
"""Batches that are enough to compare two models by their losses."""


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
        self._seed, self._draws = seed, 0
        self._batches = batches
        self._cache: list[Any] | None = None

    def read_anew(self) -> None:
        """Read the batches again when they are next asked for."""
        self._cache = None

    @property
    def is_complete(self) -> bool:
        """Whether there are both batches and a loss."""
        return self._batches is not None and self._loss is not None

    @property
    def batches_and_loss(self) -> tuple[list[Any], Loss]:
        """The batches, as many as may be read, and the loss.

        Raises:
            UserError: one of them is missing.
        """
        if self._loss is None or self._batches is None:
            raise UserError("the importance needs batches and a loss")
        if self._cache is None:
            self._cache = list(islice(self._batches, self._limit))
        if isinstance(self._batches, Iterator):
            self._batches = self._cache  # it gives its batches once
        return self._cache, self._loss

    def means(self, model: nn.Module, groups: Sequence[ChannelGroup]) -> Means:
        """Return what layers with biases read of these groups on average, by their names.

        Raises:
            UserError: as ``gathered``.
        """
        with outputs_of(model) as outputs, watching(model, read_by(groups)) as watch:
            if watch.is_idle:
                return {}
            for loss in self._losses(model, "channel means", limit=_FOR_MEANS):
                for scalar, follows in self._scalars(model, loss, outputs, "logits", draws=1):
                    watch.backward(scalar, retain_graph=follows)
                outputs.clear()
                watch.forget()
        model.zero_grad(set_to_none=True)
        return watch.means

    def gathered(self, model: nn.Module, groups: Sequence[ChannelGroup], importance: Importance) -> dict[str, Tensor]:
        """Return what all batches together say about each group's channels; batch norms stay in eval mode.

        Raises:
            UserError: there is no batch, the loss is no number or does not depend on the parameters, or there are no
                logits where they are needed.
        """
        totals: dict[str, Tensor] = {}
        draws = -(-_DRAWS // max(1, len(self.batches_and_loss[0])))
        with outputs_of(model) as outputs:
            for loss in self._losses(model, "channel importance", importance.name):
                for scalar, follows in self._scalars(model, loss, outputs, importance.backward, draws=draws):
                    scalar.backward(retain_graph=follows)  # type: ignore[no-untyped-call]
                    with torch.no_grad():
                        for group in groups:
                            score = importance.score(Weights(group, self._seed))
                            if score is not None:
                                totals[group.name] = totals.get(group.name, torch.zeros_like(score)) + score
                outputs.clear()
        model.zero_grad(set_to_none=True)
        return totals

    def _scalars(
        self, model: nn.Module, loss: Tensor, outputs: list[Any], start: Literal["loss", "logits"] | None, *, draws: int
    ) -> Iterator[tuple[Tensor, bool]]:
        """Yield what to go backward from, and whether more follows: the loss, or the logits with random signs."""
        if start != "logits":
            yield loss, False
            return
        pairs = differentiable(outputs, self._logits)
        # Anew for each batch of each step, and by nothing else, so that a step alone can be done again.
        self._draws += 1
        generator = torch.Generator().manual_seed(self._seed * 1_000_003 + self._draws)
        axes = [class_axis(loss, logits) for logits, _ in pairs]
        for number in range(draws):
            model.zero_grad(set_to_none=True)
            parts = [signed_sum(*pair, axis, generator) for pair, axis in zip(pairs, axes, strict=True)]
            yield torch.stack(parts).sum(), number + 1 < draws

    def mean_loss(self, model: nn.Module, limit: int | None = None) -> float:
        """Return the mean loss, with batch-norm statistics of this very model, over ``limit`` batches; or infinity."""
        batches, loss = self.batches_and_loss
        batches = batches[:limit]

        def loss_of(copied: nn.Module, batch: Any) -> float:
            with torch.enable_grad():  # a loss may need gradients for itself
                return float(loss(copied, copy.deepcopy(batch)).detach())

        with seeded(self._seed):
            settled = refreshed(model, batches, loss_of)
            values = [loss_of(settled, batch) for batch in batches]
        mean = sum(values) / len(values) if values else float("inf")
        return mean if mean == mean else float("inf")

    def _losses(
        self, model: nn.Module, purpose: str, importance: str = DEFAULT, limit: int | None = None
    ) -> Iterator[Tensor]:
        batches, loss = self.batches_and_loss
        batches = batches[:limit]
        self._draws = 0
        for number, batch in enumerate(batches):
            model.zero_grad(set_to_none=True)
            value = require_scalar(loss(model, copy.deepcopy(batch)))  # forward may write into it
            if not torch.isfinite(value).all():
                raise UserError(f"the loss of batch {number} is {value.item()}; the model or the batch is broken")
            yield value
            if self._progress is not None:
                self._progress(purpose, number + 1, len(batches))
        if not batches:
            raise UserError(f"importance {importance!r} got no batch; give it at least one, or choose prune.importance")


_BLIND = 0.01  # a gradient that adds up to less, of its own size, is blind to what all classes gain alike
_INSTEAD = "prune.importance='taylor' goes by the loss alone"


@contextmanager
def outputs_of(model: nn.Module) -> Iterator[list[Any]]:
    """Collect what the model returns each time it is called."""
    outputs: list[Any] = []
    with hooked([model.register_forward_hook(lambda module, args, output: outputs.append(output))]):
        yield outputs


def differentiable(outputs: Sequence[Any], logits: Callable[[Any], Tensor]) -> list[tuple[Tensor, list[Tensor]]]:
    """Return the logits of each call that autograd follows, and the other tensors [rows, …] of the same output.

    Raises:
        UserError: the model was not called, its logits cannot be found, or autograd follows none of them.
    """
    if not outputs:
        raise UserError(f"loss(model, batch) did not call the model, whose logits are needed; {_INSTEAD}")
    pairs = []
    for output in outputs:
        try:
            values = logits(output)
        except Exception as error:
            raise UserError(f"what the model says in the loss has no logits: {reason(error)}; {_INSTEAD}") from error
        if isinstance(values, Tensor) and values.grad_fn is not None and values.ndim and values.is_floating_point():
            mine = values.untyped_storage().data_ptr()
            others = [
                tensor
                for _, tensor in tensors_in(output)
                if tensor.grad_fn is not None and tensor.ndim and tensor.untyped_storage().data_ptr() != mine
            ]
            pairs.append((values, others))
    if not pairs:
        raise UserError(f"the logits in the loss do not depend on the model's parameters; {_INSTEAD}")
    return pairs


def class_axis(loss: Tensor, logits: Tensor) -> int | None:
    """Return the axis along which a constant may be added to the logits without changing the loss; None without one.

    A softmax has one, at its classes; sigmoids and distances have none. The loss's gradient tells: it adds up to 0.
    """
    (gradient,) = torch.autograd.grad(loss, logits, retain_graph=True, allow_unused=True)
    if gradient is None:
        return None
    gradient = gradient.float()
    size = float(gradient.abs().sum())
    axes: list[int] = [1 % max(1, logits.ndim), logits.ndim - 1, *range(2, logits.ndim - 1)]
    for axis in dict.fromkeys(axes):
        if axis and logits.shape[axis] > 1 and size > 0 and float(gradient.sum(axis).abs().sum()) <= _BLIND * size:
            return axis
    return None


def signed_sum(logits: Tensor, others: Sequence[Tensor], axis: int | None, generator: torch.Generator) -> Tensor:
    """Return Σ ±z / √rows, a scalar: over the signs, its gradient's square is what a row's outputs move by, squared.

    For signs s of ±1, E_s (s · Jv)² = ‖Jv‖² (Hutchinson 1989): one backward pass instead of one for each logit.

    Args:
        logits: [rows, …]; infinite ones, as masks leave them, do not count.
        others: further outputs, which count as much as the logits do, each in units of its own spread.
        axis: what is added alike along it does not count.
        generator: draws the signs, on the CPU.
    """
    values = logits.float()
    finite = values.isfinite()
    signs = _signs(values, generator) * finite
    if axis is not None:
        signs -= finite * signs.sum(axis, keepdim=True) / finite.sum(axis, keepdim=True).clamp(min=1)
    total = (torch.where(finite, values, 0) * signs).sum() / math.sqrt(len(values))
    spread = _spread(values)
    for other in others:
        own = _spread(other.float())
        if own > 0:
            finite = other.isfinite()
            part = (torch.where(finite, other, 0).float() * _signs(other, generator)).sum()
            total = total + part * (spread or 1.0) / own / math.sqrt(len(other))
    return total


def _signs(like: Tensor, generator: torch.Generator) -> Tensor:
    drawn = torch.randint(2, like.shape, dtype=torch.int8, generator=generator)
    return drawn.to(device=like.device, dtype=torch.float32).mul_(2).sub_(1)


def _spread(values: Tensor) -> float:
    finite = values.detach()[values.detach().isfinite()]
    return float(finite.std()) if finite.numel() > 1 else 0.0
