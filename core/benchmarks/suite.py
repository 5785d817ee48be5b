"""The benchmarks that a network is to be scored on, opened and checked before any of them costs time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import nn

from adadistill.core.benchmarks.result import BenchmarkKind, BenchmarkResult
from adadistill.core.benchmarks.verification import evaluate_verification
from adadistill.core.distributed import Ranks
from adadistill.core.evaluation import DecodedSet, VerificationSets
from adadistill.core.precision import Precision
from adadistill.core.verification import PROTOCOL, VerificationResult
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
        self, network: nn.Module, *, ranks: Ranks, batch_size: int, precision: Precision
    ) -> tuple[BenchmarkResult, VerificationResult | None]:
        """Score a network; all ranks call it together. The second value is for verification sets alone."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchmarkPaths:
    """Where the benchmarks lie."""

    sets: tuple[Path, ...] = ()
    """Verification sets."""
    far: float = 1e-3
    """False-accept rate of the TARs on verification sets."""


def open_benchmarks(paths: BenchmarkPaths, image_size: int, ranks: Ranks) -> tuple[Benchmark, ...]:
    """Read and check every benchmark; verification sets are decoded, this rank's share of them.

    Args:
        image_size: side the network takes, in pixels.

    Raises:
        OSError, VerificationSetError, ImageDecodeError: one cannot be used, or two have one name.
    """
    decoded = VerificationSets.load(paths.sets, image_size, rank=ranks.rank, world_size=ranks.world_size)
    opened: list[Benchmark] = [PairSet(one, paths.far) for one in decoded]
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
        self, network: nn.Module, *, ranks: Ranks, batch_size: int, precision: Precision
    ) -> tuple[BenchmarkResult, VerificationResult | None]:
        """Both shapes of its result.

        Raises:
            NonFiniteEmbeddingsError: the network gives NaN or infinity.
        """
        details, result = evaluate_verification(
            network, self.decoded, ranks=ranks, batch_size=batch_size, precision=precision, far=self.far
        )
        return result, details
