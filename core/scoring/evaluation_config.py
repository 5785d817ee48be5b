"""The `evaluation` section of a recipe, whose fields are the registry of benchmarks.

A new kind is a file of its own and a field here; then recipes have its key, `adadistill evaluate` has its option, and
training, tables, JSON, CSV and reports show its scores (docs/extending.md).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Final

from adadistill.core.scoring.benchmark import Benchmark, BenchmarkKind, ScoringTerms
from adadistill.core.scoring.ijb.benchmark import IJB
from adadistill.core.scoring.tinyface.benchmark import TINYFACE
from adadistill.core.scoring.verification import VERIFICATION


def scored_on(kind: BenchmarkKind) -> Any:
    """The field of `EvaluationConfig` that registers a kind of benchmark under the field's name."""
    return field(default=(), metadata={"benchmark": kind})


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationConfig:
    """When and on what a training run is scored."""

    sets: tuple[str, ...] = scored_on(VERIFICATION)
    """Paths of verification sets: `.bin` files (their stem names the set) or CVLface's Arrow folders (their name does).
    Empty: no evaluation."""
    every_epochs: int = 1
    """Epochs between two evaluations; the last epoch is always evaluated. Positive; every epoch, as in the field."""
    ijb: tuple[str, ...] = scored_on(IJB)
    """Folders of IJB-B or IJB-C, in the original or CVLface's prepared layout."""
    tinyface: tuple[str, ...] = scored_on(TINYFACE)
    """Folders of TinyFace's test set, in its own or CVLface's prepared layout."""
    large_every_epochs: int = 4
    """Epochs between two evaluations on `ijb` and `tinyface`, which take minutes; the last epoch is always evaluated.
    Positive; as the origin."""
    batch_size: int = 256
    """Images per forward pass and rank. Positive; changes memory and speed, not the protocol."""

    def __post_init__(self) -> None:
        for name in ("every_epochs", "large_every_epochs", "batch_size"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        repeated = _repeated(Path(path).name.removesuffix(".bin") for path in self.sets)
        if repeated is not None:
            raise ValueError(f"sets must have different file names, got {repeated!r} twice")

    @property
    def paths(self) -> dict[str, tuple[str, ...]]:
        """What is scored, by the key of its kind."""
        return {key: getattr(self, key) for key in KINDS_BY_KEY}


KINDS_BY_KEY: Final[Mapping[str, BenchmarkKind]] = {
    one.name: one.metadata["benchmark"] for one in fields(EvaluationConfig) if "benchmark" in one.metadata
}
"""Key of a recipe, and option of `adadistill evaluate`, -> kind."""

KINDS: Final[Mapping[str, BenchmarkKind]] = {kind.name: kind for kind in KINDS_BY_KEY.values()}


def kind_of(key: str) -> BenchmarkKind | None:
    """The kind that a score's key belongs to; None where it is of none, as in a stranger's file."""
    return KINDS.get(key.partition(".")[0])


def open_benchmarks(paths: Mapping[str, Sequence[str | Path]], terms: ScoringTerms) -> tuple[Benchmark, ...]:
    """Read and check every benchmark. All ranks call it together.

    Args:
        paths: by key of their kind, as in `KINDS_BY_KEY`.

    Raises:
        OSError, ValueError, ArrowMissingError: one cannot be used, or two have one name.
    """
    opened: list[Benchmark] = []
    for key, kind in KINDS_BY_KEY.items():
        for path in paths.get(key, ()):
            opened.append(kind.open(Path(path), terms))
            repeated = _repeated(one.name for one in opened if one.kind is kind)
            if repeated is not None:
                raise ValueError(f"two {kind.name} benchmarks are named {repeated!r}; results are kept by name")
    return tuple(opened)


def _repeated(names: Iterable[str]) -> str | None:
    return next((name for name, times in Counter(names).items() if times > 1), None)
