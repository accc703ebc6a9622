"""What a channel is worth. One plain function a kind, and beside it what it needs; a new kind is both, in this file.

A function sees the weights of one group (`Weights`) and returns one number a channel, or None where it says nothing
about the group. A score is meaningful within its group up to a factor, which ``unit_scores`` divides by, so that layers
of one pattern can be ranked together. Imports no torch, since command lines and settings list the kinds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

if TYPE_CHECKING:
    from torch import Tensor

    from distill.prune.scores.weights import Weights


@dataclass(frozen=True)
class Importance:
    """A kind of importance, and what it needs.

    Args:
        score: is called once with the weights alone, or once after the backward pass of each batch and added up.
        summary: what it is, for lists of kinds.
        backward: where the backward pass of a batch starts; None for a kind that needs no data.
        comparable: its scores are in one unit for all groups, so that any layers can be weighed against each other.
    """

    score: Callable[[Weights], Tensor | None]
    summary: str = ""
    backward: Literal["loss", "logits"] | None = None
    comparable: bool = False

    @property
    def name(self) -> str:
        """What the settings call it."""
        return self.score.__name__

    @property
    def needs_batches(self) -> bool:
        """Whether it needs batches of data, and a loss."""
        return self.backward is not None


def magnitude(weights: Weights) -> Tensor | None:
    """L1 norm of the filters that make the channel (Li et al. 2017, arXiv 1608.08710)."""
    return weights.total(lambda weight: weight.abs(), of="filters")


def l2(weights: Weights) -> Tensor | None:
    """L2 norm of the filters that make the channel (He et al. 2018, arXiv 1808.06866)."""
    squares = weights.total(lambda weight: weight.square(), of="filters")
    return None if squares is None else squares.sqrt()


def group_norm(weights: Weights) -> Tensor | None:
    """Squared L2 norm of all weights that go with the channel (Fang et al. 2023, arXiv 2301.12900)."""
    return weights.total(lambda weight: weight.square())


def taylor(weights: Weights) -> Tensor | None:
    """First-order change of the loss when the channel goes, squared: Σ_b (Σ_w w · ∂L_b/∂w)² over batches b.

    Source: Molchanov et al. 2019 (arXiv 1906.10771). Squared for each batch, before they are added: at the end of a
    training the gradients of batches cancel, and their sum says little.
    """
    change = weights.change()
    return None if change is None else change.square()


def hessian(weights: Weights) -> Tensor | None:
    """Second-order change of the loss when the channel goes: Σ_b Σ_w w² · (∂L_b/∂w)² over batches b.

    Source: LeCun et al. 1990 (Optimal Brain Damage), with the squared gradients of batches for the Hessian's diagonal
    (the empirical Fisher information), as it is usual for networks.
    """
    return weights.change(lambda change: change.square())


def gauss_newton(weights: Weights) -> Tensor | None:
    """Squared change of the logits when the channel goes: Σ_b E_x ‖Σ_w w · ∂z/∂w‖², to first order.

    Where a model is distilled from itself the loss is least, and its gradient says nothing about what a cut does: the
    curvature does. This is its Gauss-Newton form along the direction of the removal, for a squared error of the logits
    z, which the distillation loss is at high temperature (Hinton et al. 2015, arXiv 1503.02531). Further outputs count
    as much as the logits; what a softmax does not see does not count.
    Source: Nonnenmacher et al. 2022 (SOSP, arXiv 2110.11395), the terms of single structures; the norm over logits is
    estimated by random signs (Hutchinson 1989).
    """
    change = weights.change_of_readers()
    return None if change is None else weights.squared_by_unit(change)


def bn_scale(weights: Weights) -> Tensor | None:
    """Size of the batch-norm factors (Liu et al. 2017, arXiv 1708.06519); None where no batch norm follows."""
    return weights.total(lambda weight: weight.abs(), of="batch norms")


def random(weights: Weights) -> Tensor:
    """Chance, from the seed and the layer's name: what any other kind has to beat."""
    return weights.chance()


_KINDS = (
    Importance(gauss_newton, "squared change of the logits", backward="logits", comparable=True),
    Importance(taylor, "loss change, first order", backward="loss"),
    Importance(hessian, "loss change, second order", backward="loss"),
    Importance(group_norm, "L2 norm of all weights that go with it"),
    Importance(magnitude, "L1 norm of its own filters"),
    Importance(l2, "L2 norm of its own filters"),
    Importance(bn_scale, "batch-norm factor"),
    Importance(random),
)
IMPORTANCES = {kind.name: kind for kind in _KINDS}
DEFAULT, WITHOUT_BATCHES = "gauss_newton", "group_norm"
"""The kinds that are used where none is named: with data, and without."""

if TYPE_CHECKING:
    ImportanceName: TypeAlias = str
else:
    ImportanceName = Literal[tuple(IMPORTANCES)]


def described() -> str:
    """List the kinds for a reader, each with its summary and whether it needs data."""
    notes = {kind.name: [kind.summary] * bool(kind.summary) + ["needs data"] * kind.needs_batches for kind in _KINDS}
    return ", ".join(f"{name} ({'; '.join(parts)})" if parts else name for name, parts in notes.items())
