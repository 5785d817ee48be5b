"""Rates of a 1:1 protocol as published, and the ROC curve behind them.

Published numbers take scikit-learn's `roc_curve`, which leaves out points between collinear neighbours, and from what
is left the true-accept rate at the point whose false-accept rate is nearest to the target, the highest such rate among
equals. The nearest point may lie above the target; a strict rate, which never exceeds it, is
`core.verification.operating_point`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

PUBLISHED_FARS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)


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

    Memory: some 60 (n + m) bytes, and a second for 15 million scores.
    """
    merged = np.concatenate([same, different])
    merged.sort(kind="stable")  # which merges the two runs in one pass
    merged = merged[::-1]
    ends = np.flatnonzero(np.append(merged[1:] != merged[:-1], True))  # of each run of equal scores
    thresholds = merged[ends]
    true_accepts = len(same) - np.searchsorted(same, thresholds, side="left")
    false_accepts = ends + 1 - true_accepts
    if len(ends) > 2:
        bends = (np.diff(false_accepts, 2) != 0) | (np.diff(true_accepts, 2) != 0)
        kept = np.flatnonzero(np.concatenate([[True], bends, [True]]))
        true_accepts, false_accepts, thresholds = true_accepts[kept], false_accepts[kept], thresholds[kept]
    return RocPoints(
        np.append(0.0, false_accepts) / len(different),
        np.append(0.0, true_accepts) / len(same),
        np.append(np.inf, thresholds),
    )


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
