"""The IJB 1:1 protocol as loops, one template, one medium and one pair at a time: what the fast forms are held to.

Written from the protocol, in the way that public scripts pool; those score pairs in batches.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


def pooled(
    embeddings: npt.NDArray[np.floating], templates: Ints, medias: Ints, scores: Floats, *, norm: bool, det: bool
) -> dict[int, Floats]:
    """Number of each template -> its unit vector, of (N, D) flip sums and (N,) of what is said of each image."""
    rows = embeddings.astype(np.float64)
    if not norm:
        rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    if det:
        rows = rows * scores[:, None]
    vectors = {}
    for template in np.unique(templates):
        (own,) = np.where(templates == template)
        total = np.zeros(rows.shape[1])
        for medium in np.unique(medias[own]):
            total += rows[own][medias[own] == medium].mean(axis=0)
        vectors[int(template)] = total / np.linalg.norm(total)
    return vectors


def cosines(vectors: dict[int, Floats], first: Ints, second: Ints) -> Floats:
    """(P,) of pairs of numbers."""
    return np.array([vectors[int(one)] @ vectors[int(other)] for one, other in zip(first, second, strict=True)])


def nearest_rates(scores: Floats, same: npt.NDArray[np.bool_], fars: tuple[float, ...]) -> list[float]:
    """The published rate at each target, by scikit-learn."""
    from sklearn.metrics import roc_curve

    false_rates, true_rates, _ = roc_curve(same, scores)
    flipped, rates = false_rates[::-1], true_rates[::-1]
    return [float(rates[int(np.argmin(np.abs(flipped - far)))]) for far in fars]
