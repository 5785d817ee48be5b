"""Distances of pairs of embeddings, and rates over all pairs that keep their promise.

`tar_at_far` has its false-accept rate really at or under the target and is withheld where the set has too few different
pairs to know. A number that means nothing is None, and a reason stands in its place: embeddings that are all alike, or
a false-accept rate that scores cannot meet (`misses_target`). The published ten-fold numbers, which must not be mixed
with these, are in `ten_fold.py`. Pairs are compared by the squared L2 distance of unit embeddings, 2 - 2 cos, in
[0, 4]; everything is float64 on the host.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from adadistill.loaders.errors import WorkFailed

Floats = npt.NDArray[np.floating[Any]]
Bools = npt.NDArray[np.bool_]

ALIKE = "all pairs score alike, up to rounding, as those of a network that is constant or all zero"
"""Why nothing is reported of such a network."""
_ROUNDING = 1e-6
"""Squared distance below which unit embeddings are the same: what float32 leaves of equal rows is 1e-7 at most."""


@dataclass(frozen=True, slots=True)
class OperatingPoint:
    """Strict true-accept rate over all pairs at a bounded false-accept rate."""

    tar: float | None
    """Share of same pairs accepted; None where it is withheld."""
    far: float | None
    """Share of different pairs accepted, at most the target."""
    threshold: float | None
    """A pair is accepted when its score is greater than this."""
    reason: str | None
    """Why the rate is withheld; None where it is given."""


class NonFiniteEmbeddingsError(WorkFailed, ValueError):
    """Embeddings of a verification set are NaN or infinite; no score can be trusted."""


def flip_sum(embeddings: Floats, mirrored_embeddings: Floats) -> npt.NDArray[np.float64]:
    """Fuse both versions of each image as published: sum of the raw embeddings, then unit length.

    Args:
        embeddings: (N, D) raw, of the images as stored.
        mirrored_embeddings: (N, D) raw, of the images flipped left to right.

    Returns:
        (N, D) float64 unit rows; a sum of exactly zero stays zero.
    """
    return unit_rows(embeddings.astype(np.float64) + mirrored_embeddings.astype(np.float64))


def mean_norm(embeddings: Floats, mirrored_embeddings: Floats) -> float:
    """XNorm: mean L2 norm over the raw (N, D) embeddings of both versions."""
    both = np.concatenate([embeddings, mirrored_embeddings]).astype(np.float64)  # (2N, D)
    return float(np.linalg.norm(both, axis=1).mean())


def check_finite(name: str, embeddings: Floats) -> None:
    """Refuse (2P, D) embeddings with a NaN or an infinity, naming set, image and pair.

    Raises:
        NonFiniteEmbeddingsError: names the first of them and says how many there are.
    """
    damaged = np.flatnonzero(~np.isfinite(embeddings).all(axis=1))
    if damaged.size:
        first = int(damaged[0])
        raise NonFiniteEmbeddingsError(
            f"verification set {name}: {damaged.size} of {len(embeddings)} embeddings are not finite, first image "
            f"{first} (pair {first // 2}). The network gives NaN or infinity; its weights are the place to look"
        )


def alike(embeddings: Floats) -> bool:
    """Whether several (N, D) rows all have one direction, up to rounding, or none: no score then tells anything."""
    first = unit_rows(embeddings[:1])
    blocks = (unit_rows(embeddings[start : start + 4096]) for start in range(0, len(embeddings), 4096))
    return len(embeddings) > 1 and all(
        bool((np.square(rows - first).sum(axis=1) <= _ROUNDING).all()) for rows in blocks
    )


def all_equal(scores: Floats) -> bool:
    """Whether the scores of several pairs, squared distances or cosines, are one but for rounding."""
    return bool(np.ptp(scores) <= _ROUNDING)


def misses_target(negatives: Floats, rate: float, *, kind: str = "different pairs", name: str = "FAR") -> str | None:
    """Why no threshold meets a false-accept rate; None where one does.

    Scores that tie are accepted together, so that the count of false accepts jumps over the target. A rate is missed
    where the nearest count lies beyond a factor of two of the one asked for, and is not its neighbour: one pair more
    or less is what the size of a set leaves open, and published protocols report it.

    Args:
        negatives: (n,) scores of different pairs, or of probes that are not in a gallery, descending.
        rate: target, in (0, 1].
    """
    count, wanted = len(negatives), rate * len(negatives)
    if count == 0:
        return f"no {kind}"
    score = negatives[max(math.floor(wanted + 1e-9), 1) - 1]
    ascending = negatives[::-1]
    reachable = [count - int(np.searchsorted(ascending, score, side=side)) for side in ("right", "left")]
    if any(meets(found, wanted) for found in reachable):
        return None
    return (
        f"{reachable[1] - reachable[0]} of {count} {kind} have the same score: {name} can be "
        f"{reachable[0] / count:.3g} or {reachable[1] / count:.3g}, not {rate:g}"
    )


def too_few(count: int, rate: float, *, kind: str = "different pairs", name: str = "FAR") -> str | None:
    """Why `count` scores cannot tell a false-accept rate: one accept exceeds it; None where they can."""
    if count * rate >= 1.0 - 1e-9:
        return None
    return f"{count} {kind}, {math.ceil(1.0 / rate - 1e-9)} are needed for {name} {rate:g}"


def pair_distances(unit_embeddings: Floats) -> npt.NDArray[np.float64]:
    """(2P, D) unit rows -> (P,) squared L2 distance of rows 2i and 2i + 1."""
    rows = unit_embeddings.astype(np.float64)
    return np.square(rows[0::2] - rows[1::2]).sum(axis=1)


def tar_at_far(scores: Floats, same: Bools, *, far: float = 1e-4) -> OperatingPoint:
    """Verification rate over all pairs at a false-accept rate that is met, never exceeded.

    Args:
        scores: (P,) similarities, larger for more alike (for distances, their negatives).
        same: (P,) bool.
        far: target, in (0, 1]. Among equal scores all are accepted or none.

    Returns:
        The rate, or the reason why it is withheld: no same pairs, or fewer different pairs than 1 / far, so that one
        false accept would already exceed the target and the rate would be a guess, or ties (`misses_target`).
    """
    check_pairs(scores, same, at_least=0)
    check_far(far)
    return operating_point(-np.sort(-scores[~same].astype(np.float64)), scores[same].astype(np.float64), far=far)


def operating_point(negatives: Floats, positives: Floats, *, far: float) -> OperatingPoint:
    """`tar_at_far` of scores that are apart already.

    Args:
        negatives: of different pairs, descending.
        positives: of same pairs, in any order.
        far: target, in (0, 1].
    """
    check_far(far)
    # 1e-9 keeps a product such as 0.001 * 3000, which may round below 3, at 3 allowed accepts.
    allowed = math.floor(far * len(negatives) + 1e-9)
    if len(positives) == 0:
        return OperatingPoint(None, None, None, "no same pairs")
    if allowed < 1:
        return OperatingPoint(None, None, None, too_few(len(negatives), far))
    if all_equal(np.array([negatives[0], negatives[-1], positives.min(), positives.max()])):
        return OperatingPoint(None, None, None, ALIKE)
    threshold = negatives[allowed] if allowed < len(negatives) else -math.inf
    met = float((negatives > threshold).mean())
    if not meets(met * len(negatives), allowed):
        reason = misses_target(negatives, far) or f"different pairs tie: FAR is {met:.3g} where {far:g} is asked for"
        return OperatingPoint(None, None, None, reason)
    return OperatingPoint(
        tar=float((positives > threshold).mean()),
        far=met,
        threshold=float(threshold),
        reason=None,
    )


def area_under_roc(scores: Floats, same: Bools) -> float:
    """Probability that a same pair scores above a different pair, ties counted half.

    Args:
        scores: (P,) similarities.
        same: (P,) bool.

    Raises:
        ValueError: there are only same or only different pairs.
    """
    from sklearn.metrics import auc

    return float(auc(*roc_curve(scores, same)))


def roc_curve(scores: Floats, same: Bools) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """False- and true-accept rates from accepting nothing to accepting everything, one point per distinct score.

    Args:
        scores: (P,) similarities.
        same: (P,) bool.

    Returns:
        Two ascending arrays of one length; among equal scores all are accepted or none.

    Raises:
        ValueError: there are only same or only different pairs.
    """
    from sklearn import metrics

    check_pairs(scores, same, at_least=0)
    if same.all() or not same.any():
        raise ValueError(f"a ROC curve needs same and different pairs, got {int(same.sum())} same of {len(same)}")
    false_rates, true_rates, _ = metrics.roc_curve(same, scores, drop_intermediate=False)
    return false_rates, true_rates


def equal_error_rate(scores: Floats, same: Bools) -> float:
    """Error rate where false accepts equal false rejects, linear between neighbouring operating points.

    Args:
        scores: (P,) similarities.
        same: (P,) bool.

    Raises:
        ValueError: there are only same or only different pairs.
    """
    false_accepts, true_accepts = roc_curve(scores, same)
    false_rejects = 1.0 - true_accepts
    excess = false_accepts - false_rejects  # rises from -1 to 1
    after = int(np.argmax(excess >= 0.0))
    step = excess[after] - excess[after - 1]
    weight = -excess[after - 1] / step  # 0: the point before, 1: the point after
    return float(false_accepts[after - 1] + weight * (false_accepts[after] - false_accepts[after - 1]))


def unit_rows(embeddings: Floats) -> npt.NDArray[np.float64]:
    """(N, D) rows at unit length in float64; a row of zeros stays one."""
    rows = embeddings.astype(np.float64)  # (N, D)
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(norms == 0.0, 1.0, norms)


def meets(count: float, wanted: float) -> bool:
    """The rule of `misses_target`."""
    return abs(count - wanted) <= 1.0 + 1e-9 or wanted / 2 <= count <= wanted * 2


def check_pairs(values: Floats, same: Bools, *, at_least: int) -> None:
    """Refuse (P,) values and flags of other shapes, of too few pairs, or not finite. Raises ValueError."""
    if values.shape != same.shape or values.ndim != 1 or same.dtype != np.bool_:
        raise ValueError(f"values {values.shape} and flags {same.shape} {same.dtype} must be (P,) and (P,) bool")
    if len(same) < at_least:
        raise ValueError(f"{len(same)} pairs; at least {at_least} are needed")
    if not np.isfinite(values).all():
        raise ValueError(f"{int((~np.isfinite(values)).sum())} of {len(values)} values are not finite")


def check_far(far: float) -> None:
    """Refuse a false-accept rate outside (0, 1]. Raises ValueError."""
    if not 0.0 < far <= 1.0:
        raise ValueError(f"far must be in (0, 1], got {far}")
