"""What a model's outputs lose against another's on the same rows, with its interval, and what that proves."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from distill.errors import DistillError, UserError
from distill.intervals import Estimate, paired_drop, wilson
from distill.types import Array

from .kinds import Output

Metric = Callable[[Array, Array | None], float]
RESAMPLES = 400
_FEWEST = 20  # resamples from which on percentiles are taken


@dataclass(frozen=True, eq=False)
class Comparison:
    """Compares outputs with `before`, another model's for the same rows: by `labels` if there are any, else with them.

    The measure is accuracy of classes and of one yes or no, F1 of each row's labels, and R² of numbers (the mean over
    columns that vary; further axes count as one). A row is one sample, whose positions depend on each other. `metric`
    is the user's own: it gets outputs and labels, and more is better.

    Args:
        output: what the outputs hold.
        before: outputs [rows, …].
        labels: what is right, in the shape of the answers; for a metric in any shape [rows, …].
        metric: the user's own measure.
    """

    output: Output
    before: Array
    labels: Array | None = None
    metric: Metric | None = None
    seed: int = field(default=0, repr=False)

    @property
    def name(self) -> str:
        """What the measure is called, with labels or as a metric of the user's own."""
        if self.metric is not None:
            return getattr(self.metric, "__name__", "metric")
        return {"numbers": "R²", "labels": "F1 of the labels"}.get(self.output.kind, "accuracy")

    @property
    def measure(self) -> str:
        """What a drop is a difference of, or a share of."""
        if not self.counts_changes:
            return self.name
        parts = {"numbers": "variance", "labels": "labels (F1)"}
        return f"the share of {parts.get(self.output.kind, 'answers')} that changed"

    @property
    def counts_changes(self) -> bool:
        """Whether a drop is the share of what changed, for want of labels, and no difference of two measures."""
        return self.labels is None and self.metric is None

    def drop(self, after: Array) -> Estimate:
        """Return what outputs [rows, …] lose, with its 95 % interval; without labels, how much of them changed."""
        if self.metric is not None:
            drops = (ours - theirs for ours, theirs in zip(self._metric_before, self._resampled(after), strict=True))
            return self._bootstrap(self.value(self.before) - self.value(after), drops)
        if self.output.kind == "numbers":
            errors, spread = self._errors(after)
            if self.labels is not None:
                errors = errors - self._errors(self.before)[0]
            weights = np.ones((1, len(errors))), self._weights
            with np.errstate(divide="ignore", invalid="ignore"):
                (value,), resampled = (((rows @ errors) / (rows @ spread)).mean(axis=1) for rows in weights)
            return self._bootstrap(float(value), map(float, resampled))
        scores = self.row_scores(after)
        if self.labels is None:
            return wilson(float((1 - scores).sum()), len(scores))
        won = scores - self.row_scores(self.before)
        return paired_drop(float(np.maximum(-won, 0).sum()), float(np.maximum(won, 0).sum()), len(scores))

    def value(self, values: Array) -> float:
        """Return the measure of outputs; without labels it is of how well they agree with `before`."""
        if self.metric is not None:
            return _called(self.metric, values, self.labels)
        if self.output.kind == "numbers":
            errors, spread = self._errors(values)
            return float(1 - (errors.sum(0) / spread.sum(0)).mean())
        return float(self.row_scores(values).mean())

    def row_scores(self, values: Array) -> Array:
        """Return how right each row is, from 0 to 1 [rows]: the share of its positions, or the F1 of its labels."""
        truth = self.output.answers(self.before) if self.labels is None else self.labels
        answers = self.output.answers(values)
        count = len(answers)
        truth, answers = truth.reshape(count, -1), answers.reshape(count, -1)
        if self.output.kind != "labels":
            return np.asarray((truth == answers).mean(axis=1))
        truth, answers = truth.astype(bool), answers.astype(bool)
        total = truth.sum(axis=1) + answers.sum(axis=1)
        return np.where(total, 2 * (truth & answers).sum(axis=1) / np.maximum(total, 1), 1.0)

    def remark(self, after: Array | None, names: tuple[str, str]) -> str | None:
        """Say why the answers prove little, as `degenerate` does."""
        if self.output.kind == "numbers":
            return None
        labels = None if self.metric is not None else self.labels
        answers = None if after is None else self.output.answers(after)
        return degenerate(self.output.answers(self.before), answers, labels, names=names)

    def chance_remark(self, name: str) -> str | None:
        """Say that `before`, outputs of ``name``, is no better than the best answer that looks at no row, if so."""
        if self.labels is None or self.metric is not None:
            return None
        own = self.value(self.before)
        if self.output.kind == "numbers":
            blind, verdict = 0.0, f"has an R² of {own:.2f} on the labels, no more than whoever always gives their mean"
        elif self.output.kind == "labels":
            blind = self._best_constant()
            verdict = f"has an F1 of {own:.2f} on the labels, no more than the same labels for every row ({blind:.2f})"
        else:
            blind = int(np.unique(self.labels, return_counts=True)[1].max()) / self.labels.size
            verdict = (
                f"is right in {100 * own:.1f} % of the answers that judge, no more than whoever always names the most "
                f"frequent class ({100 * blind:.1f} %)"
            )
        if not own <= blind < 1:
            return None
        return (
            f"{name} {verdict}, so a small drop proves nothing: its weights may not be trained, the labels be others "
            "or numbered otherwise, or the rows scaled otherwise"
        )

    def _best_constant(self) -> float:
        """Return the F1 of the best set of labels that is given to every row: those that are frequent enough."""
        assert self.labels is not None
        truth = self.labels.reshape(len(self.labels), -1).astype(bool)
        shares = truth.mean(axis=0)
        sets = [shares >= share for share in np.unique(np.quantile(shares, np.linspace(0, 1, 21)))]
        scores = [2 * (truth & labels).sum(axis=1) / np.maximum(truth.sum(axis=1) + labels.sum(), 1) for labels in sets]
        return float(max(score.mean() for score in scores))

    def _errors(self, values: Array) -> tuple[Array, Array]:
        """Return squared errors and squared deviations from the mean, float64 [rows, columns that vary].

        Raises:
            UserError: nothing varies from row to row, so that no share of it can be explained.
        """
        truth = self.before if self.labels is None else self.labels
        mean = truth.mean(axis=0, dtype=np.float64, keepdims=True)
        missed = np.subtract(values, truth.reshape(values.shape), dtype=np.float64)  # squares of 16 bits overflow
        errors, spread = _columns(missed**2), _columns((truth - mean) ** 2)
        varied = spread.sum(axis=0) > 1e-12 * np.maximum(1e-30, (mean**2).sum()) * len(truth)
        if not varied.any():
            subject = "the labels are" if self.labels is not None else "the model's numbers are"
            raise UserError(f"{subject} the same for all {len(truth)} judged rows; give rows that differ")
        return errors[:, varied], spread[:, varied]

    @cached_property
    def _draws(self) -> Array:
        """Row numbers [resamples, rows], drawn with replacement, the same for every comparison."""
        count = len(self.before)
        return np.random.default_rng(self.seed).integers(0, count, (RESAMPLES, count))

    @cached_property
    def _weights(self) -> Array:
        """How often each row was drawn [resamples, rows]."""
        count = len(self.before)
        return np.stack([np.bincount(drawn, minlength=count) for drawn in self._draws]).astype(np.float64)

    @cached_property
    def _metric_before(self) -> list[float]:
        return list(self._resampled(self.before))

    def _resampled(self, values: Array) -> Iterator[float]:
        """Yield the metric of each resample; NaN where it has none, such as one without a positive row."""
        assert self.metric is not None
        for drawn in self._draws:
            try:
                yield _called(self.metric, values[drawn], None if self.labels is None else self.labels[drawn])
            except UserError:
                yield float("nan")

    @staticmethod
    def _bootstrap(value: float, resampled: Iterator[float]) -> Estimate:
        """Return the value with the percentile interval of its resamples, around it whatever they are."""
        finite = [resample for resample in resampled if np.isfinite(resample)]
        if len(finite) < _FEWEST:
            return Estimate(value, float("-inf"), float("inf"))
        low, high = np.percentile(finite, [2.5, 97.5])
        return Estimate(value, float(min(low, value)), float(max(high, value)))


