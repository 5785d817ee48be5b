"""Rates of a 1:1 protocol as published, and the ROC curve behind them.

Published numbers take scikit-learn's `roc_curve`, which leaves out points between collinear neighbours, and from what
is left the true-accept rate at the point whose false-accept rate is nearest to the target, the highest such rate among
equals. The nearest point may lie above the target; a strict rate, which never exceeds it, is
`core.scoring.pair_metrics.operating_point`. The points are made here, of scores that are sorted already: scikit-learn
takes three times the seconds and twice the memory for them, which at 15.7 million pairs and four modes is felt.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

PUBLISHED_FARS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)

_SCORES_AT_ONCE = 1 << 19
"""4 MB, taken from memory that is there already: whole columns of 15 million cost seconds of page faults."""


@dataclass(frozen=True, slots=True)
class RocPoints:
    """Points that scikit-learn keeps, from accepting nothing on."""

    false_accept_rates: Floats
    """(n,) ascending, from 0 to 1."""
    true_accept_rates: Floats
    """(n,)."""
    thresholds: Floats
    """(n,) descending, of which the first is infinite; scores at or above are accepted."""


@dataclass(frozen=True, slots=True)
class NearestPoint:
    """The published rate at a target."""

    tar: float
    far: float
    """Of the point that was taken; the target only nearly."""
    threshold: float


def roc_points(same: Floats, different: Floats) -> RocPoints:
    """The points of `sklearn.metrics.roc_curve`, in every bit.

    Args:
        same: (n,) scores of same pairs, ascending, not empty.
        different: (m,) of different pairs, likewise.

    Memory: 8 (n + m) bytes and a block; a second for 15 million scores.
    """
    merged = np.concatenate([same, different])
    merged.sort(kind="stable")  # which merges the two runs in one pass
    merged = merged[::-1]
    kept: list[_Points] = []
    tail = _Points(*(np.zeros(0) for _ in range(3)))  # the last two points: whether one bends is for the next to say
    for start in range(0, len(merged), _SCORES_AT_ONCE):
        points = tail.followed_by(_distinct_points(merged, start, same))
        if len(points.thresholds) == 0:
            continue  # the block lies within a run of equal scores
        if not kept:
            kept.append(points.at(slice(0, 1)))
        bends = (np.diff(points.false_accepts, 2) != 0) | (np.diff(points.true_accepts, 2) != 0)
        kept.append(points.at(np.flatnonzero(bends) + 1))
        tail = points.at(slice(-2, None))
    if tail.thresholds[-1] != kept[0].thresholds[0]:
        kept.append(tail.at(slice(-1, None)))
    return RocPoints(
        np.concatenate([[0.0], *(points.false_accepts for points in kept)]) / len(different),
        np.concatenate([[0.0], *(points.true_accepts for points in kept)]) / len(same),
        np.concatenate([[np.inf], *(points.thresholds for points in kept)]),
    )


@dataclass(frozen=True, slots=True)
class _Points:
    """Counts at some thresholds, descending."""

    false_accepts: Floats
    true_accepts: Floats
    thresholds: Floats

    def at(self, places: slice | npt.NDArray[np.int64]) -> _Points:
        return _Points(self.false_accepts[places], self.true_accepts[places], self.thresholds[places])

    def followed_by(self, other: _Points) -> _Points:
        return _Points(
            np.append(self.false_accepts, other.false_accepts),
            np.append(self.true_accepts, other.true_accepts),
            np.append(self.thresholds, other.thresholds),
        )


def _distinct_points(merged: Floats, start: int, same: Floats) -> _Points:
    """One point for each run of equal scores that ends in this block of the descending scores."""
    stop = min(start + _SCORES_AT_ONCE, len(merged))
    last_of_equals = merged[start : stop - 1] != merged[start + 1 : stop]
    ends = start + np.flatnonzero(np.append(last_of_equals, stop == len(merged) or merged[stop - 1] != merged[stop]))
    thresholds = merged[ends]
    true_accepts = len(same) - np.searchsorted(same, thresholds, side="left")
    return _Points((ends + 1 - true_accepts).astype(np.float64), true_accepts.astype(np.float64), thresholds)


def nearest_point(points: RocPoints, far: float) -> NearestPoint:
    """The point with the false-accept rate nearest to `far`; of several, the one with the highest rate of both."""
    last = len(points.false_accept_rates) - 1
    place = last - int(np.argmin(np.abs(points.false_accept_rates[::-1] - far)))
    return NearestPoint(
        float(points.true_accept_rates[place]), float(points.false_accept_rates[place]), float(points.thresholds[place])
    )


def thinned(points: RocPoints, count: int = 1000) -> tuple[Floats, Floats]:
    """Rates of at most about `count` points for drawing, evenly spaced in the logarithm of the false-accept rate.

    Between two points that are left, the curve is a step: of every stretch its last point is kept.
    """
    rates = points.false_accept_rates
    if len(rates) <= count:
        return rates, points.true_accept_rates
    positive = rates[rates > 0]
    goals = np.geomspace(positive[0], 1.0, count - 1)
    places = np.unique(np.searchsorted(rates, np.append(0.0, goals), side="right") - 1)
    return rates[places], points.true_accept_rates[places]
