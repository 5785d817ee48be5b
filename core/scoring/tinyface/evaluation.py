"""Scores a network on TinyFace: all ranks embed its images, then each probe's mates are searched in the gallery."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from adadistill.core.distributed import Ranks
from adadistill.core.precision import Precision
from adadistill.core.scoring.embedding_cache import EmbeddingCache, StoredBlocks
from adadistill.core.scoring.evaluation import FLOAT32
from adadistill.core.scoring.extraction import BLOCK_ROWS, Embedder, embed_set
from adadistill.core.scoring.main_rank import computed_on_main
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


def evaluate_tinyface(
    tinyface: TinyFace,
    network: nn.Module,
    *,
    ranks: Ranks,
    batch_size: int = 256,
    precision: Precision = FLOAT32,
    image_size: int = 112,
    cache: EmbeddingCache | None = None,
    threads: int | None = None,
    block_rows: int = BLOCK_ROWS,
) -> BenchmarkResult:
    """Score a network. All ranks of a process group call this together and get the same result.

    Args:
        tinyface: of `open_tinyface`.
        network: images (B, 3, H, W) in [-1, 1] RGB -> raw embeddings (B, D). Used in eval mode without gradients; the
            mode of every submodule is put back.
        ranks: who this process is, and the device that the network is on; the main one scores there too.
        batch_size: images per forward pass and rank.
        precision: of the network and its input, with or without autocast.
        image_size: side of the network's images; those of the set must have it.
        cache: keeps embeddings on disk, and reads what is there. None: nothing is kept.
        threads: that decode on each rank; default one per CPU, at most 8.
        block_rows: images that a rank embeds in one round.

    Raises:
        TinyFaceError, OSError, ArrowImagesError: before the network runs, naming an image that cannot be read or is no
            image of that size.
        EmbeddingCacheError: the cache is of another network, other data, or another precision.
        ImageDecodeError: an image is damaged behind a sound header; on the rank that reads it, which ends the launch.
        NonFiniteEmbeddingsError: on every rank, naming the image by its row.
        An error of the main rank is raised on every rank.

    Memory on the main rank: two blocks of 77 MB of pixels, all embeddings (323 MB for 512 columns, twice that while
    they are put together) and under 200 MiB of scores.
    """
    embedder = Embedder(
        network=network,
        ranks=ranks,
        batch_size=batch_size,
        precision=precision,
        image_size=image_size,
        block_rows=block_rows,
    )
    started = time.perf_counter()
    data_sha256, stored = computed_on_main(lambda: _inspected(tinyface, embedder, cache), ranks)
    inspected = time.perf_counter()
    embeddings = embed_set(tinyface.name, tinyface, embedder, stored=stored if ranks.is_main else None, threads=threads)
    seconds = {"inspect": inspected - started, "embed": time.perf_counter() - inspected}

    def score() -> BenchmarkResult:
        assert embeddings is not None, "this is the main rank"
        return tinyface_benchmark(tinyface, embeddings, data_sha256=data_sha256, seconds=seconds, device=ranks.device)

    return computed_on_main(score, ranks)


def tinyface_benchmark(
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


def _inspected(tinyface: TinyFace, embedder: Embedder, cache: EmbeddingCache | None) -> tuple[str, StoredBlocks | None]:
    """Hash of the data, every image's header read; and where embeddings are kept, their folder."""
    data_sha256 = tinyface.inspect(embedder.image_size)
    if cache is None:
        return data_sha256, None
    precision = embedder.precision
    blocks = cache.open(
        data_sha256=data_sha256,
        precision=str(precision.autocast_dtype or precision.dtype).removeprefix("torch."),
        image_size=embedder.image_size,
        images=len(tinyface),
        block_rows=embedder.block_rows,
    )
    return data_sha256, blocks


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
