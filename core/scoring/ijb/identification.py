"""1:N search: every probe against one gallery, open set (FPIR and TPIR) and closed set (ranks).

Each gallery is searched by all probes; those whose subject is not in it are non-mated. The threshold at a
false-positive identification rate f is the non-mated probes' best score at place max(floor(n f) - 1, 0), descending;
TPIR is the share of mated probes that find their subject first and above it. Galleries are searched apart and their
TPIRs averaged: merging them, as the first public script did, leaves no non-mated probes (AdaFace, issue 169).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from adadistill.core.scoring.pair_metrics import misses_target, too_few

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

FPIRS = (0.01, 0.1)
RANKS = (1, 5, 10)

_PROBES_AT_ONCE = 2048


@dataclass(frozen=True, slots=True)
class GallerySearch:
    """What all probes found in one gallery."""

    mated_probes: int
    non_mated_probes: int
    hits: tuple[int, ...]
    """Mated probes that find their subject within each rank asked for."""
    thresholds: tuple[float | None, ...]
    """At each FPIR asked for; None where there are no non-mated probes."""
    tpirs: tuple[float | None, ...]
    """At each FPIR; None where there are no mated or no non-mated probes."""
    missed: tuple[str | None, ...]
    """At each FPIR: why its TPIR means nothing, as there are too few such probes or their scores tie; None: it does."""


def search_gallery(
    gallery: Floats,
    gallery_subjects: Ints,
    probes: Floats,
    probe_subjects: Ints,
    *,
    fpirs: Sequence[float] = FPIRS,
    ranks: Sequence[int] = RANKS,
) -> GallerySearch:
    """Search one gallery with all probes.

    Args:
        gallery: (G, D) unit rows; gallery_subjects: (G,), each once.
        probes: (n, D) unit rows; probe_subjects: (n,).

    Raises:
        ValueError: the gallery is empty, or holds a subject twice.

    Memory: 16 bytes times G for each of 2,048 probes.
    """
    by_subject = np.argsort(gallery_subjects, kind="stable")
    known = gallery_subjects[by_subject]
    if len(known) == 0 or (known[1:] == known[:-1]).any():
        raise ValueError(f"a gallery of {len(known)} templates is empty or holds a subject twice")
    place = np.minimum(np.searchsorted(known, probe_subjects), len(known) - 1)
    mated = known[place] == probe_subjects  # (n,)
    own = by_subject[place]  # (n,) gallery row of the probe's subject, where it is mated
    best, before = np.empty(len(probes)), np.empty(len(probes), dtype=np.int64)
    for start in range(0, len(probes), _PROBES_AT_ONCE):
        part = slice(start, start + _PROBES_AT_ONCE)
        cosines = probes[part] @ gallery.T  # (probes, G)
        best[part] = cosines.max(axis=1)
        own_cosine = np.take_along_axis(cosines, own[part, None], axis=1)
        before[part] = (cosines > own_cosine).sum(axis=1)
        # To whom the whole gallery scores the same, nobody is found: a tie with everybody is no hit.
        before[part][np.ptp(cosines, axis=1) <= 1e-12] = len(gallery) - 1
    others = -np.sort(-best[~mated])
    thresholds = tuple(
        float(others[max(math.floor(len(others) * fpir) - 1, 0)]) if len(others) else None for fpir in fpirs
    )
    found = best[mated & (before == 0)]
    mated_count = int(mated.sum())
    kind = "non-mated probes"
    missed = tuple(
        "a gallery has no mated probes"
        if mated_count == 0
        else too_few(len(others), fpir, kind=kind, name="FPIR") or misses_target(others, fpir, kind=kind, name="FPIR")
        for fpir in fpirs
    )
    return GallerySearch(
        mated_probes=mated_count,
        non_mated_probes=len(others),
        hits=tuple(int((before[mated] < rank).sum()) for rank in ranks),
        thresholds=thresholds,
        tpirs=tuple(
            None if threshold is None or mated_count == 0 else float((found > threshold).sum() / mated_count)
            for threshold in thresholds
        ),
        missed=missed,
    )
