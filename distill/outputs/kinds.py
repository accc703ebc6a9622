"""What an output of a model holds, and what its numbers mean: answers, and the distance of two models' answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

from distill.types import Array

Kind = Literal["classes", "binary", "labels", "numbers"]
KINDS: tuple[Kind, ...] = get_args(Kind)
_CERTAIN = 1e-7  # nearest that a probability comes to 0 and 1 before its logarithm is taken


@dataclass(frozen=True)
class Output:
    """What an output [rows, …] holds.

    `classes`: scores of exclusive classes along `axis`, of which the highest is the answer. `binary`: one score a row.
    `labels`: scores of which each stands for itself. `numbers`: values that are no scores. Scores are logits, or
    probabilities, which decide at 0.5 where logits decide at 0.
    """

    kind: Kind
    axis: int = 1
    probabilities: bool = False

    def answers(self, values: Array) -> Array:
        """Return what an output says: class numbers without the class axis, or truth values; numbers as they are.

        Of `binary` it is one truth value a row, [rows].
        """
        if self.kind == "numbers":
            return values
        if self.kind == "classes":
            return np.asarray(values.argmax(axis=self.axis))
        yes = values > (0.5 if self.probabilities else 0)
        return np.asarray(yes.reshape(len(yes)) if self.kind == "binary" else yes)

    def class_logits(self, values: Any, xp: Any = np) -> Any:
        """Return logits [rows, classes, …] of which a softmax along axis 1 gives the probabilities of each answer.

        One score stands beside a second class, "no", of logit 0: the sigmoid of a logit is their softmax. Scores
        [rows, …] are floats of 32 bits or more, an array or a tensor, with which ``xp``, numpy or torch, computes.
        """
        if self.kind == "numbers":
            raise ValueError("numbers are no scores of classes")
        if self.probabilities:
            sure = xp.clip(values, _CERTAIN, 1 - _CERTAIN)
            values = xp.log(sure) if self.kind == "classes" else xp.log(sure) - xp.log1p(-sure)
        if self.kind == "classes":
            return xp.moveaxis(values, self.axis, 1)
        return xp.stack([xp.zeros_like(values), values], 1)

    def divergence(self, reference: Array, other: Array) -> float:
        """Compare two models' outputs for the same rows.

        Of scores it is KL(reference ‖ other) in nats, the mean over answers: between the classes' probabilities, or
        between yes and no. Of numbers it is the squared error over the squared reference. Infinite where the outputs
        are not finite.

        Raises:
            ValueError: the shapes differ.
        """
        if reference.shape != other.shape:
            raise ValueError(f"answers of the shapes {reference.shape} and {other.shape} cannot be compared")
        expected, actual = reference.astype(np.float64), other.astype(np.float64)
        if not np.isfinite(actual).all():
            return float("inf")
        if self.kind == "numbers":
            energy = float((expected**2).sum())
            return float(((expected - actual) ** 2).sum()) / energy if energy else float(not (expected == actual).all())
        log_p, log_q = (_log_softmax(self.class_logits(scores)) for scores in (expected, actual))
        return max(0.0, float((np.exp(log_p) * (log_p - log_q)).sum(axis=1).mean()))

    @property
    def unit(self) -> str:
        """What `divergence` is measured in."""
        return "share of the answers' energy" if self.kind == "numbers" else "nats an answer"

    def __str__(self) -> str:
        """Say it in a few words."""
        scores = "probabilities" if self.probabilities else "logits"
        return {
            "classes": f"classes along axis {self.axis}",
            "binary": f"one yes or no a row ({scores}, above {0.5 if self.probabilities else 0} is yes)",
            "labels": f"several labels a row ({scores}, each above {0.5 if self.probabilities else 0} is set)",
            "numbers": "numbers",
        }[self.kind]


def of_shape(shape: tuple[int, ...]) -> Output:
    """Return what is compared where nobody says what an output holds: logits of [n, k ≥ 2], numbers of the rest."""
    return Output("classes") if len(shape) == 2 and shape[1] > 1 else Output("numbers")


def _log_softmax(logits: Array) -> Array:
    shifted = logits - logits.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))
