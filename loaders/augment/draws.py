"""Augmentation parameters, drawn from (seed, epoch, record id) alone.

Whatever the batch, the rank or the resume, a record of an epoch gets the same parameters, so that every pipeline (DALI,
CPU) applies the same ones, and a row of the teacher cache can be looked up by record and mirror flag. The draw is a
counter-based hash (SplitMix64's finaliser, applied to the words in turn), evaluated for a whole batch at once.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

_GOLDEN_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_MIRROR_STREAM = 1


def mirror_flags(seed: int, epoch: int, record_ids: npt.NDArray[np.int64], probability: float) -> npt.NDArray[np.bool_]:
    """Which images are flipped left to right.

    Args:
        seed: of the augmentation stream, in [0, 2^63).
        epoch: 0-based.
        record_ids: (n,) int64.
        probability: share flipped; 0 and 1 are exact.

    Returns:
        (n,) bool.
    """
    return uniform_draws(seed, epoch, record_ids, stream=_MIRROR_STREAM) < probability


def uniform_draws(seed: int, epoch: int, record_ids: npt.NDArray[np.int64], *, stream: int) -> npt.NDArray[np.float64]:
    """(n,) float64 in [0, 1), independent over seeds, epochs, records and streams (one stream per parameter)."""
    state = np.zeros(len(record_ids), dtype=np.uint64)
    for word in (np.uint64(seed), np.uint64(stream), np.uint64(epoch), record_ids.astype(np.uint64)):
        state = _mix((state ^ word) + _GOLDEN_GAMMA)
    return (state >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mix(state: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))
