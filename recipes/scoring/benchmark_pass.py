"""One network through one benchmark: in what precision, on which device, and what is kept of it."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adadistill.recipes.scoring.files import Done, network_identity
from adadistill.recipes.scoring.scored_network import ScoredNetwork, prepare_

if TYPE_CHECKING:
    from adadistill.core.distributed import Ranks
    from adadistill.core.precision import Precision, PrecisionName
    from adadistill.core.scoring.embedding_cache import EmbeddingCache
    from adadistill.core.scoring.pair_metrics import VerificationResult
    from adadistill.core.scoring.suite import Benchmark


@dataclass(frozen=True, kw_only=True, slots=True)
class Forward:
    """How images go through a network."""

    precision_name: PrecisionName
    precision: Precision
    batch_size: int
    """Images per forward pass and rank."""
    ranks: Ranks
    embeddings: Path | None = None
    """Folder that keeps the embeddings of large benchmarks; None keeps none."""

    @staticmethod
    def prepare(
        scored: ScoredNetwork,
        precision: PrecisionName,
        batch_size: int,
        ranks: Ranks,
        embeddings: Path | None = None,
    ) -> Forward:
        """Bring the network to its device and formats. One with a runtime of its own keeps float32, and says so."""
        from adadistill.core.precision import resolve_precision
        from adadistill.core.teachers import computes_in_torch

        if precision != "float32" and not computes_in_torch(scored.network):
            if ranks.is_main:
                print(f"{scored.name} computes as its file says; scored in float32, not {precision}", file=sys.stderr)
            precision = "float32"
        formats = resolve_precision(precision, ranks.device)
        prepare_(scored.network, formats, ranks)
        return Forward(
            precision_name=precision, precision=formats, batch_size=batch_size, ranks=ranks, embeddings=embeddings
        )

    def setting(self) -> dict[str, Any]:
        """What the reports say of it; the numbers depend on the precision alone."""
        return {
            "precision": self.precision_name,
            "device": device_name(self.ranks.device),
            "world_size": self.ranks.world_size,
        }


def settings_of(benchmark: Benchmark, forward: Forward) -> dict[str, Any]:
    """What, beside network and data, the numbers of a benchmark depend on."""
    return {**benchmark.settings, "precision": forward.precision_name}


def score_benchmark(
    scored: ScoredNetwork, benchmark: Benchmark, forward: Forward
) -> tuple[Done, VerificationResult | None]:
    """Score a network; all ranks call it together and get equal results. Rank 0 tells of it on standard error.

    Raises:
        NonFiniteEmbeddingsError: the network gives NaN or infinity.
        EmbeddingCacheError, OSError: kept embeddings cannot be used.
    """
    result, details = benchmark.evaluate(
        scored.network,
        ranks=forward.ranks,
        batch_size=forward.batch_size,
        precision=forward.precision,
        cache=_cache(scored, benchmark, forward),
    )
    if forward.ranks.is_main:
        summary = details.summary() if details is not None else result[result.headline].line()
        print(f"{result.name}  {summary}", file=sys.stderr, flush=True)
    done = Done(
        result=result,
        settings=settings_of(benchmark, forward),
        details=None if details is None else details.to_json(),
    )
    return done, details


def _cache(scored: ScoredNetwork, benchmark: Benchmark, forward: Forward) -> EmbeddingCache | None:
    """A folder for each network, precision, benchmark and data, so that none replaces another."""
    if forward.embeddings is None or benchmark.kind == "verification":
        return None
    identity = network_identity(scored.facts)
    if not identity:
        raise ValueError(
            f"{scored.name}: its weights have no sha256, so that nothing tells its embeddings from others'"
        )
    from adadistill.core.scoring.embedding_cache import EmbeddingCache

    own = (
        forward.embeddings
        / f"{identity[:16]}-{forward.precision_name}"
        / f"{benchmark.name}-{benchmark.data_sha256[:16]}"
    )
    return EmbeddingCache(folder=own, network_sha256=identity)


def device_name(device: Any) -> str:
    """What reports call a device."""
    import torch

    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
