"""Embeddings of pairs drawn at random, for the tests of scores."""

from __future__ import annotations

import numpy as np


def random_pairs(pairs: int, *, seed: int, separation: float = 0.5, dim: int = 16) -> tuple[np.ndarray, np.ndarray]:
    """(2P, D) unit embeddings and (P,) flags; same pairs share `separation` of their direction."""
    draw = np.random.default_rng(seed)
    same = draw.random(pairs) < 0.5
    first, second = draw.normal(size=(2, pairs, dim))
    second[same] = separation * first[same] + (1 - separation) * second[same]
    rows = np.stack([first, second], axis=1).reshape(2 * pairs, dim)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True), same
