"""IJB-B and IJB-C as a benchmark: images are embedded on all ranks, rates are computed on the main one."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adadistill.core.scoring.benchmark import BenchmarkKind, ScoringTerms

if TYPE_CHECKING:
    from torch import nn

    from adadistill.core.scoring.embedding import Forward
    from adadistill.core.scoring.embedding_cache import EmbeddingCache
    from adadistill.core.scoring.result import BenchmarkResult
    from adadistill.loaders.evaluation_sets.ijb.sets import IjbSet

_PUBLISHED_KEY = re.compile(r"(Norm:(?:True|False)_Det:(?:True|False))_tpr_at_fpr_(\S+)")
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class IjbBenchmark:
    """A set, all of it read but its images."""

    dataset: IjbSet
    image_size: int
    data_sha256: str
    block_rows: int = 2048
    """Images that a rank embeds between two gatherings."""

    @property
    def kind(self) -> BenchmarkKind:
        return IJB

    @property
    def name(self) -> str:
        return self.dataset.name

    @property
    def settings(self) -> Mapping[str, Any]:
        from adadistill.core.scoring.ijb.pooling import ALL_MODES

        return {"modes": [mode.name for mode in ALL_MODES], "flip": "sum of raw embeddings"}

    def score(self, network: nn.Module, forward: Forward, *, cache: EmbeddingCache | None = None) -> BenchmarkResult:
        """As `Benchmark.score`, 1:1 and, where the set has it, 1:N. An embedding of zero is refused too.

        Memory on the main rank, for IJB-C: 2 GB of embeddings while they are put together, then under 4 GB.
        """
        from adadistill.core.distributed import run_on_main
        from adadistill.core.scoring.embedding import embed_set
        from adadistill.core.scoring.ijb.scoring import score_ijb

        begun = time.perf_counter()
        embeddings = embed_set(
            self.name, self.dataset.images, network, forward,
            image_size=self.image_size, data_sha256=self.data_sha256, cache=cache, block_rows=self.block_rows,
        )  # fmt: skip
        embedded = time.perf_counter()

        def score() -> BenchmarkResult:
            assert embeddings is not None, "this is the main rank"
            annotations, note = self.dataset.annotations, self.dataset.unlike_published()
            result = score_ijb(embeddings, annotations, data_sha256=self.data_sha256, note=note)
            return replace(result, seconds={"embed": embedded - begun, "score": time.perf_counter() - embedded})

        return run_on_main(score, forward.ranks)


def _open(folder: Path, terms: ScoringTerms) -> IjbBenchmark:
    """Rank 0 computes the hash, which reads prepared sets whole, and warns."""
    from adadistill.core.distributed import run_on_main
    from adadistill.loaders.evaluation_sets.ijb.sets import open_ijb

    dataset = open_ijb(folder)
    problem = dataset.annotations.detector_problem
    if problem is not None and terms.ranks.is_main:
        _log.warning("%s: scores with Det:True will be withheld: %s", folder, problem)
    return IjbBenchmark(
        dataset=dataset, image_size=terms.image_size, data_sha256=run_on_main(dataset.sha256, terms.ranks)
    )


def _published(result: BenchmarkResult) -> dict[str, dict[str, float]] | None:
    """By pooling mode, as its rows are never set beside another's."""
    from adadistill.loaders.evaluation_sets.ijb.sets import PUBLISHED_COUNTS

    known = PUBLISHED_COUNTS.get(result.name[:4].lower(), {})
    if known.get("pairs", -1) != result.counts.get("pairs"):
        return None
    found: dict[str, dict[str, float]] = {}
    for score in result.scores:
        match = _PUBLISHED_KEY.fullmatch(score.key.removeprefix(f"ijb.{result.name}."))
        if match is not None and score.value is not None:
            far = {"0.0001": "1e-4", "1e-05": "1e-5"}.get(match[2], match[2])
            found.setdefault(match[1], {})[f"{result.name[:4].upper()} {far}"] = score.value
    return found


IJB = BenchmarkKind(
    name="ijb",
    open=_open,
    metavar="FOLDER",
    help="IJB-B or IJB-C, original or prepared",
    without_merit=("_thresh_at_fpr_",),
    published=_published,
)
