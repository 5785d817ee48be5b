"""Closed-set identification: at which rank each probe finds the first gallery image of its own person.

The published code sorts the whole (P, G) score matrix, 2.35 GB for TinyFace, and looks whether a mate is among the
first k. Here a probe's best mate is found first, among the few gallery images whose label any probe has, and then all
that comes before it is counted, a block of scores at a time: one number per probe answers every k, exactly.

Ties are those of the published order, a reversed ascending sort: of equal scores the one later in the gallery comes
first. As distractors stand behind the mates, a network that gives everything the same embedding finds nobody.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Floats = npt.NDArray[np.floating[Any]]
Integers = npt.NDArray[np.int64]

MAX_BLOCK_SCORES = 1 << 21
"""Scores in memory at once: 16 MiB. With unit rows of 512 columns and comparisons, TinyFace takes under 200 MiB beside
its embeddings; four times as many took 400 MiB, and longer on one core."""


def mate_ranks(
    embeddings: Floats,
    probes: Integers,
    probe_labels: Integers,
    gallery: Integers,
    gallery_labels: Integers,
    *,
    device: torch.device | None = None,
    block_scores: int = MAX_BLOCK_SCORES,
) -> Integers:
    """Rank, from 1, of each probe's first mate in the gallery ordered by cosine; 0 for a probe without a mate.

    Args:
        embeddings: (N, D), any length, finite; a zero row has cosine 0 with everything.
        probes: (P,) rows of the embeddings.
        probe_labels: (P,).
        gallery: (G,) rows of the embeddings, in gallery order, which decides ties.
        gallery_labels: (G,); a label that no probe has is a distractor's.
        device: that computes, in float64; default the CPU.
        block_scores: scores in memory at once. Changes memory and speed; ranks as far as rounding decides a near tie.

    Returns:
        (P,) int64.
    """
    place = device or torch.device("cpu")
    ranks = np.zeros(len(probes), dtype=np.int64)
    candidate = np.isin(gallery_labels, probe_labels)
    mates, others = np.flatnonzero(candidate), np.flatnonzero(~candidate)  # positions in the gallery
    if len(mates) == 0:
        return ranks
    probe_rows = max(1, min(1024, block_scores // len(mates)))
    for first in range(0, len(probes), probe_rows):
        block = slice(first, first + probe_rows)
        units = _unit_rows(embeddings, probes[block], place)  # (b, D)
        scores = units @ _unit_rows(embeddings, gallery[mates], place).T  # (b, M)
        positions = torch.from_numpy(mates).to(place)
        own = torch.from_numpy(gallery_labels[mates]).to(place) == torch.from_numpy(probe_labels[block, None]).to(place)
        best, last = _best_mate(scores, own, positions)
        before = _count_before(scores, positions, best, last)  # (b,)
        others_at_once = max(1, block_scores // len(units))
        for start in range(0, len(others), others_at_once):
            part = others[start : start + others_at_once]
            scores = units @ _unit_rows(embeddings, gallery[part], place).T  # (b, n)
            before += _count_before(scores, torch.from_numpy(part).to(place), best, last)
        ranks[block] = torch.where(own.any(dim=1), before + 1, 0).cpu().numpy()
    return ranks


def _unit_rows(embeddings: Floats, rows: Integers, device: torch.device) -> Tensor:
    """Some rows as float64 unit rows on the device; zero rows stay zero."""
    chosen = torch.from_numpy(embeddings[rows]).to(device).double()
    norms = chosen.norm(dim=1, keepdim=True)
    return chosen / torch.where(norms == 0.0, 1.0, norms)


def _best_mate(scores: Tensor, own: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Score of each probe's best mate, and of equals the last position; means nothing for a probe without mates."""
    of_mates = scores.where(own, -torch.inf)
    best = of_mates.amax(dim=1)  # (b,)
    last = positions.where(of_mates == best[:, None], -1).amax(dim=1)
    return best, last


def _count_before(scores: Tensor, positions: Tensor, best: Tensor, last: Tensor) -> Tensor:
    """How many of the (b, n) scores come before each probe's best mate."""
    ahead = scores > best[:, None]
    ahead |= (scores == best[:, None]) & (positions > last[:, None])
    return ahead.sum(dim=1)
