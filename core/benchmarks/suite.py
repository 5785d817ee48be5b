"""The benchmarks that a network is to be scored on, opened and checked before any of them costs time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import nn

from adadistill.core.benchmarks.embedding_cache import EmbeddingCache
from adadistill.core.benchmarks.ijb import ALL_MODES, evaluate_ijb
from adadistill.core.benchmarks.main_rank import computed_on_main
from adadistill.core.benchmarks.result import BenchmarkKind, BenchmarkResult
from adadistill.core.benchmarks.tinyface import TinyFace, evaluate_tinyface, open_tinyface
from adadistill.core.benchmarks.verification import evaluate_verification
from adadistill.core.distributed import Ranks
from adadistill.core.evaluation import DecodedSet, VerificationSets
from adadistill.core.precision import Precision
from adadistill.core.verification import PROTOCOL, VerificationResult
from adadistill.loaders.ijb import IjbSet, open_ijb
from adadistill.loaders.verification_pairs import VerificationSetError


class Benchmark(Protocol):
    """One benchmark, ready to be run."""

    @property
    def kind(self) -> BenchmarkKind:
        """Which protocol it follows."""

    @property
    def name(self) -> str:
        """As in the keys of its scores."""

    @property
    def data_sha256(self) -> str:
        """Of the files it reads."""

    @property
    def settings(self) -> Mapping[str, Any]:
        """What, beside network, data and precision, its numbers depend on; JSON values."""

    def evaluate(
        self,
        network: nn.Module,
        *,
        ranks: Ranks,
        batch_size: int,
        precision: Precision,
        cache: EmbeddingCache | None = None,
    ) -> tuple[BenchmarkResult, VerificationResult | None]:
        """Score a network; all ranks call it together. The second value is for verification sets alone.

        Args:
            cache: where the embeddings of this network are kept between calls; verification sets are embedded anew.
        """


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
        OSError, ValueError, ArrowMissingError: one cannot be used, or two have one name.
    """
    decoded = VerificationSets.load(paths.sets, image_size, rank=ranks.rank, world_size=ranks.world_size)
    opened: list[Benchmark] = [PairSet(one, paths.far) for one in decoded]
    opened += [IjbBenchmark.open(folder, image_size, ranks) for folder in paths.ijb]
    opened += [TinyFaceBenchmark.open(folder, image_size, ranks) for folder in paths.tinyface]
    for (kind, name), times in Counter((one.kind, one.name) for one in opened).items():
        if times > 1:
            raise VerificationSetError(f"two {kind} benchmarks are named {name!r}; results are kept by name")
    return tuple(opened)


@dataclass(frozen=True, slots=True)
class PairSet:
    """A verification set, decoded."""

    decoded: DecodedSet
    far: float
    """False-accept rate of the reported TARs."""

    @property
    def kind(self) -> BenchmarkKind:
        """`verification`."""
        return "verification"

    @property
    def name(self) -> str:
        """Of the set."""
        return self.decoded.name

    @property
    def data_sha256(self) -> str:
        """Of its file or files."""
        return self.decoded.data_sha256

    @property
    def settings(self) -> Mapping[str, Any]:
        """Target of the TARs, and the protocol in words."""
        return {"far": self.far, "protocol": PROTOCOL}

    def evaluate(
        self,
        network: nn.Module,
        *,
        ranks: Ranks,
        batch_size: int,
        precision: Precision,
        cache: EmbeddingCache | None = None,
    ) -> tuple[BenchmarkResult, VerificationResult | None]:
        """Both shapes of its result.

        Raises:
            NonFiniteEmbeddingsError: the network gives NaN or infinity.
        """
        details, result = evaluate_verification(
            self.decoded, network, ranks=ranks, batch_size=batch_size, precision=precision, far=self.far
        )
        return result, details


@dataclass(frozen=True, slots=True)
class IjbBenchmark:
    """An IJB set with its hash."""

    dataset: IjbSet
    image_size: int
    data_sha256: str

    @staticmethod
    def open(folder: Path, image_size: int, ranks: Ranks) -> IjbBenchmark:
        """Read everything but the images. Rank 0 computes the hash, which reads prepared sets whole.

        Raises:
            FileNotFoundError, ArrowMissingError, IjbError, ArrowImagesError, TorchMetadataError: as `open_ijb`.
        """
        dataset = open_ijb(folder)
        return IjbBenchmark(dataset, image_size, computed_on_main(dataset.sha256, ranks))

    @property
    def kind(self) -> BenchmarkKind:
        """`ijb`."""
        return "ijb"

    @property
    def name(self) -> str:
        """Of the set."""
        return self.dataset.name

    @property
    def settings(self) -> Mapping[str, Any]:
        """Pooling modes."""
        return {"modes": [mode.name for mode in ALL_MODES], "flip": "sum of raw embeddings"}

    def evaluate(
        self,
        network: nn.Module,
        *,
        ranks: Ranks,
        batch_size: int,
        precision: Precision,
        cache: EmbeddingCache | None = None,
    ) -> tuple[BenchmarkResult, VerificationResult | None]:
        """1:1 and, where the set has it, 1:N.

        Raises:
            NonFiniteEmbeddingsError, ImageDecodeError, IjbError, OSError: as `evaluate_ijb`.
        """
        result = evaluate_ijb(
            self.dataset,
            network,
            ranks=ranks,
            batch_size=batch_size,
            precision=precision,
            image_size=self.image_size,
            cache=cache,
        )
        return result, None


@dataclass(frozen=True, slots=True)
class TinyFaceBenchmark:
    """TinyFace, every image looked at."""

    dataset: TinyFace
    image_size: int
    data_sha256: str

    @staticmethod
    def open(folder: Path, image_size: int, ranks: Ranks) -> TinyFaceBenchmark:
        """Read the lists and, on rank 0, all images for their headers and hash.

        Raises:
            OSError, ValueError, ArrowMissingError: as `open_tinyface` and `TinyFace.inspect`.
        """
        dataset = open_tinyface(folder)
        return TinyFaceBenchmark(dataset, image_size, computed_on_main(lambda: dataset.inspect(image_size), ranks))

    @property
    def kind(self) -> BenchmarkKind:
        """`tinyface`."""
        return "tinyface"

    @property
    def name(self) -> str:
        """Of the set."""
        return self.dataset.name

    @property
    def settings(self) -> Mapping[str, Any]:
        """How images are fused."""
        return {"flip": "sum of raw embeddings"}

    def evaluate(
        self,
        network: nn.Module,
        *,
        ranks: Ranks,
        batch_size: int,
        precision: Precision,
        cache: EmbeddingCache | None = None,
    ) -> tuple[BenchmarkResult, VerificationResult | None]:
        """Closed-set identification.

        Raises:
            NonFiniteEmbeddingsError, TinyFaceError, ImageDecodeError: as `evaluate_tinyface`.
        """
        result = evaluate_tinyface(
            self.dataset,
            network,
            ranks=ranks,
            batch_size=batch_size,
            precision=precision,
            image_size=self.image_size,
            cache=cache,
        )
        return result, None
