"""Verification sets as a benchmark: decoded once, each rank its share, then scored as often as a run wants.

All ranks gather the embeddings and hold the same numbers, so that nobody waits for rank 0.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adadistill.core.scoring.benchmark import BenchmarkKind, ScoringTerms
from adadistill.core.scoring.published import PUBLISHED_PAIRS
from adadistill.core.scoring.tables import aligned_table

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from torch import Tensor, nn

    from adadistill.core.distributed import Ranks
    from adadistill.core.scoring.embedding import Forward
    from adadistill.core.scoring.embedding_cache import EmbeddingCache
    from adadistill.core.scoring.result import BenchmarkResult


_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class VerificationBenchmark:
    """A verification set as pixels, all of it or one rank's share."""

    name: str
    images_u8: Tensor
    """(n, H, W, 3) uint8 RGB: images [first, first + n) of the set."""
    same: npt.NDArray[np.bool_]
    """(P,) bool; the set has 2P images, pair i is images 2i and 2i + 1."""
    data_sha256: str = ""
    first: int = 0
    decode_s: float = 0.0
    """Seconds that reading and decoding took here."""
    far: float = 1e-3
    intervals: bool = True

    @property
    def kind(self) -> BenchmarkKind:
        return VERIFICATION

    @property
    def settings(self) -> Mapping[str, Any]:
        from adadistill.core.scoring.verification_numbers import PROTOCOL

        return {"far": self.far, "protocol": PROTOCOL}

    def score(self, network: nn.Module, forward: Forward, *, cache: EmbeddingCache | None = None) -> BenchmarkResult:
        """As `Benchmark.score`. The images are few: they are embedded anew, whatever the cache holds."""
        import numpy as np

        from adadistill.core.scoring.embedding import embed_share
        from adadistill.core.scoring.pair_metrics import check_finite, flip_sum, mean_norm
        from adadistill.core.scoring.verification_scores import score_verification

        begun = time.perf_counter()
        own, total = self._share(forward.ranks), 2 * len(self.same)
        plain, mirrored = (
            embed_share(network, own, total, forward, mirrored=flip).numpy() for flip in (False, True)
        )  # (2P, D)
        check_finite(self.name, np.concatenate([plain, mirrored], axis=1))
        result = score_verification(
            self.name,
            flip_sum(plain, mirrored),
            self.same,
            xnorm=mean_norm(plain, mirrored),
            far=self.far,
            intervals=self.intervals,
        )
        seconds = {"decode": self.decode_s, "embed": time.perf_counter() - begun - result.seconds["score"]}
        return replace(result, data_sha256=self.data_sha256, seconds={**seconds, **result.seconds})

    def _share(self, ranks: Ranks) -> Tensor:
        """The images that this rank embeds.

        Raises:
            ValueError: they were not decoded here.
        """
        from adadistill.core.distributed import rank_share

        start, stop = rank_share(2 * len(self.same), ranks.rank, ranks.world_size)
        end = self.first + len(self.images_u8)
        if start < self.first or stop > end:
            raise ValueError(
                f"verification set {self.name} holds images [{self.first}, {end}), this rank needs [{start}, {stop}); "
                "open it for the same rank and world size"
            )
        return self.images_u8[start - self.first : stop - self.first]


def open_verification(path: str | Path, terms: ScoringTerms) -> VerificationBenchmark:
    """Read a set and decode this rank's share of it, which divides time and memory (6,000 pairs are 450 MB of pixels).

    Args:
        path: a `.bin` file, or CVLface's Arrow folder; its stem, or its name, names the set.

    Raises:
        OSError: a file cannot be read.
        VerificationSetError: it is no verification set.
        ArrowMissingError: a folder, and pyarrow is not installed.
        ImageDecodeError: an image is damaged.
    """
    import torch

    from adadistill.core.distributed import rank_share
    from adadistill.loaders.evaluation_sets.verification_pairs import decode_pairs, read_verification_set

    begun, ranks = time.perf_counter(), terms.ranks
    pairs = read_verification_set(path)
    published = PUBLISHED_PAIRS.get(pairs.name, len(pairs.same))
    if published != len(pairs.same) and ranks.is_main:
        _log.warning(
            "%s holds %d pairs, the published set %s has %d: its numbers do not compare with published ones",
            path, len(pairs.same), pairs.name, published,
        )  # fmt: skip
    first, stop = rank_share(len(pairs.images), ranks.rank, ranks.world_size)
    pixels = decode_pairs(pairs, terms.image_size, first=first, stop=stop)
    return VerificationBenchmark(
        name=pairs.name,
        images_u8=torch.from_numpy(pixels),
        same=pairs.same,
        data_sha256=pairs.sha256,
        first=first,
        decode_s=time.perf_counter() - begun,
        far=terms.far,
        intervals=terms.intervals,
    )


def _published(result: BenchmarkResult) -> dict[str, dict[str, float]] | None:
    from adadistill.core.scoring.published import VERIFICATION as PROTOCOL

    if PUBLISHED_PAIRS.get(result.name, -1) != result.counts.get("pairs"):
        return None
    value = result[result.headline].value
    return {} if value is None else {PROTOCOL: {result.name: value}}


def _table(results: Sequence[BenchmarkResult]) -> str:
    """One row a set, then one line for each number that is missing or needs care."""
    sets = [result.details for result in results]
    far = sets[0]["far_target"]
    head = ["set", "pairs", "accuracy %", "threshold"]
    head += [f"TAR@FAR={far:g} 10-fold %", f"TAR@FAR={far:g} strict %", "AUC", "EER %", "XNorm"]
    rows = [
        [
            one["name"],
            str(one["pairs"]),
            _with_deviation(one["accuracy"], one["accuracy_std"]),
            f"{one['threshold']:.2f}",
            _with_deviation(one["tar_10fold"], one["tar_10fold_std"]),
            _cell(one["tar_strict"], 100.0, ".2f"),
            _cell(one["auc"], 1.0, ".5f"),
            _cell(one["eer"], 100.0, ".2f"),
            _cell(one["xnorm"], 1.0, ".4g"),
        ]
        for one in sets
    ]
    notes = [f"{one['name']}: {field}: {why}" for one in sets for field, why in one["notes"].items()]
    return "\n".join([aligned_table(head, rows), *notes])


def _cell(value: float | None, factor: float, form: str) -> str:
    return "-" if value is None else format(factor * value, form)


def _with_deviation(rate: float | None, deviation: float | None) -> str:
    return "-" if rate is None or deviation is None else f"{100.0 * rate:.2f} +- {100.0 * deviation:.2f}"


VERIFICATION = BenchmarkKind(
    name="verification",
    open=open_verification,
    metavar="SET",
    help="verification sets: .bin files, Arrow folders",
    large=False,
    percent_in_csv=False,
    flat=True,
    without_merit=(".Accuracy-Std", ".Threshold", ".XNorm"),
    lower_is_better=(".EER",),
    table=_table,
    published=_published,
)
