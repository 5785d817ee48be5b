"""TinyFace as a benchmark: images are embedded on all ranks, each probe's mates are searched on the main one."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adadistill.core.scoring.benchmark import BenchmarkKind, ScoringTerms

if TYPE_CHECKING:
    from torch import nn

    from adadistill.core.scoring.embedding import Forward
    from adadistill.core.scoring.embedding_cache import EmbeddingCache
    from adadistill.core.scoring.result import BenchmarkResult
    from adadistill.loaders.evaluation_sets.tinyface import TinyFace


@dataclass(frozen=True, kw_only=True, slots=True)
class TinyFaceBenchmark:
    """A test set, its lists read and the headers of all its images."""

    dataset: TinyFace
    image_size: int
    data_sha256: str
    inspect_s: float = 0.0
    """Seconds that reading all images took."""
    block_rows: int = 2048
    """Images that a rank embeds between two gatherings."""

    @property
    def kind(self) -> BenchmarkKind:
        return TINYFACE

    @property
    def name(self) -> str:
        return self.dataset.name

    @property
    def settings(self) -> Mapping[str, Any]:
        return {"flip": "sum of raw embeddings"}

    def score(self, network: nn.Module, forward: Forward, *, cache: EmbeddingCache | None = None) -> BenchmarkResult:
        """As `Benchmark.score`.

        Memory on the main rank: two blocks of 77 MB of pixels, all embeddings (323 MB for 512 columns, twice that
        while they are put together) and under 200 MiB of scores.
        """
        from adadistill.core.distributed import run_on_main
        from adadistill.core.scoring.embedding import embed_set
        from adadistill.core.scoring.tinyface.scoring import score_tinyface
        from adadistill.loaders.evaluation_sets.image_sets import AlignedImages

        begun = time.perf_counter()
        embeddings = embed_set(
            self.name, AlignedImages(self.dataset.images), network, forward,
            image_size=self.image_size, data_sha256=self.data_sha256, cache=cache, block_rows=self.block_rows,
        )  # fmt: skip
        seconds = {"inspect": self.inspect_s, "embed": time.perf_counter() - begun}

        def score() -> BenchmarkResult:
            assert embeddings is not None, "this is the main rank"
            return score_tinyface(
                self.dataset, embeddings, data_sha256=self.data_sha256, seconds=seconds, device=forward.ranks.device
            )

        return run_on_main(score, forward.ranks)


def _open(folder: Path, terms: ScoringTerms) -> TinyFaceBenchmark:
    """Rank 0 reads every image, for its header and for the hash."""
    from adadistill.core.distributed import run_on_main
    from adadistill.loaders.evaluation_sets.tinyface import open_tinyface

    dataset, begun = open_tinyface(folder), time.perf_counter()
    sha256 = run_on_main(lambda: dataset.inspect(terms.image_size), terms.ranks)
    return TinyFaceBenchmark(
        dataset=dataset,
        image_size=terms.image_size,
        data_sha256=sha256,
        inspect_s=time.perf_counter() - begun,
    )


def _published(result: BenchmarkResult) -> dict[str, dict[str, float]] | None:
    from adadistill.core.scoring.published import RANKS
    from adadistill.loaders.evaluation_sets.tinyface import PUBLISHED_COUNTS

    if result.counts.get("probes") != PUBLISHED_COUNTS["probes"]:
        return None
    ranks = {score.key.rpartition(".")[2]: score.value for score in result.scores}
    return {RANKS: {f"tinyface {rank}": value for rank, value in ranks.items() if value is not None}}


TINYFACE = BenchmarkKind(
    name="tinyface", open=_open, metavar="FOLDER", help="TinyFace's test set", published=_published
)
