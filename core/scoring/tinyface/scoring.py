"""From embeddings of TinyFace's images to its identification rates."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from adadistill.core.scoring.pair_metrics import ALIKE, NonFiniteEmbeddingsError, alike
from adadistill.core.scoring.result import BenchmarkResult, Score
from adadistill.core.scoring.tinyface.mate_ranks import Floats, mate_ranks
from adadistill.loaders.evaluation_sets.tinyface import PUBLISHED_COUNTS, TinyFace

RANKS = (1, 5, 20)
"""Those everybody reports."""

WORST_CASES = 10

RESAMPLES = 2000

_PROTOCOL = (
    "closed set; sum of the raw embeddings of both mirror images, then cosine; any mate among the first {rank}; "
    "mean over probes that have a mate; of equal scores the one later in the gallery first"
)


def score_tinyface(
    tinyface: TinyFace,
    embeddings: Floats,
    *,
    data_sha256: str,
    seconds: Mapping[str, float] | None = None,
    device: torch.device | None = None,
    seed: int = 0,
) -> BenchmarkResult:
    """All scores of embedded images.

    Args:
        embeddings: (N, D), the sum of the raw embeddings of each image and of its mirror image.
        data_sha256: of the images and lists (`TinyFace.inspect`).
        seconds: spent so far, by stage; `score` is added.
        device: that computes the scores, in float64; default the CPU.
        seed: of the 95 % bootstrap intervals over probes. Resampling probes that are found or not is a binomial draw.

    Raises:
        NonFiniteEmbeddingsError: names the first image whose embedding is NaN or infinite.
        ValueError: not one embedding for each image.
    """
    if embeddings.ndim != 2 or len(embeddings) != len(tinyface.images):
        raise ValueError(f"{tinyface.name}: embeddings {embeddings.shape} of {len(tinyface.images)} images")
    _check_finite(tinyface, embeddings)
    started = time.perf_counter()
    found_at = mate_ranks(
        embeddings,
        tinyface.probes,
        tinyface.probe_labels,
        tinyface.gallery,
        tinyface.gallery_labels,
        device=device,
    )
    mated = found_at[found_at > 0]
    withheld = ALIKE if alike(embeddings) else None
    note = withheld or _note(tinyface, embeddings)
    random = np.random.default_rng(seed)
    scores = []
    for rank in RANKS:
        share = float((mated <= rank).mean())
        low, high = np.quantile(random.binomial(len(mated), share, size=RESAMPLES) / len(mated), [0.025, 0.975])
        scores.append(
            Score(
                key=f"tinyface.{tinyface.name}.rank-{rank}",
                label=f"rank-{rank}",
                value=None if withheld else share,
                interval=None if withheld else (float(low), float(high)),
                protocol=_PROTOCOL.format(rank=rank),
                note=note,
            )
        )
    return BenchmarkResult(
        kind="tinyface",
        name=tinyface.name,
        data_sha256=data_sha256,
        counts={**tinyface.counts, "probes with a mate": len(mated)},
        scores=tuple(scores),
        headline=scores[0].key,
        errors=() if withheld else _worst_cases(tinyface, found_at),
        seconds={**(seconds or {}), "score": time.perf_counter() - started},
    )


def _note(tinyface: TinyFace, embeddings: Floats) -> str | None:
    zeros = int((~embeddings.any(axis=1)).sum())
    notes = [f"{zeros} embeddings are zero and have no direction"] if zeros else []
    counts = tinyface.counts
    unlike = [f"{counts[name]} {name} ({there})" for name, there in PUBLISHED_COUNTS.items() if counts[name] != there]
    if unlike:
        notes.append(f"not the published set, whose counts are in brackets: {', '.join(unlike)}")
    return "; ".join(notes) or None


def _worst_cases(tinyface: TinyFace, found_at: npt.NDArray[np.int64]) -> tuple[Mapping[str, Any], ...]:
    """The probes that found their mate last, by the number of their image."""
    order = np.argsort(-found_at, kind="stable")[:WORST_CASES]
    return tuple(
        {
            "image": int(tinyface.probes[probe]),
            "probe": int(probe),
            "rank": int(found_at[probe]),
        }
        for probe in order
        if found_at[probe] > 1
    )


def _check_finite(tinyface: TinyFace, embeddings: Floats) -> None:
    damaged = [
        first + np.flatnonzero(~np.isfinite(embeddings[first : first + 8192]).all(axis=1))
        for first in range(0, len(embeddings), 8192)
    ]
    rows = np.concatenate(damaged)
    if rows.size:
        raise NonFiniteEmbeddingsError(
            f"{tinyface.name}: {rows.size} of {len(embeddings)} embeddings are not finite, the first is of "
            f"{tinyface.images.where(int(rows[0]))}. The network gives NaN or infinity; its weights are the place to "
            "look"
        )
