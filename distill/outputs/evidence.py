"""Whether a comparison of answers proves anything: answers that are all alike lose nothing, whatever was broken."""

from __future__ import annotations

import numpy as np

from distill.types import Array


def degenerate(
    before: Array,
    after: Array | None = None,
    labels: Array | None = None,
    *,
    names: tuple[str, str] = ("the model before", "the model after"),
) -> str | None:
    """Say why a drop between answers proves little, and what mends it; None where it proves something.

    Args:
        before: answers [n, …] of the model that is compared with: class numbers, or one truth value a label.
        after: answers [n, …] of the model that is judged, where there is one already.
        labels: what is right, in the shape of the answers.
        names: what both models are called in the remark.
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
