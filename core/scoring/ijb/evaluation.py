"""Scores a network on an IJB set: embeds its images on all ranks, then scores them on the main one."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

from torch import nn

from adadistill.core.distributed import Ranks
from adadistill.core.precision import Precision
from adadistill.core.scoring.embedding_cache import EmbeddingCache, StoredBlocks
from adadistill.core.scoring.evaluation import FLOAT32
from adadistill.core.scoring.extraction import BLOCK_ROWS, Embedder, embed_set
from adadistill.core.scoring.ijb.pooling import ALL_MODES, PoolingMode
from adadistill.core.scoring.ijb.scoring import score_ijb
from adadistill.core.scoring.main_rank import computed_on_main
from adadistill.core.scoring.result import BenchmarkResult
from adadistill.loaders.evaluation_sets.ijb import IjbSet


def evaluate_ijb(
    dataset: IjbSet,
    network: nn.Module,
    *,
    ranks: Ranks,
    batch_size: int = 256,
    precision: Precision = FLOAT32,
    image_size: int = 112,
    modes: Sequence[PoolingMode] = ALL_MODES,
    cache: EmbeddingCache | None = None,
    threads: int | None = None,
    block_rows: int = BLOCK_ROWS,
) -> BenchmarkResult:
    """Score a network, 1:1 and, where the set has it, 1:N. All ranks call this together and get the same result.

    Args:
        dataset: from `open_ijb`.
        network: images (B, 3, H, W) in [-1, 1] RGB -> raw embeddings (B, D), on the ranks' device. Used in eval mode
            without gradients; the mode of every submodule is put back.
        batch_size: images per forward pass and rank.
        precision: of the network and its input, with or without autocast.
        image_size: side of the network's images; prepared sets must have it.
        modes: pooling modes to report.
        cache: keeps embeddings on disk, and reads what is there. None: nothing is kept.
        threads: that decode on each rank; default one per CPU, at most 8.
        block_rows: images that a rank embeds between two gatherings, which is also what a cache stores as one file.

    Raises:
        EmbeddingCacheError: the cache is of another network, other data, or another precision.
        NonFiniteEmbeddingsError: an embedding is NaN, infinite or zero.
        ImageDecodeError, IjbError, OSError: an image is damaged, of another size, or gone.
        An error of the main rank is raised on every rank.

    Memory on the main rank, for IJB-C: 2 GB of embeddings while they are put together, then under 4 GB.
    """
    embedder = Embedder(
        network=network,
        ranks=ranks,
        batch_size=batch_size,
        precision=precision,
        image_size=image_size,
        block_rows=block_rows,
    )
    data_sha256, stored = computed_on_main(lambda: _opened(dataset, embedder, cache), ranks)
    begun = time.perf_counter()
    embeddings = embed_set(
        dataset.name, dataset.images, embedder, stored=stored if ranks.is_main else None, threads=threads
    )
    embedded = time.perf_counter()

    def score() -> BenchmarkResult:
        assert embeddings is not None, "this is the main rank"
        result = score_ijb(
            embeddings, dataset.annotations, data_sha256=data_sha256, modes=modes, note=dataset.unlike_published()
        )
        return replace(result, seconds={"embed": embedded - begun, "score": time.perf_counter() - embedded})

    return computed_on_main(score, ranks)


def _opened(dataset: IjbSet, embedder: Embedder, cache: EmbeddingCache | None) -> tuple[str, StoredBlocks | None]:
    """Hash of the data and, where embeddings are kept, their folder."""
    data_sha256 = dataset.sha256()
    if cache is None:
        return data_sha256, None
    precision = embedder.precision
    blocks = cache.open(
        data_sha256=data_sha256,
        precision=str(precision.autocast_dtype or precision.dtype).removeprefix("torch."),
        image_size=embedder.image_size,
        images=len(dataset.images),
        block_rows=embedder.block_rows,
    )
    return data_sha256, blocks
