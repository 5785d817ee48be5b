"""Scores a network on TinyFace: all ranks embed its images, then each probe's mates are searched in the gallery."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adadistill.core.benchmarks.result import BenchmarkResult, Score
from adadistill.core.benchmarks.tinyface.mate_ranks import Floats, mate_ranks
from adadistill.core.distributed import Ranks, gather_rows
from adadistill.core.evaluation import FLOAT32, embed_images, rank_share
from adadistill.core.precision import Precision
from adadistill.core.verification import NonFiniteEmbeddingsError
from adadistill.loaders.tinyface import PUBLISHED_COUNTS, TinyFace

RANKS = (1, 5, 20)
"""Those everybody reports."""

WORST_CASES = 10

RESAMPLES = 2000

_PROTOCOL = (
    "closed set; sum of the raw embeddings of both mirror images, then cosine; any mate among the first {rank}; "
    "mean over probes that have a mate; of equal scores the one later in the gallery first"
)


def evaluate_tinyface(
    network: nn.Module,
    tinyface: TinyFace,
    *,
    ranks: Ranks,
    batch_size: int = 256,
    precision: Precision = FLOAT32,
    image_size: int = 112,
    threads: int | None = None,
) -> BenchmarkResult:
    """Score a network. All ranks of a process group call this together and get equal results.

    Args:
        network: images (B, 3, H, W) in [-1, 1] RGB -> raw embeddings (B, D). Used in eval mode without gradients; the
            mode of every submodule is put back, also after an error.
        tinyface: of `open_tinyface`.
        ranks: who this process is, and the device that the network is on; scores are computed there too.
        batch_size: images per forward pass and rank.
        precision: of the network and its input, with or without autocast.
        image_size: side of the network's images; those of the set must have it.
        threads: that decode on each rank; default one per CPU, at most 8.

    Raises:
        TinyFaceError: on every rank and before the network runs, naming an image that is no image of that size.
        ImageDecodeError: an image is damaged behind a sound header; on the rank that reads it, which ends the launch.
        NonFiniteEmbeddingsError: on every rank, naming the image.

    Memory: two blocks of 77 MB of pixels, all embeddings (323 MB for 512 columns) and 128 MiB of scores.
    """
    started = time.perf_counter()
    data_sha256 = tinyface.inspect(image_size)
    inspected = time.perf_counter()
    embeddings = _flip_sums(network, tinyface, ranks, batch_size, precision, image_size, threads)
    embedded = time.perf_counter()
    seconds = {"inspect": inspected - started, "embed": embedded - inspected}
    return tinyface_benchmark(tinyface, embeddings, data_sha256=data_sha256, seconds=seconds, device=ranks.device)


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
    note = _note(tinyface)
    random = np.random.default_rng(seed)
    scores = []
    for rank in RANKS:
        share = float((mated <= rank).mean())
        low, high = np.quantile(random.binomial(len(mated), share, size=RESAMPLES) / len(mated), [0.025, 0.975])
        scores.append(
            Score(
                key=f"tinyface.{tinyface.name}.rank-{rank}",
                label=f"rank-{rank}",
                value=share,
                interval=(float(low), float(high)),
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
        errors=_worst_cases(tinyface, found_at),
        seconds={**(seconds or {}), "score": time.perf_counter() - started},
    )


def _note(tinyface: TinyFace) -> str | None:
    counts = tinyface.counts
    unlike = [f"{counts[name]} {name} ({there})" for name, there in PUBLISHED_COUNTS.items() if counts[name] != there]
    return f"not the published set, whose counts are in brackets: {', '.join(unlike)}" if unlike else None


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


def _flip_sums(
    network: nn.Module,
    tinyface: TinyFace,
    ranks: Ranks,
    batch_size: int,
    precision: Precision,
    image_size: int,
    threads: int | None,
) -> Floats:
    """(N, D) sums of both mirror images' raw embeddings, on every rank: this rank's share computed, all gathered."""
    alone = replace(ranks, rank=0, world_size=1)

    def embed(pixels: npt.NDArray[np.uint8]) -> Tensor:
        images_u8 = torch.from_numpy(pixels)
        plain, mirrored = (
            embed_images(network, images_u8, ranks=alone, batch_size=batch_size, precision=precision, mirrored=flip)
            for flip in (False, True)
        )
        return plain + mirrored  # (n, D)

    shares = [rank_share(len(tinyface.images), rank, ranks.world_size) for rank in range(ranks.world_size)]
    start, stop = shares[ranks.rank]
    parts = [embed(pixels) for pixels in tinyface.pixel_blocks(start, stop, image_size, threads=threads)]
    if not parts:  # more ranks than images: the width is still needed
        parts = [embed(np.zeros((1, image_size, image_size, 3), dtype=np.uint8))[:0]]
    own = torch.cat(parts)
    if ranks.world_size == 1:
        return own.numpy()
    longest = max(last - first for first, last in shares)
    padded = F.pad(own, (0, 0, 0, longest - len(own))).to(ranks.device)
    gathered = gather_rows(padded, ranks).cpu().split(longest)
    return torch.cat([rows[: last - first] for rows, (first, last) in zip(gathered, shares, strict=True)]).numpy()