def _columns(squares: Array) -> Array:
    """Return squares [rows, columns]; further axes are added up to one column."""
    if squares.ndim == 1:
        return squares[:, None]
    return squares if squares.ndim == 2 else squares.reshape(len(squares), -1).sum(axis=1, keepdims=True)


def _called(metric: Metric, values: Array, labels: Array | None) -> float:
    """Call the user's metric. Raises UserError where it raises, or returns no finite number."""
    try:
        result = float(metric(values, labels))
    except DistillError:
        raise
    except Exception as error:
        text = (str(error).strip().splitlines() or [""])[0]
        raise UserError(f"--metric: it raised {type(error).__name__}: {text}") from error
    if not np.isfinite(result):
        raise UserError(f"--metric: it returned {result}; it must return a finite number, of which more is better")
    return result


def degenerate(
    before: Array,
    after: Array | None = None,
    labels: Array | None = None,
    *,
    names: tuple[str, str] = ("the model before", "the model after"),
) -> str | None:
    """Say why a drop between answers proves little, and what mends it; None where it proves something.

    Answers [n, …], and labels in their shape, are class numbers, or one truth value a label. ``before`` is compared
    with, ``after`` is judged, where there is one already; ``names`` are what both are called in the remark.
    """
    if not len(before):
        return None
    same_before, same_after = _all_alike(before), after is not None and _all_alike(after)
    if not same_before and not same_after:
        return None
    rows, mend = len(before), "give rows of several classes"
    if not same_before and after is not None:
        remark = f"{names[1]} gives all {rows} judged rows the same answer{_named(after)}, which {names[0]} does not"
        return f"{remark}: look at it before it ships, whatever the drop; {mend}"
    same = after is not None and same_after and np.array_equal(before, after)
    who = f"{names[0]} and {names[1]} give" if same else f"{names[0]} gives"
    remark = f"{who} all {rows} judged rows the same answer{_named(before)}"
    if labels is not None and labels.shape == before.shape and not _all_alike(labels):
        share = float((labels == before).mean())
        remark += f", right for {100 * share:.1f} % of the labels without looking at a row"
        mend = "give rows with more of the other classes, or judge by another metric"
    return f"{remark}, so a small drop proves nothing; {mend}"


def _all_alike(answers: Array) -> bool:
    return bool((answers == answers[:1]).all())


def _named(answers: Array) -> str:
    """Name the class where a row has one answer."""
    first = np.unique(answers[:1])
    return f" (class {int(first[0])})" if first.size == 1 else ""
