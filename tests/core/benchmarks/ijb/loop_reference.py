"""The IJB protocols as slow loops, one template and one pair at a time: what the fast forms are held to."""

from __future__ import annotations

import numpy as np


def pooled(
    embeddings: np.ndarray, templates: np.ndarray, medias: np.ndarray, scores: np.ndarray, *, norm: bool, det: bool
) -> dict[int, np.ndarray]:
    """Number of each template -> its unit vector."""
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


def cosines(vectors: dict[int, np.ndarray], first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """(P,)."""
    return np.array([vectors[int(one)] @ vectors[int(other)] for one, other in zip(first, second, strict=True)])
