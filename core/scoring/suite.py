"""The benchmarks that a network is to be scored on, opened and checked before any of them costs time."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from torch import nn

from adadistill.core.distributed import Ranks
from adadistill.core.precision import Precision
from adadistill.core.scoring.embedding_cache import EmbeddingCache
from adadistill.core.scoring.evaluation import DecodedSet, VerificationSets
from adadistill.core.scoring.ijb import ALL_MODES, evaluate_ijb
from adadistill.core.scoring.main_rank import computed_on_main
from adadistill.core.scoring.pair_metrics import PROTOCOL, VerificationResult
from adadistill.core.scoring.result import BenchmarkKind, BenchmarkResult
from adadistill.core.scoring.tinyface import evaluate_tinyface, open_tinyface
from adadistill.core.scoring.verification import evaluate_verification
from adadistill.loaders.evaluation_sets.ijb import open_ijb
from adadistill.loaders.evaluation_sets.verification_pairs import VerificationSetError

_log = logging.getLogger(__name__)


Evaluated: TypeAlias = tuple[BenchmarkResult, VerificationResult | None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Benchmark:
    """One benchmark, ready to be run."""

    kind: BenchmarkKind
    name: str
    """As in the keys of its scores."""
    data_sha256: str
    """Of the files it reads."""
    settings: Mapping[str, Any]
    """What, beside network, data and precision, its numbers depend on; JSON values."""
    scored: Callable[..., Evaluated]
    """What `evaluate` calls, with its arguments."""

    def evaluate(
        self,
        network: nn.Module,
        *,
        ranks: Ranks,
        batch_size: int,
        precision: Precision,
        cache: EmbeddingCache | None = None,
    ) -> Evaluated:
        """Score a network; all ranks call it together. The second value is for verification sets alone.

        Args:
            cache: where the embeddings of this network are kept between calls; verification sets are embedded anew.

        Raises:
            NonFiniteEmbeddingsError: the network gives NaN or infinity.
            ImageDecodeError, IjbError, TinyFaceError, OSError: as `evaluate_ijb` and `evaluate_tinyface`.
        """
        return self.scored(network, ranks=ranks, batch_size=batch_size, precision=precision, cache=cache)


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchmarkPaths:
    """Where the benchmarks lie."""

    sets: tuple[Path, ...] = ()
    """Verification sets: `.bin` files or Arrow folders."""
    ijb: tuple[Path, ...] = ()
    """Folders of IJB-B or IJB-C, original or prepared."""
    tinyface: tuple[Path, ...] = ()
    """Folders of TinyFace, original or prepared."""
    far: float = 1e-3
    """False-accept rate of the TARs on verification sets."""


def open_benchmarks(paths: BenchmarkPaths, image_size: int, ranks: Ranks) -> tuple[Benchmark, ...]:
    """Read and check every benchmark; verification sets are decoded, this rank's share of them.

    Args:
        image_size: side the network takes, in pixels.

    Raises:
        OSError, ValueError, ImportError: one cannot be used, or two have one name.
    """
    decoded = VerificationSets.load(paths.sets, image_size, rank=ranks.rank, world_size=ranks.world_size)
    opened = [_pair_set(one, paths.far) for one in decoded]
    opened += [_ijb(folder, image_size, ranks) for folder in paths.ijb]
    opened += [_tinyface(folder, image_size, ranks) for folder in paths.tinyface]
    for (kind, name), times in Counter((one.kind, one.name) for one in opened).items():
        if times > 1:
            raise VerificationSetError(f"two {kind} benchmarks are named {name!r}; results are kept by name")
    return tuple(opened)


def _pair_set(decoded: DecodedSet, far: float) -> Benchmark:
    """A verification set, decoded."""

    def scored(network: nn.Module, *, cache: EmbeddingCache | None, **how: Any) -> Evaluated:
        details, result = evaluate_verification(decoded, network, far=far, **how)
        return result, details

    return Benchmark(
        kind="verification",
        name=decoded.name,
        data_sha256=decoded.data_sha256,
        settings={"far": far, "protocol": PROTOCOL},
        scored=scored,
    )


def _ijb(folder: Path, image_size: int, ranks: Ranks) -> Benchmark:
    """An IJB set, all but its images read. Rank 0 computes the hash, which reads prepared sets whole, and warns."""
    dataset = open_ijb(folder)
    problem = dataset.annotations.detector_problem
    if problem is not None and ranks.is_main:
        _log.warning("%s: scores with Det:True will be withheld: %s", folder, problem)
    return Benchmark(
        kind="ijb",
        name=dataset.name,
        data_sha256=computed_on_main(dataset.sha256, ranks),
        settings={"modes": [mode.name for mode in ALL_MODES], "flip": "sum of raw embeddings"},
        scored=lambda network, **how: (evaluate_ijb(dataset, network, image_size=image_size, **how), None),
    )


def _tinyface(folder: Path, image_size: int, ranks: Ranks) -> Benchmark:
    """TinyFace, its lists read and, on rank 0, all images for their headers and hash."""
    dataset = open_tinyface(folder)
    return Benchmark(
        kind="tinyface",
        name=dataset.name,
        data_sha256=computed_on_main(lambda: dataset.inspect(image_size), ranks),
        settings={"flip": "sum of raw embeddings"},
        scored=lambda network, **how: (evaluate_tinyface(dataset, network, image_size=image_size, **how), None),
    )
