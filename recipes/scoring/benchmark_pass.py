"""One network through benchmarks: in what precision, on which device, and what is kept of it."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adadistill.recipes.outputs import will_write_folder
from adadistill.recipes.scoring.files import Done, Evaluation, network_identity
from adadistill.recipes.scoring.scored_network import ScoredNetwork, prepare_

if TYPE_CHECKING:
    from adadistill.core.distributed import Ranks
    from adadistill.core.precision import PrecisionName
    from adadistill.core.scoring.benchmark import Benchmark
    from adadistill.core.scoring.embedding import Forward
    from adadistill.core.scoring.embedding_cache import EmbeddingCache


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """What `adadistill evaluate` is asked to do with its networks."""

    paths: Mapping[str, Sequence[str | Path]]
    """Benchmarks, by the key of their kind: `sets`, `ijb`, `tinyface`."""
    out: Path | None = None
    """Folder of the results; default: `report` in the run folder, or beside the network's file."""
    batch_size: int = 256
    """Images per forward pass and rank."""
    device: str | None = None
    """`cpu`, `cuda`, `cuda:N`, or None for CUDA where there is one."""
    precision: PrecisionName = "float32"
    """Of the network; float32 by default, so that numbers do not depend on the device's habits."""
    far: float = 1e-3
    """False-accept rate of the rates on verification sets, in (0, 1]."""
    report: bool = False
    """Whether `report.html` and `report.md` of everything in `out` are written too."""
    embeddings: Path | None = None
    """Folder that keeps the embeddings of large benchmarks, by network and data, so that a changed metric, or a run
    that was stopped, does not embed again."""

    def check_places(self, out: Path) -> None:
        """Refuse places that cannot be written, before hours of scoring. Raises OSError."""
        will_write_folder(out, remedy="say with --out where the results go")
        if self.embeddings is not None:
            will_write_folder(self.embeddings, remedy="name another folder with --embeddings")

    def open_benchmarks(self, image_size: int, ranks: Ranks) -> tuple[Benchmark, ...]:
        """All benchmarks, for networks of one image size. Raises as the registry's `open_benchmarks`."""
        from adadistill.core.scoring.benchmark import ScoringTerms
        from adadistill.core.scoring.evaluation_config import open_benchmarks

        return open_benchmarks(self.paths, ScoringTerms(image_size=image_size, ranks=ranks, far=self.far))


@dataclass(frozen=True, kw_only=True, slots=True)
class PreparedNetwork:
    """A network on its device, ready to be scored. All ranks of a launch have one."""

    scored: ScoredNetwork
    forward: Forward
    precision: PrecisionName
    embeddings: Path | None

    @staticmethod
    def of(scored: ScoredNetwork, request: Request, ranks: Ranks) -> PreparedNetwork:
        """Bring a network to its device and formats. One with a runtime of its own keeps float32, and says so."""
        from adadistill.core.precision import resolve_precision
        from adadistill.core.scoring.embedding import Forward
        from adadistill.core.teachers import computes_in_torch

        name = request.precision
        if name != "float32" and not computes_in_torch(scored.network):
            if ranks.is_main:
                print(f"{scored.name} computes as its file says; scored in float32, not {name}", file=sys.stderr)
            name = "float32"
        formats = resolve_precision(name, ranks.device)
        prepare_(scored.network, formats, ranks)
        forward = Forward(ranks=ranks, batch_size=request.batch_size, precision=formats)
        return PreparedNetwork(scored=scored, forward=forward, precision=name, embeddings=request.embeddings)

    def settings_of(self, benchmark: Benchmark) -> dict[str, Any]:
        """What, beside network and data, the numbers of a benchmark depend on."""
        return {**benchmark.settings, "precision": self.precision}

    def score(self, benchmark: Benchmark) -> Done:
        """Score the network on a benchmark. Rank 0 tells of it on standard error.

        Raises:
            NonFiniteEmbeddingsError: the network gives NaN or infinity.
            ValueError, OSError: an image, or kept embeddings, cannot be used.
        """
        result = benchmark.score(self.scored.network, self.forward, cache=self._cache(benchmark))
        if self.forward.ranks.is_main:
            print(f"{result.name}  {result.summary()}", file=sys.stderr, flush=True)
        return Done(result=result, settings=self.settings_of(benchmark))

    def evaluation(self, name: str, done: Iterable[Done]) -> Evaluation:
        """The network with what it has been scored on."""
        ranks = self.forward.ranks
        setting = {"precision": self.precision, "device": device_name(ranks.device), "world_size": ranks.world_size}
        return Evaluation(name=name, facts=self.scored.facts, setting=setting, done=tuple(done))

    def _cache(self, benchmark: Benchmark) -> EmbeddingCache | None:
        """A folder for each network, precision, benchmark and data, so that none replaces another."""
        if self.embeddings is None or not benchmark.kind.large:
            return None
        identity = network_identity(self.scored.facts)
        if not identity:
            raise ValueError(
                f"{self.scored.name}: its weights have no sha256, so that nothing tells its embeddings from others'"
            )
        from adadistill.core.scoring.embedding_cache import EmbeddingCache

        of_network = self.embeddings / f"{identity[:16]}-{self.precision}"
        of_data = f"{benchmark.name}-{benchmark.data_sha256[:16]}"
        return EmbeddingCache(folder=of_network / of_data, network_sha256=identity)


def device_name(device: Any) -> str:
    """What reports call a device."""
    import torch

    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
