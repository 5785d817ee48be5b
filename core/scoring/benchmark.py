"""What a benchmark is: data that is opened and checked once, then scores any number of networks.

A kind of benchmark is a file that ends in a `BenchmarkKind`; a field of `EvaluationConfig` registers it. Nothing else
needs to know which kinds there are. Such a file imports numpy and torch inside its functions, as `adadistill evaluate
--help` reads the registry.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from torch import nn

    from adadistill.core.distributed import Ranks
    from adadistill.core.scoring.embedding import Forward
    from adadistill.core.scoring.embedding_cache import EmbeddingCache
    from adadistill.core.scoring.result import BenchmarkResult


class Benchmark(Protocol):
    """One set of data, ready to score networks."""

    @property
    def kind(self) -> BenchmarkKind:
        """The kind that it is of."""
        ...

    @property
    def name(self) -> str:
        """Names the set in the keys of its scores."""
        ...

    @property
    def data_sha256(self) -> str:
        """Hash of the files that it reads."""
        ...

    @property
    def settings(self) -> Mapping[str, Any]:
        """What its numbers depend on beside network, data and precision, as JSON values."""
        ...

    def score(self, network: nn.Module, forward: Forward, *, cache: EmbeddingCache | None = None) -> BenchmarkResult:
        """Score a network. All ranks call it together and get equal results.

        Args:
            network: images (B, 3, H, W), RGB in [-1, 1], to raw embeddings (B, D), on the ranks' device. It runs in
                eval mode without gradients; the mode of every submodule is put back.
            cache: keeps the embeddings on disk and reads those that are there. None keeps nothing.

        Raises:
            NonFiniteEmbeddingsError: the network gives NaN or infinity.
            ValueError, OSError: an image, or what the cache holds, cannot be used.
        """
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoringTerms:
    """What a benchmark is told when it is opened."""

    image_size: int
    """Side of the images that the networks take, in pixels."""
    ranks: Ranks
    far: float = 1e-3
    """False-accept rate of the rates on verification sets, in (0, 1]."""
    intervals: bool = True
    """Whether accuracies on verification sets get their bootstrap interval; training, which logs none, spares it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchmarkKind:
    """One kind of benchmark: how it is opened and how its scores are read."""

    name: str
    """First part of the keys of its scores."""
    open: Callable[[Path, ScoringTerms], Benchmark]
    """Opens and checks a set, on all ranks together. Raises ValueError or OSError, before anything is computed."""
    metavar: str
    help: str
    """What `--help` shows of its option."""
    large: bool = True
    """Whether scoring takes minutes: then training does it every `large_every_epochs`, and embeddings may be kept."""
    percent_in_csv: bool = True
    """Whether its users know its rates as percent; JSON has shares in [0, 1]."""
    flat: bool = False
    """Whether its results have `details`, fields of their own in `metrics.jsonl` and in `sets` of the JSON."""
    without_merit: tuple[str, ...] = ()
    """Parts of the keys that say nothing of how good a network is."""
    lower_is_better: tuple[str, ...] = ()
    """Ends of the keys whose smallest value is the best."""
    table: Callable[[Sequence[BenchmarkResult]], str] | None = None
    """What is printed of its results. None prints a table for each, one score a row."""
    published: Callable[[BenchmarkResult], Mapping[str, Mapping[str, float]] | None] = lambda result: None
    """Protocol -> name in published rows (`published.py`) -> share; None where the data are not published ones."""
