"""A histogram that grows with its data, and the ranges that can be read from it. Constant memory, one pass."""

from __future__ import annotations

import numpy as np

from distill.types import Array

_HALF = 4096  # bins on either side of zero
_LEVELS = 128  # what entropy tries to keep apart: a signed byte's magnitudes
_STEP = 8  # candidates for the threshold: every so many bins
_BYTE = 255  # steps of 8 bits
_SHARES, _SMALLEST_SHARE = 181, 0.1  # candidates for how much of the range is kept: every half per cent


class Histogram:
    """Counts of values in equal bins over [−reach, reach); reach is a power of two that doubles when it has to.

    Doubling joins neighbouring bins exactly, so the counts do not depend on the order in which the batches came.
    """

    def __init__(self) -> None:
        self.reach = 0.0
        self.counts = np.zeros(2 * _HALF, np.int64)
        self.low = np.inf
        self.high = -np.inf

    def add(self, values: Array) -> None:
        """Count the values of one batch; they must be finite."""
        flat = np.asarray(values, np.float32).reshape(-1)
        if flat.size == 0:
            return
        self.low, self.high = min(self.low, float(flat.min())), max(self.high, float(flat.max()))
        self._reach_out(max(abs(self.low), abs(self.high)))
        places = np.floor(flat.astype(np.float64) * (_HALF / self.reach)).astype(np.int64) + _HALF
        self.counts += np.bincount(places.clip(0, 2 * _HALF - 1), minlength=2 * _HALF)

    def _reach_out(self, largest: float) -> None:
        if self.reach == 0.0:
            self.reach = float(2.0 ** np.floor(np.log2(max(largest, 1e-30)) + 1))
        while largest >= self.reach:
            self.counts = np.pad(self.counts.reshape(-1, 2).sum(axis=1), _HALF // 2)
            self.reach *= 2

    def percentile_range(self, percent: float) -> tuple[float, float]:
        """Return the range that holds the middle ``percent`` of the values, half of the rest on either side.

        For values of one sign the other end is the smallest magnitude seen, so all of the rest is cut at the far end.
        """
        tail = 1.0 - percent / 100.0
        one_sided = self.low >= 0 or self.high <= 0
        share = tail if one_sided else tail / 2
        edges = np.linspace(-self.reach, self.reach, 2 * _HALF + 1)
        total = np.cumsum(self.counts)
        below = np.searchsorted(total, share * total[-1], side="right")
        above = np.searchsorted(total, (1 - share) * total[-1], side="left")
        low = self.low if self.low >= 0 else max(self.low, float(edges[below]))
        high = self.high if self.high <= 0 else min(self.high, float(edges[above + 1]))
        return low, max(high, low)

    def entropy_range(self) -> tuple[float, float]:
        """Return the range whose 8-bit form is closest to the values, by Kullback-Leibler divergence.

        Source: Migacz, "8-bit inference with TensorRT", 2017. Two-sided values share one threshold on magnitude.
        """
        magnitudes = self.counts[_HALF:] + self.counts[:_HALF][::-1]
        magnitudes = magnitudes.astype(np.float64)
        magnitudes[0] = magnitudes[1]  # the zeros that a ReLU leaves say nothing about the range
        used = int(np.flatnonzero(magnitudes).max(initial=0)) + 1
        sizes = (*range(min(_LEVELS, used), used, _STEP), used) if magnitudes.any() else ()
        threshold = min(sizes, key=lambda size: _divergence(magnitudes[:used], size), default=used)
        limit = threshold * self.reach / _HALF
        low = max(self.low, -limit)
        return low, max(low, min(self.high, limit))

    def mse_range(self) -> tuple[float, float]:
        """Return the range that 256 equal steps represent with the smallest mean squared error.

        Both ends are drawn in by the same share of their distance from zero; what lies beyond is clipped. Values stand
        for the middle of their bin, so a range of hardly any bins is that of the data.
        """
        used = np.flatnonzero(self.counts)
        middles = ((used - _HALF) + 0.5) * (self.reach / _HALF)
        middles, weights = middles.clip(self.low, self.high), self.counts[used].astype(np.float64)
        low, high = min(self.low, 0.0), max(self.high, 0.0)
        best, best_share = np.inf, 1.0
        for share in np.linspace(1.0, _SMALLEST_SHARE, _SHARES):
            step = (high - low) * share / _BYTE
            if not step > 0:
                break
            rounded = np.rint(middles / step).clip(np.rint(low * share / step), np.rint(high * share / step)) * step
            error = float((weights * (middles - rounded) ** 2).sum())
            if error < best:
                best, best_share = error, float(share)
        return max(self.low, low * best_share), min(self.high, high * best_share)


def _divergence(magnitudes: Array, size: int) -> float:
    """KL(P‖Q): P is the histogram with its tail clipped into the last of ``size`` bins, Q its form in 128 levels."""
    inside = magnitudes[:size]
    clipped = inside.copy()
    clipped[-1] += magnitudes[size:].sum()
    level = np.arange(size) * _LEVELS // size
    filled = (inside > 0).astype(np.float64)
    sums = np.bincount(level, inside, _LEVELS)
    bins = np.bincount(level, filled, _LEVELS)
    spread = np.divide(sums, bins, out=np.zeros(_LEVELS), where=bins > 0)[level] * filled
    p, q = clipped / clipped.sum(), spread / max(spread.sum(), 1e-300)
    shared = (p > 0) & (q > 0)
    lost = p[(p > 0) & (q <= 0)].sum()
    return float((p[shared] * np.log(p[shared] / q[shared])).sum() + lost * 20.0)
